"""Placing holds: what jobs may cost is set aside before they run, for as many jobs at once as are asked for.

What the tenants have is read once, the jobs are decided one after another in memory, each on what those before it left,
and all that was granted is written and posted together. A job that cannot be paid is refused by itself. The number of
statements does not depend on the number of jobs.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, ParamSpec, TypeVar
from uuid import UUID

from sqlalchemy import bindparam, case, func, select
from sqlalchemy.orm import Session

from kernel import prepared as statements
from kernel.bulk import among, copy_rows
from kernel.errors import HubError
from kernel.money import MICROS_MAX
from ledger.domain.accounts import Account
from ledger.domain.transfers import Transfer
from ledger.posting import post_all
from vouchers import accounts, movements
from vouchers.domain.coverage import plan_coverage
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
from vouchers.means import Means, Wish, gather_means
from vouchers.tables import HoldLine, HoldSegment, JobHold

_P = ParamSpec("_P")
_T = TypeVar("_T")

HOLD_LIFE: Final = timedelta(days=366)
"""A hold ends with its job; this far end only bounds how late usage may be reported."""


@dataclass(frozen=True)
class HoldRequest:
    """What a job may cost in all since it began, of which what is not set aside yet is asked for.

    Args:
        job_id: whose hold it is; it is asked for once in a batch.
        tenant_id: whose usage it is.
        cost_micros: the cost in all.
        facts: what is used, with its card time in all.
        voucher_ids: the vouchers to use; None for the cheapest choice, empty for none.
        usage_until: when the usage will have ended; a voucher that ends earlier does not pay.
        extends: whether the job has a hold, which grows; else this is its first.
        again: whether the usage was paid before and has just been given back: whichever of the named vouchers paid for
            it may do so again, also when it has ended since.
        payers: who paid for it before, the tenant first, with their rows locked by the caller; who pays for the tenant
            now if left out.
    """

    job_id: UUID
    tenant_id: UUID
    cost_micros: int
    facts: ChargeFacts
    voucher_ids: Sequence[UUID] | None
    usage_until: datetime
    extends: bool
    again: bool = False
    payers: Sequence[UUID] = ()


@dataclass(frozen=True)
class Prepared:
    """A segment that could be placed: its division, the sources behind it and what each would set aside."""

    segment: Segment
    vouchers: tuple[VoucherSource, ...]
    own: tuple[OwnSource, ...]
    budget: Account | None
    coverage: Coverage


@dataclass(frozen=True)
class SetAside:
    """What is set aside for a job; of what was given back only what had been captured counts."""

    tenant_id: UUID
    state: str
    segments: int
    cost_micros: int
    card_ms: int


@dataclass
class _Writing:
    """What is to be written for all granted jobs."""

    jobs: list[dict[str, Any]] = field(default_factory=list)
    segments: list[dict[str, Any]] = field(default_factory=list)
    lines: list[dict[str, Any]] = field(default_factory=list)
    transfers: list[Transfer] = field(default_factory=list)
    destinations: list[Account] = field(default_factory=list)


def place_holds(session: Session, requests: Sequence[HoldRequest], at: datetime) -> list[Coverage | HubError]:
    """Set aside what jobs may cost, one after another; who pays each added stretch, or why it is refused.

    An extension of what is set aside already is an empty coverage. A running job goes on without a named voucher
    that has ended or is spent.

    Returns:
        One entry per request, in order. Refusals: EnterpriseNotFound, CostOutOfRange, NoFunding, BudgetSpent,
        TooManyProgrammes, VoucherNotFound, VoucherSpent, VoucherExpired, VoucherEnded, VoucherPastUse,
        VoucherNotApplicable; HoldDiffers where a first hold is there already; HoldNotFound, HoldReleased where one is
        to be extended that is not.

    Raises:
        HubError: the ledger refuses the whole, and nothing of it was written; accounts stay open that were opened.
    """
    payers = lock_payers(session, {request.tenant_id for request in requests})
    so_far = set_aside(session, [request.job_id for request in requests])
    asked = [_attempt(_wish, request, payers, so_far.get(request.job_id)) for request in requests]
    means = gather_means(session, [wish for wish in asked if isinstance(wish, Wish)], at)
    writing = _Writing()
    outcomes = [
        _attempt(_place, request, wish, so_far.get(request.job_id), means, writing, at)
        if isinstance(wish, Wish)
        else wish
        for request, wish in zip(requests, asked, strict=True)
    ]
    _write(session, writing, means.left.keys(), at)
    return outcomes


def prepare(funding: Funding, cost_micros: int, facts: ChargeFacts, number: int) -> Prepared:
    """Divide a cost over what could pay it. Raises NoFunding, BudgetSpent, TooManyProgrammes."""
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
    return Prepared(
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


def check_cost(cost_micros: int, facts: ChargeFacts) -> None:
    """Refuse a cost or card time that no job can have. Raises CostOutOfRange."""
    if type(cost_micros) is not int or not 1 <= cost_micros <= MICROS_MAX:
        raise CostOutOfRange(field="cost_micros", value=cost_micros, least=1)
    if type(facts.card_ms) is not int or not 0 <= facts.card_ms <= MICROS_MAX:
        raise CostOutOfRange(field="card_ms", value=facts.card_ms, least=0)


def set_aside(session: Session, job_ids: Collection[UUID]) -> dict[UUID, SetAside]:
    """By job that has a hold, what is set aside for it."""
    return {job_id: SetAside(*rest) for job_id, *rest in _SET_ASIDE(session, jobs=list(job_ids))}


def _of_segments() -> statements.Prepared:
    """Of a segment that was given back, what was captured counts; of any other all of it."""
    back = HoldSegment.segment < JobHold.given_back
    cost = case((back, HoldSegment.captured_micros), else_=HoldSegment.cost_micros)
    card_ms = case((back, HoldSegment.captured_ms), else_=HoldSegment.card_ms)
    return statements.Prepared(
        select(
            JobHold.job_id,
            JobHold.tenant_id,
            JobHold.state,
            func.count(HoldSegment.segment),
            func.coalesce(func.sum(cost), 0),
            func.coalesce(func.sum(card_ms), 0),
        )
        .outerjoin(HoldSegment, HoldSegment.job_id == JobHold.job_id)
        .where(among(JobHold.job_id, bindparam("jobs")))
        .group_by(JobHold.job_id)
    )


_SET_ASIDE: Final = _of_segments()


def _attempt(decide: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T | HubError:
    try:
        return decide(*args, **kwargs)
    except HubError as refusal:
        return refusal


def _wish(request: HoldRequest, payers: Mapping[UUID, Sequence[UUID]], so_far: SetAside | None) -> Wish:
    """What is to be paid of a request: the usage that is not set aside for yet."""
    check_cost(request.cost_micros, request.facts)
    if request.tenant_id not in payers:
        raise EnterpriseNotFound(enterprise=request.tenant_id)
    if not request.extends and so_far is not None:
        raise HoldDiffers(job=request.job_id)
    if request.extends and (so_far is None or so_far.tenant_id != request.tenant_id):
        raise HoldNotFound(job=request.job_id)
    if so_far is not None and so_far.state == "released":
        raise HoldReleased(job=request.job_id)
    card_ms = request.facts.card_ms - (0 if so_far is None else so_far.card_ms)
    facts = ChargeFacts(**(request.facts.kind() | {"card_ms": max(card_ms, 0)}))
    return Wish(request.payers or payers[request.tenant_id], facts, request.voucher_ids)


def _place(
    request: HoldRequest, wish: Wish, so_far: SetAside | None, means: Means, writing: _Writing, at: datetime
) -> Coverage:
    """Decide one request; what it takes is taken from the means and noted for writing."""
    cost, number = request.cost_micros, 0
    if so_far is not None:
        cost, number = cost - so_far.cost_micros, so_far.segments
    if cost <= 0:
        return Coverage(0, ())
    insist = number == 0 and not request.again
    funding = find_funding(means, wish, at, request.usage_until, insist=insist, ended_too=request.again)
    prepared = prepare(funding, cost, wish.facts, number)
    _note_segment(request, wish, number, cost, prepared, writing, at)
    _note_lines(request, wish, number, cost, prepared, writing, means, at)
    return prepared.coverage


def _note_segment(
    request: HoldRequest,
    wish: Wish,
    number: int,
    cost_micros: int,
    prepared: Prepared,
    writing: _Writing,
    at: datetime,
) -> None:
    if number == 0:
        job = {"job_id": request.job_id, "tenant_id": request.tenant_id, "opened_at": at, "state": "open"}
        writing.jobs.append({**job, "given_back": 0})
    asked = None if request.voucher_ids is None else sorted(map(str, request.voucher_ids))
    writing.segments.append(
        {
            "job_id": request.job_id,
            "segment": number,
            "cost_micros": cost_micros,
            "card_ms": wish.facts.card_ms,
            "facts": wish.facts.kind(),
            "asked_vouchers": asked,
            "plan": [candidate.to_json() for candidate in prepared.segment.plan.candidates],
            "serves_until": min((voucher.use_by_at for voucher in prepared.vouchers), default=None),
            "placed_at": at,
            "captured_micros": 0,
            "captured_ms": 0,
        }
    )


def _note_lines(
    request: HoldRequest,
    wish: Wish,
    number: int,
    cost_micros: int,
    prepared: Prepared,
    writing: _Writing,
    means: Means,
    at: datetime,
) -> None:
    """What each source sets aside, in order; a line's number is its place among all that could."""
    parts = prepared.segment.parts(cost_micros, wish.facts.card_ms)
    tenant_id, revenue = request.tenant_id, accounts.revenue(request.tenant_id)
    wanted: list[tuple[str, Account, Account, int, UUID | None, UUID | None]] = []
    for source, share in zip(prepared.vouchers, parts.shares, strict=True):
        claimable = accounts.claimable(source.slug, tenant_id, source.account.asset)
        wanted.append(("voucher", source.account, claimable, share.quantity, source.voucher_id, None))
    for own, amount in zip(prepared.own, parts.own, strict=True):
        wanted.append((own.source, own.account, revenue, amount, None, own.payer_id))
    if prepared.budget is not None:
        wanted.append(("budget", prepared.budget, accounts.BUDGET_SPENT, sum(parts.own), None, None))
    for line, (name, account, destination, amount, voucher_id, payer_id) in enumerate(wanted):
        writing.destinations.append(destination)
        if amount == 0:
            continue
        cause = (request.job_id, number, line)
        transfer = movements.hold_funds(cause, account.id, destination, amount, at + HOLD_LIFE)
        means.take(account.id, amount)
        writing.transfers.append(transfer)
        writing.lines.append(
            {
                "job_id": request.job_id,
                "segment": number,
                "line": line,
                "source": name,
                "voucher_id": voucher_id,
                "payer_id": payer_id,
                "account_id": account.id,
                "held": amount,
                "captured": 0,
                "transfer_id": transfer.id,
            }
        )


def _write(session: Session, writing: _Writing, known: Collection[UUID], at: datetime) -> None:
    """Posted first: a ledger that refuses has written nothing, and then nothing else is written either."""
    accounts.ensure(session, writing.destinations, at, known)
    post_all(session, writing.transfers, at=at)
    copy_rows(session, JobHold, writing.jobs)
    copy_rows(session, HoldSegment, writing.segments)
    copy_rows(session, HoldLine, writing.lines)
