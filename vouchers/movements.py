"""Every movement of value that vouchers make, one readable template each; nobody else builds a transfer.

A transfer's id is derived from the movement and what caused it, so a repeated use case posts nothing twice.
Money flows from the debited to the credited account.
"""

from datetime import datetime
from uuid import UUID

from kernel.ids import derived_id
from ledger.domain import transfers
from ledger.domain.accounts import Account
from ledger.domain.transfers import Transfer
from vouchers import accounts


def _move(movement: str, *causes: object, debit: Account, credit: Account, amount: int) -> Transfer:
    return transfers.posted(
        derived_id("transfer", movement, *causes),
        debit=debit.id,
        credit=credit.id,
        amount=amount,
        movement=movement,
        cause=" ".join(map(str, causes)),
    )


# Budget and issue


def appropriate(appropriation_id: UUID, authority: str, pool: Account, amount: int) -> Transfer:
    """An authority puts its part of a cycle's budget into the pool."""
    funds = accounts.authority_funds(authority, pool.asset)
    return _move("appropriate", appropriation_id, authority, debit=funds, credit=pool, amount=amount)


def return_budget(closing_id: UUID, authority: str, pool: Account, amount: int) -> Transfer:
    """An authority gets its part of what is left of a cycle that is over."""
    funds = accounts.authority_funds(authority, pool.asset)
    return _move("return_budget", closing_id, authority, debit=pool, credit=funds, amount=amount)


def carry_over(closing_id: UUID, old: Account, new: Account, amount: int) -> Transfer:
    """What is left of a cycle that is over may be issued in the next one."""
    return _move("carry_over", closing_id, debit=old, credit=new, amount=amount)


def issue_voucher(voucher_id: UUID, pool: Account, face: int) -> Transfer:
    """The pool gives a voucher its face value; the pool's bound keeps all vouchers within the budget."""
    return _move(
        "issue_voucher",
        voucher_id,
        debit=pool,
        credit=accounts.voucher(voucher_id, pool.asset),
        amount=face,
    )


def promise_tranches(application_id: UUID, pool: Account, amount: int) -> Transfer:
    """Set the later parts of a grant aside, so that a progress report never meets an empty pool."""
    promised = accounts.promised(application_id, pool.asset)
    return _move("promise_tranches", application_id, debit=pool, credit=promised, amount=amount)


def release_tranche(voucher_id: UUID, application_id: UUID, asset: str, face: int) -> Transfer:
    """A progress report was accepted: a promised part becomes a voucher."""
    return _move(
        "release_tranche",
        voucher_id,
        debit=accounts.promised(application_id, asset),
        credit=accounts.voucher(voucher_id, asset),
        amount=face,
    )


def withdraw_promise(application_id: UUID, pool: Account, amount: int) -> Transfer:
    """Parts of a grant that will not be released go back to the pool."""
    promised = accounts.promised(application_id, pool.asset)
    return _move("withdraw_promise", application_id, debit=promised, credit=pool, amount=amount)


def allot_part(allotment_id: UUID, voucher: Account, part: Account, amount: int) -> Transfer:
    """Keep a part of a voucher for one project."""
    return _move("allot_part", allotment_id, debit=voucher, credit=part, amount=amount)


def return_part(allotment_id: UUID, voucher: Account, part: Account, amount: int) -> Transfer:
    """Give what a project no longer needs back to the voucher."""
    return _move("return_part", allotment_id, debit=part, credit=voucher, amount=amount)


# The tenant's own money


def bank_transfer_id(reference: str) -> UUID:
    """What a bank transfer is booked as, whatever it was for: one reference of the bank is one movement."""
    return derived_id("transfer", "bank transfer", reference)


def surplus_id(reference: str) -> UUID:
    """What a bank transfer brought beyond what was owed is booked as."""
    return derived_id("transfer", "surplus of a bank transfer", reference)


def deposit(enterprise_id: UUID, reference: str, amount_micros: int) -> Transfer:
    """Money arrived at the bank for an enterprise's prepaid balance; the bank's reference makes it unique."""
    return _from_bank(
        bank_transfer_id(reference), "deposit", reference, accounts.wallet(enterprise_id), amount_micros
    )


def grant_credit(enterprise_id: UUID, reference: str, amount_micros: int) -> Transfer:
    """The centre lets an enterprise use so much more before it pays."""
    return _move(
        "grant_credit",
        enterprise_id,
        reference,
        debit=accounts.CREDIT_GRANTED,
        credit=accounts.credit_line(enterprise_id),
        amount=amount_micros,
    )


def withdraw_credit(enterprise_id: UUID, reference: str, amount_micros: int) -> Transfer:
    """The centre takes back what an enterprise has not used of its credit line."""
    return _move(
        "withdraw_credit",
        enterprise_id,
        reference,
        debit=accounts.credit_line(enterprise_id),
        credit=accounts.CREDIT_GRANTED,
        amount=amount_micros,
    )


def repay_credit(enterprise_id: UUID, reference: str, amount_micros: int) -> Transfer:
    """An enterprise paid what it had used before paying; its credit line can be used again."""
    return _from_bank(
        bank_transfer_id(reference),
        "repay_credit",
        reference,
        accounts.credit_line(enterprise_id),
        amount_micros,
    )


def keep_surplus(enterprise_id: UUID, reference: str, amount_micros: int) -> Transfer:
    """What an enterprise paid beyond what it owed goes to its prepaid balance."""
    return _from_bank(
        surplus_id(reference), "keep_surplus", reference, accounts.wallet(enterprise_id), amount_micros
    )


def _from_bank(
    transfer_id: UUID, movement: str, reference: str, credit: Account, amount_micros: int
) -> Transfer:
    return transfers.posted(
        transfer_id,
        debit=accounts.BANK.id,
        credit=credit.id,
        amount=amount_micros,
        movement=movement,
        cause=reference,
    )


def raise_budget(budget_id: UUID, reference: str, amount_micros: int) -> Transfer:
    """Let a project spend so much more of the enterprise's own money."""
    return _move(
        "raise_budget",
        budget_id,
        reference,
        debit=accounts.BUDGET_LIMITS,
        credit=accounts.project_budget(budget_id),
        amount=amount_micros,
    )


def lower_budget(budget_id: UUID, reference: str, amount_micros: int) -> Transfer:
    """Take back what a project has neither spent nor set aside."""
    return _move(
        "lower_budget",
        budget_id,
        reference,
        debit=accounts.project_budget(budget_id),
        credit=accounts.BUDGET_LIMITS,
        amount=amount_micros,
    )


# Redemption


def hold_funds(
    cause: tuple[UUID, int, int], source: UUID, destination: Account, amount: int, lapses_at: datetime
) -> Transfer:
    """Set aside what one source may have to pay of a job's segment. The cause is job, segment and line."""
    return transfers.hold(
        derived_id("transfer", "hold_funds", *cause),
        debit=source,
        credit=destination.id,
        amount=amount,
        expires_at=lapses_at,
        movement="hold_funds",
        cause=" ".join(map(str, cause)),
    )


def capture_usage(charge_id: UUID, segment: int, line: int, hold_id: UUID, amount: int) -> Transfer:
    """Take what a charge costs one source out of what was set aside."""
    cause = (charge_id, segment, line)
    return transfers.capture(
        derived_id("transfer", "capture_usage", *cause),
        hold_id=hold_id,
        amount=amount,
        movement="capture_usage",
        cause=" ".join(map(str, cause)),
    )


def release_funds(hold_id: UUID) -> Transfer:
    """Give back what was set aside and not captured."""
    return transfers.release(
        derived_id("transfer", "release_funds", hold_id),
        hold_id=hold_id,
        movement="release_funds",
        cause=str(hold_id),
    )


def carry_rounding(charge_id: UUID, segment: int, enterprise_id: UUID, micros: int) -> Transfer:
    """The centre bears what rounding every voucher's share down leaves; a later charge may give it back."""
    revenue = accounts.revenue(enterprise_id)
    debit, credit = (accounts.ROUNDING, revenue) if micros > 0 else (revenue, accounts.ROUNDING)
    return _move("carry_rounding", charge_id, segment, debit=debit, credit=credit, amount=abs(micros))


def restore_usage(
    cause: tuple[UUID, int, int], hold_id: UUID, destination: UUID, source: UUID, amount: int
) -> Transfer:
    """Give back what a charge took from one source, from its newest end. The cause is charge, segment and point."""
    return transfers.posted(
        derived_id("transfer", "restore_usage", *cause, hold_id),
        debit=destination,
        credit=source,
        amount=amount,
        movement="restore_usage",
        cause=" ".join(map(str, cause)),
    )


def return_rounding(charge_id: UUID, segment: int, point: int, enterprise_id: UUID, micros: int) -> Transfer:
    """What the centre bore of usage that is given back comes back to it."""
    revenue = accounts.revenue(enterprise_id)
    debit, credit = (revenue, accounts.ROUNDING) if micros > 0 else (accounts.ROUNDING, revenue)
    return _move("return_rounding", charge_id, segment, point, debit=debit, credit=credit, amount=abs(micros))


# Afterlife


def expire_voucher(voucher_id: UUID, source: Account, pool: Account, amount: int) -> Transfer:
    """What an expired voucher did not use goes back to the pool of the cycle it came from."""
    return _move("expire_voucher", voucher_id, source.name, debit=source, credit=pool, amount=amount)


def recall_voucher(voucher_id: UUID, source: Account, pool: Account, amount: int) -> Transfer:
    """What a recalled voucher has not set aside goes back to the pool of the cycle it came from."""
    return _move("recall_voucher", voucher_id, source.name, debit=source, credit=pool, amount=amount)


def return_freed(cause: UUID, source: UUID, pool: Account, amount: int) -> Transfer:
    """What comes back to a voucher after its end goes on to the pool; the cause is what brought it back."""
    return transfers.posted(
        derived_id("transfer", "return_freed", cause, source),
        debit=source,
        credit=pool.id,
        amount=amount,
        movement="return_freed",
        cause=str(cause),
    )


def claw_back(line_id: UUID, slug: str, enterprise_id: UUID, pool: Account, amount: int) -> Transfer:
    """Value that was claimed wrongly does not go back to its voucher's holder but to the pool."""
    claimable = accounts.claimable(slug, enterprise_id, pool.asset)
    return _move("claw_back", line_id, debit=claimable, credit=pool, amount=amount)


def reverse(transfer_id: UUID, why: str) -> Transfer:
    """Undo one recorded movement, whole and once."""
    return transfers.reversal(
        derived_id("transfer", "reverse", transfer_id),
        reverses=transfer_id,
        movement=why,
        cause=str(transfer_id),
    )


# Settlement: one transfer per line and step, so that a clawback can unwind exactly what was recorded


def claim_line(
    claim_id: UUID, line_id: UUID, slug: str, enterprise_id: UUID, asset: str, amount: int
) -> Transfer:
    """Put a captured coverage under review."""
    return _move(
        "claim_line",
        claim_id,
        line_id,
        debit=accounts.claimable(slug, enterprise_id, asset),
        credit=accounts.claimed(slug, asset),
        amount=amount,
    )


def return_line(
    claim_id: UUID, line_id: UUID, slug: str, enterprise_id: UUID, asset: str, amount: int
) -> Transfer:
    """A disputed line may be claimed again, with better evidence."""
    return _move(
        "return_line",
        claim_id,
        line_id,
        debit=accounts.claimed(slug, asset),
        credit=accounts.claimable(slug, enterprise_id, asset),
        amount=amount,
    )


def approve_line(claim_id: UUID, line_id: UUID, slug: str, asset: str, amount: int) -> Transfer:
    """The programme owes what was finally approved."""
    return _move(
        "approve_line",
        claim_id,
        line_id,
        debit=accounts.claimed(slug, asset),
        credit=accounts.payable(slug, asset),
        amount=amount,
    )


def disburse_line(claim_id: UUID, line_id: UUID, slug: str, payee: str, asset: str, amount: int) -> Transfer:
    """The programme pays the centre or the buyer."""
    return _move(
        "disburse_line",
        claim_id,
        line_id,
        debit=accounts.payable(slug, asset),
        credit=accounts.disbursed(slug, payee, asset),
        amount=amount,
    )


def refuse_line(claim_id: UUID, line_id: UUID, slug: str, pool: Account, amount: int) -> Transfer:
    """A line that will never be paid: its money goes back to the pool of its voucher's cycle."""
    claimed = accounts.claimed(slug, pool.asset)
    return _move("refuse_line", claim_id, line_id, debit=claimed, credit=pool, amount=amount)


def advance_reserve(slug: str, authority: str, reference: str, reserve: Account, amount: int) -> Transfer:
    """The authority advances money to the centre before anything was claimed."""
    funds = accounts.authority_funds(authority, reserve.asset)
    return _move("advance_reserve", slug, reference, debit=funds, credit=reserve, amount=amount)


def draw_reserve(claim_id: UUID, slug: str, asset: str, amount: int) -> Transfer:
    """A disbursement uses the advanced money first, so that only the rest goes through the bank."""
    return _move(
        "draw_reserve",
        claim_id,
        debit=accounts.reserve(slug, asset),
        credit=accounts.reserve_used(slug, asset),
        amount=amount,
    )


def refill_reserve(claim_id: UUID, line_id: UUID, slug: str, asset: str, amount: int) -> Transfer:
    """A line that the reserve had paid is taken back, so the reserve is there again."""
    return _move(
        "refill_reserve",
        claim_id,
        line_id,
        debit=accounts.reserve_used(slug, asset),
        credit=accounts.reserve(slug, asset),
        amount=amount,
    )
