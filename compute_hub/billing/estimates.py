"""What a job would cost before it is submitted: for the limit it asks for, and for what it will probably run.

The job is queued in a transaction that its caller rolls back; rating, vouchers and the scheduler's forecast then
answer as they would for a real one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from compute_hub.billing.ahead import charge_facts, hardware_of
from compute_hub.billing.domain.days import Span, month_of
from compute_hub.billing.domain.rating import Priced, Usage, cost_micros, rate
from compute_hub.billing.rates import NoRate, tariff_of, traits_of
from compute_hub.billing.tables import TenantVolumeRow
from kernel.clock import from_unix_ms, unix_ms
from kernel.errors import Unfunded
from scheduler.controller.forecasting import explain_job
from scheduler.controller.predicting import predicted_ms
from scheduler.tables import JobRow
from vouchers.domain.explanation import Coverage
from vouchers.domain.facts import CentreFacts
from vouchers.redemption import quote
from vouchers.tables import Voucher

_ENDING_MAX: Final = 32
"""Vouchers warned about at once."""


@dataclass(frozen=True)
class Cost:
    """What a duration on a model costs and who pays it; `refusal` says why nobody would."""

    model: str
    duration_ms: int
    cost_micros: int
    prices: tuple[Priced, ...]
    coverage: Coverage | None
    refusal: str


@dataclass(frozen=True)
class Estimate:
    """The answer, on the dearest of the models the job accepts; `others` are the limits' costs on the rest."""

    limit: Cost
    predicted: Cost
    others: tuple[Cost, ...]
    starts_at: datetime | None
    start_sentence: str
    warnings: tuple[str, ...]


def estimate_job(
    session: Session,
    job: JobRow,
    voucher_ids: Sequence[UUID] | None,
    *,
    project: str | None = None,
    centre: CentreFacts,
    at: datetime,
) -> Estimate:
    """Estimate a job that was just queued in this transaction.

    Raises:
        NoRate: a model it accepts has no price.
        VoucherNotFound, VoucherEnded, VoucherSpent, VoucherNotApplicable: about a named voucher.
    """
    expected_ms = predicted_ms(session, job)
    found = explain_job(session, job, at)
    starts_ms = unix_ms(at if found.start_estimate is None else found.start_estimate)
    rated = [
        _rate(session, job, model, Span(starts_ms, starts_ms + job.time_limit_ms), at) for model in job.models
    ]
    dearest, *others = sorted(rated, key=lambda cost: (-cost.cost_micros, cost.model))
    shorter = _rate(session, job, dearest.model, Span(starts_ms, starts_ms + expected_ms), at)
    ending = _ending(session, job, voucher_ids, from_unix_ms(starts_ms + job.time_limit_ms))
    likely = from_unix_ms(starts_ms + expected_ms)
    return Estimate(
        limit=_cover(session, job, dearest, voucher_ids, project, ending, starts_ms, centre, at),
        predicted=_cover(session, job, shorter, voucher_ids, project, ending, starts_ms, centre, at),
        others=tuple(others),
        starts_at=found.start_estimate,
        start_sentence=_start_words(found.start_estimate, found.sentence, at),
        warnings=tuple(_warning(voucher, likely) for voucher in ending),
    )


def _start_words(starts_at: datetime | None, why: str, at: datetime) -> str:
    if starts_at is None:
        return f"no start comes into sight: {why}"
    if unix_ms(starts_at) <= unix_ms(at):
        return "it would start at once"
    return f"it would wait: {why}"


def _rate(session: Session, job: JobRow, model: str, span: Span, at: datetime) -> Cost:
    slots = job.node_count * job.devices_per_node * job.slots_milli
    month = month_of(span.start_ms)
    volume = session.get(TenantVolumeRow, (job.tenant_id, model, month))
    pieces = rate(
        [Usage(span, slots * span.duration_ms)],
        tariff_of(session, job.tenant_id, model),
        traits_of(job),
        span.start_ms,
        0 if volume is None else volume.slot_ms,
    )
    if pieces is None:
        raise NoRate(model=model, at=at.isoformat())
    cost = cost_micros(sum(piece.units for piece in pieces))
    return Cost(model, span.duration_ms, cost, tuple(pieces), None, "")


def _cover(
    session: Session,
    job: JobRow,
    cost: Cost,
    voucher_ids: Sequence[UUID] | None,
    project: str | None,
    ending: Sequence[Voucher],
    starts_ms: int,
    centre: CentreFacts,
    at: datetime,
) -> Cost:
    """Add who would pay, from what is available now and lasts until then."""
    if cost.cost_micros == 0:
        return replace(cost, coverage=Coverage(0, ()))
    until = from_unix_ms(starts_ms + cost.duration_ms)
    gone = {voucher.id for voucher in ending if voucher.use_by_at < until}
    lasting = None if voucher_ids is None else [voucher for voucher in voucher_ids if voucher not in gone]
    slots = job.node_count * job.devices_per_node * job.slots_milli
    hardware = hardware_of(session, [cost.model])
    facts = charge_facts(centre, job, cost.model, hardware, slots * cost.duration_ms, project)
    try:
        coverage = quote(session, job.tenant_id, cost.cost_micros, facts, lasting, at, usage_until=until)
    except Unfunded as unfunded:
        return replace(cost, refusal=str(unfunded))
    return replace(cost, coverage=coverage)


def _ending(
    session: Session, job: JobRow, voucher_ids: Sequence[UUID] | None, ends: datetime
) -> Sequence[Voucher]:
    """The vouchers it may use whose last usage lies before its limit is reached, soonest first."""
    query = select(Voucher).where(
        Voucher.enterprise_id == job.tenant_id, Voucher.state == "active", Voucher.use_by_at < ends
    )
    if voucher_ids is not None:
        query = query.where(Voucher.id.in_(voucher_ids))
    return session.scalars(query.order_by(Voucher.use_by_at, Voucher.id).limit(_ENDING_MAX)).all()


def _warning(voucher: Voucher, likely: datetime) -> str:
    when = (
        "before the job would probably end"
        if voucher.use_by_at < likely
        else "before the time limit is reached"
    )
    return (
        f"voucher {voucher.number} ends at {voucher.use_by_at.isoformat()}, {when}; it pays only for what is used "
        "until then, so this estimate does without it where it would end first"
    )
