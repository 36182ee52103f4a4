"""How vouchers refuse: every name, in the order of an enterprise's way from programme to claim."""

from kernel.errors import Conflict, Forbidden, Invalid, NotFound, Unfunded


class EnterpriseNotFound(NotFound):
    """No enterprise has this id."""

    sentence = "There is no enterprise {enterprise}."


class EnterpriseExists(Conflict):
    """The credit code was registered with other facts; they are changed by name and with a reason, not silently."""

    sentence = (
        "{field}: credit code {credit_code} was registered with {registered!r}, so it cannot be registered with "
        "{asked!r}; change the enterprise's facts instead."
    )


class MalformedProfile(Invalid):
    """A profile that cannot be an enterprise's."""

    sentence = "{field}: {value!r} {reason}."


class ProgrammeNotFound(NotFound):
    """No version of this programme is in force."""

    sentence = "No version of programme {programme!r} is in force on {day}."


class VersionExists(Conflict):
    """The version number is taken by other content; a changed rule is a new version."""

    sentence = "version: {version} of {programme} is published with other content; publish the change as a new version."


class VersionsOverlap(Conflict):
    """Two versions of one programme would be in force on the same day."""

    sentence = (
        "effective: version {version} of {programme} would be in force together with version {other}, from {day}; "
        "let one end before the other begins, or name {other} in supersedes."
    )


class AssetChanged(Invalid):
    """A programme counts one asset for ever."""

    sentence = "asset: {programme} counts {asset}, so a version cannot count {asked}; publish another programme for it."


class ApplicationNotFound(NotFound):
    """No application has this id."""

    sentence = "There is no application {application}."


class ApplicationState(Conflict):
    """The application is not where this step begins."""

    sentence = "Application {application} is {state}; {step} needs it to be {needed}."


class ChecksFailed(Conflict):
    """Automatic checks keep the application from review."""

    sentence = "Application {application} does not pass: {rules}."


class SamePerson(Forbidden):
    """First review and final approval are two people's work."""

    sentence = "{by} did the first review; the final approval needs another person."


class NoticeRunning(Conflict):
    """The public may still object, or an objection is open."""

    sentence = "Application {application}: {reason}."


class ObjectionNotFound(NotFound):
    """No objection has this id."""

    sentence = "There is no objection {objection}."


class ObjectionResolved(Conflict):
    """The objection was decided before."""

    sentence = "Objection {objection} is {state}."


class ValidityOver(Conflict):
    """A voucher issued now would have expired before it could be used."""

    sentence = (
        "A voucher of {programme} issued now would have expired at {expired_at} ({clause}); nothing is issued."
    )


class PoolExhausted(Unfunded):
    """The programme has less left in this cycle than the voucher's face value."""

    sentence = "{programme} has {available} left to issue in {cycle}; {required} is required."


class CapExceeded(Conflict):
    """The enterprise, or its actual controller's group, would hold more than the programme allows."""

    sentence = (
        "{clause}: {holder} has been issued {issued} in {cycle}; {required} more would exceed the cap of {cap}."
    )


class GrantIndivisible(Invalid):
    """A grant so small that one of its tranches would be nothing."""

    sentence = "{field}: {granted} cannot be divided into {count} tranches of at least one unit; grant more."


class NotApplicationsVoucher(Conflict):
    """There is no further part to release."""

    sentence = "Application {application} has no tranche {tranche} waiting for {needs}."


class VoucherNotFound(NotFound):
    """No voucher of this tenant has this id."""

    sentence = "There is no voucher {voucher}."


class VoucherExpired(Unfunded):
    """The voucher's last instant has passed."""

    sentence = "Voucher {voucher} ended at {expired_at}."


class VoucherPastUse(Unfunded):
    """The voucher lasts, but pays only for usage up to its use-by deadline."""

    sentence = "Voucher {voucher} pays for usage up to {use_by_at} only."


class VoucherEnded(Unfunded):
    """The voucher was recalled or has expired."""

    sentence = "Voucher {voucher} is {state}."


class VoucherSpent(Unfunded):
    """Nothing remains on the voucher, open holds counted."""

    sentence = "Nothing remains on voucher {voucher}."


class VoucherNotApplicable(Unfunded):
    """The voucher's programme does not pay for this usage."""

    sentence = "Voucher {voucher} does not pay for this: {reason} ({clause})."


class NoFunding(Unfunded):
    """What vouchers leave to the tenant is more than it has."""

    sentence = "{required} micro-yuan are to be paid and {available} are available; {short} are missing."


class BudgetSpent(Unfunded):
    """The project may not spend this much more of the enterprise's money in its period."""

    sentence = "Project {project} has {available} micro-yuan of its budget left; {required} are required."


class CostOutOfRange(Invalid):
    """A cost or card time that no job can have."""

    sentence = "{field}: {value!r} must be a whole number from {least} to 9007199254740992."


class HoldNotFound(NotFound):
    """Nothing is set aside for this job."""

    sentence = "job: nothing is set aside for job {job}; place a hold for it first."


class HoldDiffers(Conflict):
    """The job already has a hold that says something else."""

    sentence = "Job {job} already has a hold for other content; extend it instead."


class HoldReleased(Conflict):
    """What was set aside for the job has been given back."""

    sentence = "What was set aside for job {job} has been released."


class ChargeBeyondHold(Unfunded):
    """The charge is more than is still set aside for usage at that time."""

    sentence = (
        "Job {job} has {available} micro-yuan set aside for usage up to {used_until}; {required} are required."
    )


class ChargeDiffers(Conflict):
    """The charge's id was captured with other content."""

    sentence = (
        "charge: {charge} was captured before with another job, cost or usage; "
        "give what is new an id of its own."
    )


class ChargeFactsDiffer(Invalid):
    """The charge is not for what was set aside."""

    sentence = (
        "facts: the charge of job {job} differs from what was set aside: {differences}; "
        "extend the hold for what was used."
    )


class ChargeNotFound(NotFound):
    """No charge with this id was captured."""

    sentence = "There is no captured charge {charge}."


class ChargeClaimed(Conflict):
    """A share of the charge was refused in a claim for good; its money is in the pool."""

    sentence = "Charge {charge} has a share that claim {claim} was refused for good; it cannot be given back."


class NotRestorable(Conflict):
    """A share of the charge was clawed back; its money is in the pool."""

    sentence = "Charge {charge} has a share that was clawed back."


class LostTimeOutOfRange(Invalid):
    """More card time than the charge was for, or none."""

    sentence = "lost_ms: {value!r} must be a whole number from 1 to the {card_ms} of charge {charge}."


class PeriodNotBegun(Conflict):
    """The claim period lies ahead."""

    sentence = "period: {period} of {programme} begins at {begins_at}; claim it then."


class PeriodClosed(Conflict):
    """The claim period is settled."""

    sentence = (
        "period: {period} of {programme} is closed, as claim {claim} is {state}; "
        "what was captured since goes into the next period's claim."
    )


class NothingToClaim(Conflict):
    """No captured coverage waits to be claimed."""

    sentence = "Nothing captured under {programme} up to the end of {period} waits to be claimed."


class ClaimNotFound(NotFound):
    """No claim has this id."""

    sentence = "There is no claim {claim}."


class ClaimState(Conflict):
    """The claim is not where this step begins."""

    sentence = "Claim {claim} is {state}; {step} needs it to be {needed}."


class ClaimPaid(Conflict):
    """A claim is paid by one bank transfer."""

    sentence = "bank_reference: claim {claim} was paid by {reference!r}, so {other!r} cannot pay it once more."


class ClaimLineNotFound(NotFound):
    """The claim has no such line."""

    sentence = "Claim {claim} has no line {line}."


class NoReserve(Conflict):
    """The programme provides for less in its reserve fund."""

    sentence = (
        "{programme} provides for a reserve of {provided}; {left} is left of it, {required} more is too much."
    )


class ReconciliationDiffers(Conflict):
    """The bank statement and the disbursement are not the same."""

    sentence = "Claim {claim}: {expected} was disbursed through the bank, the statement shows {received}."


class MissingEvidence(Invalid):
    """The programme pays only on evidence that is not there."""

    sentence = "evidence: {programme} asks for {missing} ({clause})."


class GroupFull(Conflict):
    """A payer binds at most six affiliates."""

    sentence = "Enterprise {payer} already pays for {count} affiliates; at most {allowed} can be bound."


class AlreadyBound(Conflict):
    """An affiliate is bound once, and a payer is not itself bound."""

    sentence = "Enterprise {enterprise} is already bound to {payer}."


class NotRelated(Conflict):
    """Only enterprises of one group may be bound to a payer."""

    sentence = "Enterprises {affiliate} and {payer} have no common actual controller and are not related."


class BankReferenceUsed(Conflict):
    """A bank transfer is one movement: it is booked once, to one enterprise, for one purpose."""

    sentence = (
        "reference: {reference!r} was booked as a {movement} of {amount} micro-yuan before; "
        "one bank transfer is booked once, so give the reference of another one."
    )


class NothingOwed(Conflict):
    """A repayment where nothing has been used of a credit line."""

    sentence = "Enterprise {enterprise} owes nothing on its credit line; book bank transfer {reference!r} as a deposit."


class AmountRefused(Invalid):
    """An amount that this movement cannot have."""

    sentence = "{field}: {value!r} must be a whole number from 1 to 9007199254740992."


class DatesReversed(Invalid):
    """A period that ends before it starts."""

    sentence = "{field}: {ends_at} is not after {starts_at}; name a later time."


class RoundDiffers(Conflict):
    """A round of this name was opened for other dates."""

    sentence = (
        "name: round {name!r} of {programme} runs from {opens_at} to {cut_off_at}; "
        "give another round another name."
    )


class BudgetDiffers(Conflict):
    """A budget that begins then was set to end at another time."""

    sentence = (
        "ends_at: the budget of {project!r} that begins at {starts_at} ends at {ends_at}; name that end, "
        "or begin another budget."
    )


class RoundNotFound(NotFound):
    """No such round of the programme."""

    sentence = "There is no round {round}."
