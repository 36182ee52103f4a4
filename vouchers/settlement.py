"""From claim to money: automatic checks, first review, final approval, disbursement, reconciliation.

First review and final approval are two people's. Lines are decided one by one: approved, refused for good, or
disputed, which lets them be claimed again with better evidence. The reserve fund is used up before the bank is.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from kernel.ids import derived_id
from kernel.money import MICROS_MAX
from ledger.posting import post_all
from vouchers import accounts, movements
from vouchers.claims import claim_of, given_back, lines_of, lock_terms, record_step
from vouchers.domain.eligibility import FAIL, LOOK, PASS, Check
from vouchers.domain.sampling import draw
from vouchers.domain.segments import fill_in_order
from vouchers.enterprises import enterprise_facts, relation
from vouchers.errors import (
    AmountRefused,
    ClaimLineNotFound,
    ClaimPaid,
    ClaimState,
    NoReserve,
    ReconciliationDiffers,
    SamePerson,
)
from vouchers.programmes import lock_programme
from vouchers.tables import Claim, ClaimLine, CoverageLine, CoveredCharge, ReserveAdvance, Voucher

UNDER_REVIEW = ("submitted", "checked", "reviewed")


def check_claim(session: Session, claim_id: UUID, *, centre_code: str, at: datetime) -> tuple[Check, ...]:
    """Run the automatic checks; a claim without a failure goes on to first review, one with a failure waits again.

    Args:
        session: whose transaction this belongs to.
        claim_id: a submitted claim.
        centre_code: the centre's credit code, for the relation between centre and tenants.
        at: now.
    """
    claim = _locked(session, claim_id, "automatic checks", "submitted", "checked")
    lines = lines_of(session, claim_id)
    found = (
        _adds_up(claim, lines),
        _not_taken_back(session, claim_id),
        _tenants_unrelated(session, claim_id, centre_code),
        _tenants_honest(session, claim_id),
        _vouchers_stand(session, claim_id),
    )
    facts = {check.rule: {"verdict": check.verdict, **check.facts} for check in found}
    claim.state = "submitted" if any(check.verdict == FAIL for check in found) else "checked"
    session.flush()
    record_step(session, claim_id, "automatic checks", "hub", facts, at)
    return found


def draw_sample(
    session: Session, claim_id: UUID, *, seed: str, count: int, by: str, at: datetime
) -> list[ClaimLine]:
    """Draw lines for inspection from a seed kept with the claim; drawing again returns the first draw."""
    claim = _locked(session, claim_id, "sampling", *UNDER_REVIEW)
    lines = lines_of(session, claim_id)
    if claim.sample_seed is None:
        chosen = set(draw(seed, [str(line.coverage_line_id) for line in lines], count))
        for line in lines:
            line.sampled = str(line.coverage_line_id) in chosen
        claim.sample_seed = seed
        session.flush()
        record_step(session, claim_id, "sampled", by, {"seed": seed, "count": len(chosen)}, at)
    return [line for line in lines if line.sampled]


def review_claim(session: Session, claim_id: UUID, *, by: str, at: datetime) -> None:
    """First review passes the claim on to final approval."""
    claim = _locked(session, claim_id, "first review", "checked", "reviewed")
    if claim.state == "reviewed" and claim.first_reviewer == by:
        return
    _need(claim, "first review", "checked")
    claim.state, claim.first_reviewer = "reviewed", by
    session.flush()
    record_step(session, claim_id, "first review", by, {}, at)


def dispute_line(session: Session, claim_id: UUID, line: int, *, reason: str, by: str, at: datetime) -> None:
    """Take a line out of a claim under review; it may be claimed again."""
    _decide_line(session, claim_id, line, "disputed", reason, by, at)


def refuse_line(session: Session, claim_id: UUID, line: int, *, reason: str, by: str, at: datetime) -> None:
    """Refuse to pay a line, for good; its money goes back to the pool of its voucher's cycle."""
    _decide_line(session, claim_id, line, "rejected", reason, by, at)


def approve_claim(session: Session, claim_id: UUID, *, by: str, at: datetime) -> int:
    """Another person approves what is left of the claim; the programme now owes it.

    Returns:
        The approved amount.

    Raises:
        SamePerson: the approver did the first review.
    """
    claim = _locked(session, claim_id, "final approval", "reviewed", "approved")
    if claim.state == "approved" and claim.approver == by and claim.approved is not None:
        return claim.approved
    _need(claim, "final approval", "reviewed")
    if claim.first_reviewer == by:
        raise SamePerson(by=by)
    approved = [line for line in lines_of(session, claim_id) if line.state == "claimed"]
    for line in approved:
        line.state = "approved"
    amount = sum(line.amount for line in approved)
    claim.state, claim.approver, claim.approved = "approved", by, amount
    session.flush()
    accounts.ensure(session, [accounts.payable(claim.slug, claim.asset)], at)
    transfers = [
        movements.approve_line(claim_id, line.coverage_line_id, claim.slug, claim.asset, line.amount)
        for line in approved
    ]
    post_all(session, transfers, at=at)
    record_step(session, claim_id, "final approval", by, {"approved": amount}, at)
    return amount


def reject_claim(session: Session, claim_id: UUID, *, reason: str, by: str, at: datetime) -> None:
    """Send the whole claim back; each of its lines may be claimed again."""
    claim = _locked(session, claim_id, "rejection", *UNDER_REVIEW)
    standing = [line for line in lines_of(session, claim_id) if line.state == "claimed"]
    _take_out(session, claim, standing, "disputed", reason, at)
    claim.state = "rejected"
    session.flush()
    record_step(session, claim_id, "rejected", by, {"reason": reason}, at)


def disburse_claim(session: Session, claim_id: UUID, *, bank_reference: str, by: str, at: datetime) -> int:
    """Pay the lines that stand approved: in order out of the reserve fund while it lasts, then through the bank.

    Returns:
        What goes through the bank.

    Raises:
        ClaimPaid: another bank transfer has paid it.
    """
    # Another claim of the programme may be paid out of its reserve just now.
    lock_programme(session, claim_of(session, claim_id).slug)
    claim = _locked(session, claim_id, "disbursement", "approved", "disbursed", "reconciled")
    if claim.state != "approved":
        if claim.bank_reference != bank_reference:
            raise ClaimPaid(claim=claim_id, reference=claim.bank_reference, other=bank_reference)
        return _through_bank(claim)
    lines = [line for line in lines_of(session, claim_id) if line.state == "approved"]
    due = sum(line.amount for line in lines)
    payee = accounts.CENTRE if claim.claimant_id is None else str(claim.claimant_id)
    reserve, used = accounts.reserve(claim.slug, claim.asset), accounts.reserve_used(claim.slug, claim.asset)
    left = accounts.available(session, [reserve])[reserve.id] if payee == accounts.CENTRE else 0
    drawn, _ = fill_in_order(left, [line.amount for line in lines])
    for line, part in zip(lines, drawn, strict=True):
        line.from_reserve = part
    accounts.ensure(session, [accounts.disbursed(claim.slug, payee, claim.asset), used], at)
    transfers = [
        movements.disburse_line(claim_id, line.coverage_line_id, claim.slug, payee, claim.asset, line.amount)
        for line in lines
    ]
    if sum(drawn):
        transfers.append(movements.draw_reserve(claim_id, claim.slug, claim.asset, sum(drawn)))
    claim.state, claim.bank_reference = "disbursed", bank_reference
    claim.disbursed, claim.from_reserve = due, sum(drawn)
    session.flush()
    post_all(session, transfers, at=at)
    paid = {"bank": _through_bank(claim), "reserve": sum(drawn)}
    record_step(session, claim_id, "disbursed", by, paid, at)
    return _through_bank(claim)


def reconcile_claim(
    session: Session, claim_id: UUID, *, received: int, statement: str, by: str, at: datetime
) -> None:
    """Hold the bank statement against what was disbursed through the bank.

    Raises:
        ReconciliationDiffers: the statement shows another amount; the claim stays open.
    """
    claim = _locked(session, claim_id, "reconciliation", "disbursed", "reconciled")
    expected = _through_bank(claim)
    if received != expected:
        raise ReconciliationDiffers(claim=claim_id, expected=expected, received=received)
    if claim.state == "reconciled":
        return
    claim.state = "reconciled"
    session.flush()
    record_step(session, claim_id, "reconciled", by, {"statement": statement, "received": received}, at)


def advance_reserve(
    session: Session, programme: str, amount: int, *, reference: str, by: str, at: datetime
) -> None:
    """Advance money to the centre, up to the reserve fund the programme provides for.

    Raises:
        NoReserve: the programme has none, or it would be exceeded.
    """
    if type(amount) is not int or not 1 <= amount <= MICROS_MAX:
        raise AmountRefused(field="amount", value=amount)
    terms = lock_terms(session, programme)
    reserve = accounts.reserve(programme, terms.asset)
    provided = 0 if terms.reserve is None else terms.reserve.amount
    advance_id = derived_id("advance", programme, reference)
    known = session.get(ReserveAdvance, advance_id)
    if known is None:
        left = accounts.available(session, [reserve])[reserve.id]
        if left + amount > provided:
            raise NoReserve(programme=programme, provided=provided, left=left, required=amount)
        session.add(
            ReserveAdvance(
                id=advance_id,
                slug=programme,
                reference=reference,
                amount=amount,
                advanced_by=by,
                advanced_at=at,
            )
        )
        session.flush()
    accounts.ensure(session, [reserve, accounts.authority_funds(terms.authority, terms.asset)], at)
    transfer = movements.advance_reserve(programme, terms.authority, reference, reserve, amount)
    post_all(session, [transfer], at=at)


def _through_bank(claim: Claim) -> int:
    return (claim.disbursed or 0) - (claim.from_reserve or 0)


def _decide_line(
    session: Session, claim_id: UUID, number: int, state: str, reason: str, by: str, at: datetime
) -> None:
    claim = _locked(session, claim_id, f"{state} line", *UNDER_REVIEW)
    line = session.get(ClaimLine, (claim_id, number))
    if line is None:
        raise ClaimLineNotFound(claim=claim_id, line=number)
    if line.state == state:
        return
    if line.state != "claimed":
        raise ClaimState(claim=claim_id, state=line.state, step=f"{state} line", needed="claimed")
    _take_out(session, claim, [line], state, reason, at)
    record_step(session, claim_id, f"line {state}", by, {"line": number, "reason": reason}, at)


def _take_out(
    session: Session, claim: Claim, lines: Sequence[ClaimLine], state: str, reason: str, at: datetime
) -> None:
    """Mark lines disputed or rejected and move their money back to where it can be claimed, or to the pool."""
    transfers = []
    for line in lines:
        line.state, line.reason = state, reason
        coverage = session.get_one(CoverageLine, line.coverage_line_id)
        charge = session.get_one(CoveredCharge, coverage.charge_id)
        voucher = session.get_one(Voucher, coverage.voucher_id)
        pool = accounts.pool(voucher.slug, voucher.cycle, voucher.asset)
        transfers.append(
            movements.return_line(claim.id, coverage.id, claim.slug, charge.tenant_id, claim.asset, line.amount)
            if state == "disputed"
            else movements.refuse_line(claim.id, coverage.id, claim.slug, pool, line.amount)
        )
    session.flush()
    post_all(session, transfers, at=at)


def _adds_up(claim: Claim, lines: Sequence[ClaimLine]) -> Check:
    total = sum(line.amount for line in lines)
    verdict = PASS if total == claim.amount else FAIL
    return Check("adds_up", verdict, "", {"lines": len(lines), "sum": total, "claimed": claim.amount})


def _not_taken_back(session: Session, claim_id: UUID) -> Check:
    """A line claims what its coverage took less what was given back since."""
    rows = session.scalars(
        select(ClaimLine.line)
        .join(CoverageLine, CoverageLine.id == ClaimLine.coverage_line_id)
        .where(
            ClaimLine.claim_id == claim_id,
            ClaimLine.state == "claimed",
            ClaimLine.amount != CoverageLine.quantity - given_back(),
        )
        .order_by(ClaimLine.line)
    ).all()
    return Check("not_taken_back", FAIL if rows else PASS, "", {"lines": list(rows)})


def _tenants_unrelated(session: Session, claim_id: UUID, centre_code: str) -> Check:
    paths: dict[str, Any] = {}
    for tenant_id in _tenants(session, claim_id):
        code = enterprise_facts(session, tenant_id).credit_code
        path = relation(session, code, centre_code)
        if path:
            paths[code] = list(path)
    return Check("tenants_unrelated", LOOK if paths else PASS, "", {"paths": paths})


def _tenants_honest(session: Session, claim_id: UUID) -> Check:
    facts = [enterprise_facts(session, tenant_id) for tenant_id in _tenants(session, claim_id)]
    listed = sorted(entry.credit_code for entry in facts if entry.dishonest)
    return Check("tenants_honest", LOOK if listed else PASS, "", {"dishonest": listed})


def _vouchers_stand(session: Session, claim_id: UUID) -> Check:
    numbers = session.scalars(
        select(Voucher.number)
        .join(CoverageLine, CoverageLine.voucher_id == Voucher.id)
        .join(ClaimLine, ClaimLine.coverage_line_id == CoverageLine.id)
        .where(ClaimLine.claim_id == claim_id, Voucher.state == "recalled")
        .distinct()
        .order_by(Voucher.number)
    ).all()
    return Check("vouchers_stand", LOOK if numbers else PASS, "", {"recalled": list(numbers)})


def _tenants(session: Session, claim_id: UUID) -> Sequence[UUID]:
    return session.scalars(
        select(CoveredCharge.tenant_id)
        .join(CoverageLine, CoverageLine.charge_id == CoveredCharge.charge_id)
        .join(ClaimLine, ClaimLine.coverage_line_id == CoverageLine.id)
        .where(ClaimLine.claim_id == claim_id)
        .distinct()
        .order_by(CoveredCharge.tenant_id)
    ).all()


def _locked(session: Session, claim_id: UUID, step: str, *needed: str) -> Claim:
    claim = claim_of(session, claim_id)
    session.refresh(claim, with_for_update=True)
    _need(claim, step, *needed)
    return claim


def _need(claim: Claim, step: str, *needed: str) -> None:
    if claim.state not in needed:
        raise ClaimState(claim=claim.id, state=claim.state, step=step, needed=" or ".join(needed))
