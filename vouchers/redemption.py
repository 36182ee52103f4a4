"""Redemption: quote, hold, extend, release. What a job may cost is set aside before it runs.

A job's first hold is segment 0 and every extension is one more. A segment fixes its vouchers and their terms,
so that its charges follow from it alone (see `domain.segments`); capturing them is `capturing`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import func, literal, select
from sqlalchemy.orm import Session

from kernel.money import MICROS_MAX
from ledger.domain.accounts import Account
from ledger.domain.transfers import Transfer
from ledger.posting import post_all
from ledger.reading import due_holds
from vouchers import accounts, movements
from vouchers.domain.coverage import Candidate, Plan, plan_coverage
from vouchers.domain.explanation import Coverage, own_line, rounding_line, voucher_line
from vouchers.domain.facts import ChargeFacts
from vouchers.domain.segments import Segment, fill_in_order
from vouchers.enterprises import lock_payers
from vouchers.errors import (
    BudgetSpent,
    CostOutOfRange,
    EnterpriseNotFound,
    HoldDiffers,
    HoldNotFound,
    HoldReleased,
    NoFunding,
)
from vouchers.funding import Funding, OwnSource, VoucherSource, find_funding
from vouchers.tables import HoldLine, HoldSegment, JobHold, Voucher
from vouchers.wallets import payer_of

HOLD_LIFE: Final = timedelta(days=366)
"""A hold ends with its job; this far end only bounds how late usage may be reported."""


@dataclass(frozen=True)
class _Prepared:
    """A segment that could be placed: its division, the sources behind it and what each would set aside."""

    segment: Segment
    vouchers: tuple[VoucherSource, ...]
    own: tuple[OwnSource, ...]
    budget: Account | None
    coverage: Coverage


def quote(
    session: Session,
    tenant_id: UUID,
    cost_micros: int,
    facts: ChargeFacts,
    voucher_ids: Sequence[UUID] | None,
    at: datetime,
    *,
    usage_until: datetime | None = None,
) -> Coverage:
    """Who would pay a cost now. Nothing is set aside.

    Args:
        session: whose transaction this belongs to.
        tenant_id: whose usage it is.
        cost_micros: what it costs.
        facts: what is used, with its card time.
        voucher_ids: the vouchers to use; None for the cheapest choice, empty for none.
        at: now.
        usage_until: when the usage will have ended; a voucher that ends earlier does not pay.

    Raises:
        NoFunding: vouchers and the tenant's own money do not cover it.
        BudgetSpent: the project's budget does not.
        VoucherNotFound, VoucherSpent, VoucherExpired, VoucherEnded, VoucherNotApplicable: about a named
        voucher. CostOutOfRange, TooManyProgrammes.
    """
    check_cost(cost_micros, facts)
    payer_id = payer_of(session, tenant_id)
    payers = [tenant_id] if payer_id is None else [tenant_id, payer_id]
    funding = find_funding(session, payers, facts, voucher_ids, at, usage_until or at)
    return _prepare(funding, cost_micros, facts, 0).coverage


def place_hold(
    session: Session,
    job_id: UUID,
    tenant_id: UUID,
    cost_micros: int,
    facts: ChargeFacts,
    voucher_ids: Sequence[UUID] | None,
    at: datetime,
    *,
    usage_until: datetime | None = None,
) -> Coverage:
    """Set aside what the first stretch of a job may cost. Placing it again returns the first result.

    Arguments and refusals are those of `quote`; besides:

    Raises:
        HoldDiffers: the job has a hold for other content.
        HoldReleased: its hold was released.
    """
    check_cost(cost_micros, facts)
    payers = _tenant_first(tenant_id, lock_payers(session, literal(tenant_id)))
    job = session.get(JobHold, job_id, populate_existing=True)
    if job is None:
        job = JobHold(job_id=job_id, tenant_id=tenant_id, opened_at=at, state="open")
        session.add(job)
        session.flush()
        return _place(session, job, payers, 0, cost_micros, facts, voucher_ids, at, usage_until)
    _check_same(session, job, tenant_id, cost_micros, facts, voucher_ids)
    return held_coverage(session, job_id, segment=0)


def extend_hold(
    session: Session,
    job_id: UUID,
    cost_micros: int,
    facts: ChargeFacts,
    at: datetime,
    *,
    voucher_ids: Sequence[UUID] | None = None,
    usage_until: datetime | None = None,
) -> Coverage:
    """Set more aside for a job, so that `cost_micros` in all are set aside since it began.

    What is already set aside counts, so repeating an extension does nothing. A running job goes on without a
    named voucher that has ended or is spent. `facts.card_ms` is the card time
    in all as well.

    Returns:
        Who pays the added stretch; an empty coverage if nothing had to be added.

    Raises:
        HoldNotFound, HoldReleased, and the refusals of `quote`.
    """
    check_cost(cost_micros, facts)
    job, payers = _locked(session, job_id)
    count, cost, card_ms = session.execute(
        select(
            func.count(),
            func.coalesce(func.sum(HoldSegment.cost_micros), 0),
            func.coalesce(func.sum(HoldSegment.card_ms), 0),
        ).where(HoldSegment.job_id == job_id)
    ).one()
    added = cost_micros - int(cost)
    if added <= 0:
        return Coverage(0, ())
    more = ChargeFacts(**(facts.kind() | {"card_ms": max(facts.card_ms - int(card_ms), 0)}))
    return _place(session, job, payers, count, added, more, voucher_ids, at, usage_until)


def release_hold(session: Session, job_id: UUID, at: datetime) -> None:
    """Give back everything that was set aside for a job and not captured. Releasing it again does nothing.

    Raises:
        HoldNotFound: nothing was set aside.
    """
    job = locked_job(session, job_id, released=True)
    if job.state == "released":
        return
    job.state = "released"
    session.flush()
    transfers = []
    for line in hold_lines(session, job_id):
        transfers.append(movements.release_funds(line.transfer_id))
        if line.voucher_id is not None and line.held > line.captured:
            transfers += forward_to_pool(
                session, line.voucher_id, line.account_id, line.held - line.captured, line.transfer_id
            )
    post_all(session, transfers, at=at)


def held_facts(session: Session, job_id: UUID, model: str) -> ChargeFacts | None:
    """What a job's first hold for a model was placed for, without a quantity; None if there is none."""
    facts = session.scalars(
        select(HoldSegment.facts)
        .where(HoldSegment.job_id == job_id, HoldSegment.facts["model"].astext == model)
        .order_by(HoldSegment.segment)
        .limit(1)
    ).one_or_none()
    return None if facts is None else ChargeFacts(**facts)


def held_coverage(session: Session, job_id: UUID, *, segment: int) -> Coverage:
    """Who pays the cost of one segment of a job, as it was set aside. Raises HoldNotFound."""
    row = session.get(HoldSegment, (job_id, segment))
    if row is None:
        raise HoldNotFound(job=job_id)
    lines = hold_lines(session, job_id, segment)
    own = [line for line in lines if line.source in {"prepaid", "credit"}]
    division = Segment(read_plan(row), tuple(line.held for line in own))
    named = [(line.source, str(line.payer_id)) for line in own]
    return segment_coverage(division, named, row.cost_micros, row.card_ms, segment)


def segment_coverage(
    division: Segment, own: Sequence[tuple[str, str]], cost_micros: int, card_ms: int, segment: int
) -> Coverage:
    """The coverage of the first so many micro-yuan of a segment; `own` names source and payer in order."""
    parts = division.parts(cost_micros, card_ms)
    lines = [
        voucher_line(
            division.plan,
            share,
            share.exact,
            cost_micros,
            amount=share.amount_micros,
            quantity=share.quantity,
            segment=segment,
        )
        for share in parts.shares
        if share.amount_micros or share.quantity
    ]
    lines += [
        own_line(source, payer, amount, segment)
        for (source, payer), amount in zip(own, parts.own, strict=True)
        if amount
    ]
    if parts.rounding:
        lines.append(rounding_line(parts.rounding, segment))
    return Coverage(cost_micros, tuple(lines))


def lapse_holds(session: Session, at: datetime, *, limit: int = 100) -> list[UUID]:
    """Release jobs whose holds have come to their far end. Returns the jobs."""
    due = [hold.id for hold in due_holds(session, at, limit=limit)]
    jobs = session.execute(
        select(JobHold.tenant_id, JobHold.job_id)
        .join(HoldLine, HoldLine.job_id == JobHold.job_id)
        .where(HoldLine.transfer_id.in_(due), JobHold.state == "open")
        .distinct()
        .order_by(JobHold.tenant_id, JobHold.job_id)
    ).all()
    for _, job_id in jobs:
        release_hold(session, job_id, at)
    return [job_id for _, job_id in jobs]


def forward_to_pool(
    session: Session, voucher_id: UUID, account_id: UUID, amount: int, cause: UUID
) -> list[Transfer]:
    """What comes back to a voucher that has ended goes on to the pool of the cycle it came from."""
    voucher = session.get_one(Voucher, voucher_id, populate_existing=True)
    if voucher.state == "active":
        return []
    pool = accounts.pool(voucher.slug, voucher.cycle, voucher.asset)
    return [movements.return_freed(cause, account_id, pool, amount)]


def read_plan(row: HoldSegment) -> Plan:
    """The plan a segment was placed by."""
    return Plan(row.cost_micros, row.card_ms, tuple(Candidate.from_json(stored) for stored in row.plan))


def locked_job(session: Session, job_id: UUID, *, released: bool = False) -> JobHold:
    """A job's hold with its tenant locked.

    Raises:
        HoldNotFound: nothing was set aside for it.
        HoldReleased: it was released, unless `released` ones are wanted too.
    """
    job, _ = _locked(session, job_id, released=released)
    return job


def hold_lines(session: Session, job_id: UUID, segment: int | None = None) -> list[HoldLine]:
    """What each source set aside, of one segment or of all, in order."""
    query = select(HoldLine).where(HoldLine.job_id == job_id).order_by(HoldLine.segment, HoldLine.line)
    if segment is not None:
        query = query.where(HoldLine.segment == segment)
    return list(session.scalars(query))


def _place(
    session: Session,
    job: JobHold,
    payers: Sequence[UUID],
    number: int,
    cost_micros: int,
    facts: ChargeFacts,
    voucher_ids: Sequence[UUID] | None,
    at: datetime,
    usage_until: datetime | None,
) -> Coverage:
    funding = find_funding(session, payers, facts, voucher_ids, at, usage_until or at, insist=number == 0)
    prepared = _prepare(funding, cost_micros, facts, number)
    ends = [voucher.use_by_at for voucher in prepared.vouchers]
    session.add(
        HoldSegment(
            job_id=job.job_id,
            segment=number,
            cost_micros=cost_micros,
            card_ms=facts.card_ms,
            facts=facts.kind(),
            asked_vouchers=None if voucher_ids is None else sorted(map(str, voucher_ids)),
            plan=[candidate.to_json() for candidate in prepared.segment.plan.candidates],
            serves_until=min(ends, default=None),
            placed_at=at,
            captured_micros=0,
            captured_ms=0,
        )
    )
    session.flush()
    lines, transfers, destinations = _hold_lines(
        job, number, prepared, cost_micros, facts.card_ms, at + HOLD_LIFE
    )
    accounts.ensure(session, destinations, at, funding.known)
    session.add_all(lines)
    session.flush()
    post_all(session, transfers, at=at)
    return prepared.coverage


def _prepare(funding: Funding, cost_micros: int, facts: ChargeFacts, number: int) -> _Prepared:
    """Divide a cost over what could pay it. Raises NoFunding, BudgetSpent."""
    plan = plan_coverage(cost_micros, facts.card_ms, [source.candidate for source in funding.vouchers])
    by_voucher = {source.candidate.voucher: source for source in funding.vouchers}
    required = Segment(plan).own_micros(cost_micros)
    taken, short = fill_in_order(required, [source.available for source in funding.own])
    if short:
        raise NoFunding(required=required, available=required - short, short=short)
    if funding.budget is not None and funding.budget[1] < required:
        raise BudgetSpent(project=facts.project, available=funding.budget[1], required=required)
    own = tuple(source for source, amount in zip(funding.own, taken, strict=True) if amount)
    division = Segment(plan, tuple(amount for amount in taken if amount))
    return _Prepared(
        segment=division,
        vouchers=tuple(by_voucher[candidate.voucher] for candidate in plan.candidates),
        own=own,
        budget=None if funding.budget is None or not required else funding.budget[0],
        coverage=segment_coverage(
            division,
            [(source.source, str(source.payer_id)) for source in own],
            cost_micros,
            facts.card_ms,
            number,
        ),
    )


def _hold_lines(
    job: JobHold, number: int, prepared: _Prepared, cost_micros: int, card_ms: int, lapses_at: datetime
) -> tuple[list[HoldLine], list[Transfer], list[Account]]:
    parts = prepared.segment.parts(cost_micros, card_ms)
    revenue = accounts.revenue(job.tenant_id)
    wanted: list[tuple[str, Account, Account, int, dict[str, Any]]] = [
        (
            "voucher",
            source.account,
            accounts.claimable(source.slug, job.tenant_id, source.account.asset),
            share.quantity,
            {"voucher_id": source.voucher_id},
        )
        for source, share in zip(prepared.vouchers, parts.shares, strict=True)
    ]
    wanted += [
        (source.source, source.account, revenue, amount, {"payer_id": source.payer_id})
        for source, amount in zip(prepared.own, parts.own, strict=True)
    ]
    if prepared.budget is not None:
        wanted.append(("budget", prepared.budget, accounts.BUDGET_SPENT, sum(parts.own), {}))
    lines, transfers = [], []
    for line, (source_name, account, destination, amount, names) in enumerate(wanted):
        if amount == 0:
            continue
        transfer = movements.hold_funds((job.job_id, number, line), account.id, destination, amount, lapses_at)
        transfers.append(transfer)
        lines.append(
            HoldLine(
                job_id=job.job_id,
                segment=number,
                line=line,
                source=source_name,
                account_id=account.id,
                held=amount,
                captured=0,
                transfer_id=transfer.id,
                **names,
            )
        )
    return lines, transfers, [destination for _, _, destination, _, _ in wanted]


def _locked(session: Session, job_id: UUID, *, released: bool = False) -> tuple[JobHold, list[UUID]]:
    """A job's hold as it is now, and who pays for it, with the payers locked."""
    tenant = select(JobHold.tenant_id).where(JobHold.job_id == job_id).scalar_subquery()
    locked = lock_payers(session, tenant)
    job = session.get(JobHold, job_id, populate_existing=True)
    if job is None:
        raise HoldNotFound(job=job_id)
    if job.state == "released" and not released:
        raise HoldReleased(job=job_id)
    return job, _tenant_first(job.tenant_id, locked)


def _tenant_first(tenant_id: UUID, locked: Sequence[UUID]) -> list[UUID]:
    if tenant_id not in locked:
        raise EnterpriseNotFound(enterprise=tenant_id)
    return [tenant_id, *(payer for payer in locked if payer != tenant_id)]


def check_cost(cost_micros: int, facts: ChargeFacts) -> None:
    """Refuse a cost or card time that no job can have. Raises CostOutOfRange."""
    if type(cost_micros) is not int or not 1 <= cost_micros <= MICROS_MAX:
        raise CostOutOfRange(field="cost_micros", value=cost_micros, least=1)
    if type(facts.card_ms) is not int or not 0 <= facts.card_ms <= MICROS_MAX:
        raise CostOutOfRange(field="card_ms", value=facts.card_ms, least=0)


def _check_same(
    session: Session,
    job: JobHold,
    tenant_id: UUID,
    cost_micros: int,
    facts: ChargeFacts,
    voucher_ids: Sequence[UUID] | None,
) -> None:
    first = session.get(HoldSegment, (job.job_id, 0))
    asked = None if voucher_ids is None else sorted(map(str, voucher_ids))
    if (
        first is None
        or job.tenant_id != tenant_id
        or (first.cost_micros, first.card_ms, first.facts) != (cost_micros, facts.card_ms, facts.kind())
        or first.asked_vouchers != asked
    ):
        raise HoldDiffers(job=job.job_id)
    if job.state == "released":
        raise HoldReleased(job=job.job_id)
