"""The ledger's refusals as errors, for callers whose whole batch must be posted or nothing.

Each refusing `Status` has exactly one error class; `refusal` builds it from an outcome.
"""

from typing import Final

from kernel.errors import Conflict, HubError, Invalid, NotFound, Unfunded
from ledger.domain.outcomes import Outcome, Status
from ledger.domain.transfers import AmountOutOfRange, SameAccount


class AccountDiffers(Conflict):
    """An account with this id was opened with another name, asset or bound."""

    sentence = (
        "Account {account} exists with other content than name {name!r}, asset {asset} and bound {bound}."
    )


class AccountNameTaken(Conflict):
    """Another account has this name."""

    sentence = "The account name {name!r} belongs to another account than {account}."


class InsufficientFunds(Unfunded):
    """The bounded account does not have the amount, open holds counted."""

    sentence = "{movement} for {cause}: account {account} has {available} available, {required} is required."


class HoldExhausted(Unfunded):
    """A capture wants more than the hold has left."""

    sentence = "{movement} for {cause}: hold {hold} has {available} left, {required} is required."


class BalanceOutOfRange(Invalid):
    """A total of the account would leave the range that the ledger counts in."""

    sentence = "{movement} for {cause}: account {account} cannot count {required} more."


class IdReusedWithOtherContent(Conflict):
    """The transfer's id is taken by a transfer that says something else."""

    sentence = "{movement} for {cause}: transfer id {transfer} was used before with other content."


class UnknownHold(NotFound):
    """No hold has this id."""

    sentence = "{movement} for {cause}: there is no hold {hold}."


class UnknownTransfer(NotFound):
    """No transfer has the id that was to be reversed."""

    sentence = "{movement} for {cause}: there is no transfer {reverses}."


class UnknownAccount(NotFound):
    """No account has this id."""

    sentence = "{movement} for {cause}: there is no account {account}."


class AssetMismatch(Invalid):
    """Debit and credit count different assets."""

    sentence = (
        "{movement} for {cause}: the credited account {account} counts another asset than the debited one."
    )


class HoldResolved(Conflict):
    """The hold was released or has expired."""

    sentence = "{movement} for {cause}: hold {hold} is already resolved."


class HoldExpired(Conflict):
    """The hold's end has come, so nothing more can be taken from it."""

    sentence = "{movement} for {cause}: hold {hold} has come to its end; only release or expire it."


class HoldNotYetExpired(Conflict):
    """The hold's end has not come."""

    sentence = "{movement} for {cause}: the end of hold {hold} has not come; release it instead."


class NotReversible(Conflict):
    """Only posted transfers and captures can be reversed."""

    sentence = "{movement} for {cause}: transfer {reverses} moved nothing that could be reversed."


class AlreadyReversed(Conflict):
    """A transfer is reversed once."""

    sentence = "{movement} for {cause}: transfer {reverses} is already reversed."


_REFUSALS: Final[dict[Status, type[HubError]]] = {
    Status.AMOUNT_OUT_OF_RANGE: AmountOutOfRange,
    Status.SAME_ACCOUNT: SameAccount,
    Status.ID_REUSED_WITH_OTHER_CONTENT: IdReusedWithOtherContent,
    Status.UNKNOWN_HOLD: UnknownHold,
    Status.UNKNOWN_TRANSFER: UnknownTransfer,
    Status.UNKNOWN_ACCOUNT: UnknownAccount,
    Status.ASSET_MISMATCH: AssetMismatch,
    Status.HOLD_RESOLVED: HoldResolved,
    Status.HOLD_EXPIRED: HoldExpired,
    Status.HOLD_NOT_YET_EXPIRED: HoldNotYetExpired,
    Status.NOT_REVERSIBLE: NotReversible,
    Status.ALREADY_REVERSED: AlreadyReversed,
    Status.HOLD_EXHAUSTED: HoldExhausted,
    Status.INSUFFICIENT_FUNDS: InsufficientFunds,
    Status.BALANCE_OUT_OF_RANGE: BalanceOutOfRange,
}


def refusal(outcome: Outcome) -> HubError:
    """The error that says why this outcome is a refusal, with its facts."""
    asked = outcome.transfer
    return _REFUSALS[outcome.status](
        field="amount",
        value=asked.amount,
        transfer=asked.id,
        kind=asked.kind.value,
        movement=asked.movement,
        cause=asked.cause,
        hold=asked.hold_id,
        reverses=asked.reverses,
        account=outcome.account_id,
        available=outcome.available,
        required=outcome.amount,
    )
