"""Redemption of one job: quote, hold, extend, release. What a job may cost is set aside before it runs.

A job's first hold is segment 0 and every extension is one more. A segment fixes its vouchers and their terms,
so that its charges follow from it alone (see `domain.segments`). `holding` places many at once, `capturing` captures.
"""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import bindparam, select
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.orm import Session

from kernel.bulk import among
from kernel.errors import HubError
from kernel.prepared import Prepared
from ledger.domain.transfers import Transfer
from ledger.reading import due_holds
from vouchers import accounts, movements
from vouchers.capturing import give_back_rest, release_rest
from vouchers.domain.coverage import Candidate, Plan
from vouchers.domain.explanation import Coverage
from vouchers.domain.facts import ChargeFacts
from vouchers.domain.segments import Segment
from vouchers.enterprises import lock_payers
from vouchers.errors import HoldDiffers, HoldNotFound, HoldReleased
from vouchers.funding import find_funding
from vouchers.holding import (
    HoldRequest,
    SetAside,
    check_cost,
    place_holds,
    prepare,
    segment_coverage,
    set_aside,
)
from vouchers.means import Wish, gather_means
from vouchers.open_holds import open_holds, write_holds
from vouchers.tables import HoldLine, HoldSegment, JobHold, Voucher
from vouchers.wallets import payer_of

_MODEL: Final = HoldSegment.facts["model"].astext
_HELD_FACTS: Final = Prepared(
    select(HoldSegment.job_id, _MODEL, HoldSegment.facts)
    .where(among(HoldSegment.job_id, bindparam("jobs")))
    .ext(distinct_on(HoldSegment.job_id, _MODEL))
    .order_by(HoldSegment.job_id, _MODEL, HoldSegment.segment)
)


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
    wish = Wish(payers, facts, voucher_ids)
    funding = find_funding(gather_means(session, [wish], at), wish, at, usage_until or at)
    return prepare(funding, cost_micros, facts, 0).coverage


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
    again: bool = False,
    payers: Sequence[UUID] = (),
) -> Coverage:
    """Set aside what the first stretch of a job may cost. Placing it again returns the first result.

    Arguments and refusals are those of `quote`; `again` and `payers` are those of `HoldRequest`. Besides:

    Raises:
        HoldDiffers: the job has a hold for other content.
        HoldReleased: its hold was released.
    """
    until = usage_until or at
    first = HoldRequest(
        job_id, tenant_id, cost_micros, facts, voucher_ids, until, extends=False, again=again, payers=payers
    )
    (outcome,) = place_holds(session, [first], at)
    if isinstance(outcome, HoldDiffers):
        _check_same(session, first)
        return held_coverage(session, job_id, segment=0)
    return _granted(outcome)


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
    tenant_id = session.scalar(select(JobHold.tenant_id).where(JobHold.job_id == job_id))
    if tenant_id is None:
        check_cost(cost_micros, facts)
        raise HoldNotFound(job=job_id)
    more = HoldRequest(job_id, tenant_id, cost_micros, facts, voucher_ids, usage_until or at, extends=True)
    (outcome,) = place_holds(session, [more], at)
    return _granted(outcome)


def release_hold(session: Session, job_id: UUID, at: datetime) -> None:
    """Give back everything that was set aside for a job and not captured. Releasing it again does nothing.

    Raises:
        HoldNotFound: nothing was set aside.
    """
    tenant_id = session.scalar(select(JobHold.tenant_id).where(JobHold.job_id == job_id))
    if tenant_id is None:
        raise HoldNotFound(job=job_id)
    lock_payers(session, [tenant_id])
    holds = open_holds(session, (), releasing=[job_id])
    release_rest(holds, job_id)
    write_holds(session, holds, at)


def give_back_holds(session: Session, job_ids: Collection[UUID], at: datetime) -> dict[UUID, SetAside]:
    """Give back what was set aside and not captured for jobs that wait to run again; a next hold goes on from there.

    Their tenants are locked by the caller. A job without a hold is left out.

    Returns:
        By job, what still counts as set aside: all that was captured.
    """
    holds = open_holds(session, (), releasing=job_ids)
    for job_id in holds.jobs:
        give_back_rest(holds, job_id)
    write_holds(session, holds, at)
    return set_aside(session, list(holds.jobs))


def held_facts(session: Session, job_ids: Collection[UUID]) -> dict[tuple[UUID, str], ChargeFacts]:
    """By job and model what the job's first hold for it was placed for, without a quantity."""
    if not job_ids:
        return {}
    rows = _HELD_FACTS(session, jobs=list(job_ids))
    return {(job_id, name): ChargeFacts(**facts) for job_id, name, facts in rows}


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


def lapse_holds(session: Session, at: datetime, *, limit: int = 100) -> list[UUID]:
    """Release jobs whose holds have come to their far end. Returns the jobs."""
    due = [hold.id for hold in due_holds(session, at, limit=limit)]
    if not due:
        return []
    jobs = session.execute(
        select(JobHold.tenant_id, JobHold.job_id)
        .join(HoldLine, HoldLine.job_id == JobHold.job_id)
        .where(among(HoldLine.transfer_id, due), JobHold.state == "open")
        .distinct()
        .order_by(JobHold.tenant_id, JobHold.job_id)
    ).all()
    if not jobs:
        return []
    # All locks in one statement, all money in one posting: nobody who works on several can meet this crosswise.
    lock_payers(session, {tenant_id for tenant_id, _ in jobs})
    holds = open_holds(session, (), releasing=[job_id for _, job_id in jobs])
    for _, job_id in jobs:
        release_rest(holds, job_id)
    write_holds(session, holds, at)
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


def hold_lines(session: Session, job_id: UUID, segment: int) -> list[HoldLine]:
    """What each source set aside for one segment, in order."""
    query = select(HoldLine).where(HoldLine.job_id == job_id, HoldLine.segment == segment)
    return list(session.scalars(query.order_by(HoldLine.line)))


def _granted(outcome: Coverage | HubError) -> Coverage:
    if isinstance(outcome, HubError):
        raise outcome
    return outcome


def _check_same(session: Session, request: HoldRequest) -> None:
    """Refuse to take a job's hold for this one. Raises HoldDiffers, HoldReleased."""
    job = session.get_one(JobHold, request.job_id, populate_existing=True)
    first = session.get_one(HoldSegment, (request.job_id, 0))
    asked = None if request.voucher_ids is None else sorted(map(str, request.voucher_ids))
    facts = request.facts
    if (
        job.tenant_id != request.tenant_id
        or (first.cost_micros, first.card_ms, first.facts) != (request.cost_micros, facts.card_ms, facts.kind())
        or first.asked_vouchers != asked
    ):
        raise HoldDiffers(job=request.job_id)
    if job.state == "released":
        raise HoldReleased(job=request.job_id)
