"""Covering time ahead: how much card time jobs are to be covered for becomes money set aside, for many jobs at once.

The number of statements does not depend on the number of jobs, and a job that cannot be covered is refused by itself.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import bindparam, func, select, text
from sqlalchemy.orm import Session

from compute_hub.billing.domain.days import Span
from compute_hub.billing.domain.rating import hold_micros
from compute_hub.billing.domain.timelines import Tariff
from compute_hub.billing.rates import dearest_in, tariffs_of
from compute_hub.billing.tables import FundedTimeRow, JobFundingRow
from kernel.bulk import among, array, array_of_text
from kernel.clock import unix_ms
from kernel.errors import HubError
from kernel.prepared import Prepared
from scheduler.tables import DeviceRow, JobRow
from vouchers.domain.facts import CentreFacts, ChargeFacts
from vouchers.holding import HoldRequest, place_holds
from vouchers.redemption import held_facts

STEP_MS: Final = 60_000
"""An extension goes at least so far, so that a job that started late is not extended with every tick."""

_DOMESTIC: Final = frozenset({"cambricon", "ascend"})

_VENDORS: Final = Prepared(
    select(DeviceRow.model, func.min(DeviceRow.vendor))
    .where(among(DeviceRow.model, bindparam("models")))
    .group_by(DeviceRow.model)
)

_PAID: Final = (
    select(
        JobFundingRow.job_id,
        JobFundingRow.voucher_ids,
        JobFundingRow.project,
        JobFundingRow.model,
        JobFundingRow.held_slot_ms,
        JobFundingRow.held_micros,
        JobFundingRow.funded_at,
    )
    .where(among(JobFundingRow.job_id, bindparam("jobs")))
    .order_by(JobFundingRow.job_id)
)
_FUNDED: Final = {True: Prepared(_PAID.with_for_update()), False: Prepared(_PAID)}
_TIMED: Final = Prepared(
    select(FundedTimeRow.job_id, FundedTimeRow.model, FundedTimeRow.slot_ms).where(
        among(FundedTimeRow.job_id, bindparam("jobs"))
    )
)

_COVERED: Final = Prepared(
    text("""
    WITH covered AS (
        SELECT * FROM unnest(CAST(:jobs AS uuid[]), CAST(:models AS text[]), CAST(:model_slot_ms AS bigint[]),
                             CAST(:slot_ms AS bigint[]), CAST(:micros AS bigint[]), CAST(:funded AS timestamptz[]))
            AS u(job_id, model, model_slot_ms, slot_ms, micros, funded_at)),
    timed AS (
        INSERT INTO job_funded_time (job_id, model, slot_ms) SELECT job_id, model, model_slot_ms FROM covered
        ON CONFLICT (job_id, model) DO UPDATE SET slot_ms = excluded.slot_ms)
    UPDATE job_funding SET state = 'held', model = covered.model, held_slot_ms = covered.slot_ms,
           held_micros = covered.micros, funded_at = covered.funded_at
      FROM covered WHERE job_funding.job_id = covered.job_id
""")
)


@dataclass(frozen=True)
class Funded:
    """How a job is paid, and what its holds have covered so far."""

    job_id: UUID
    voucher_ids: Sequence[UUID] | None
    project: str | None
    model: str | None
    held_slot_ms: int
    held_micros: int
    funded_at: datetime | None


@dataclass(frozen=True)
class Ahead:
    """Card time of a model that a job is to be covered for in all, which will be used up `ahead_ms` from now."""

    job: JobRow
    funded: Funded
    model: str
    slot_ms: int
    ahead_ms: int


@dataclass(frozen=True)
class _Covered:
    """A job's holds as they will be, if its request is granted."""

    ahead: Ahead
    model_slot_ms: int
    slot_ms: int
    micros: int


def funded_jobs(session: Session, job_ids: Collection[UUID], *, lock: bool) -> dict[UUID, Funded]:
    """How jobs are paid; locked in the order of their ids if they are to be changed."""
    return {row[0]: Funded(*row) for row in _FUNDED[lock](session, jobs=list(job_ids))}


def cover_ahead(
    session: Session, centre: CentreFacts, wanted: Sequence[Ahead], at: datetime
) -> dict[UUID, HubError]:
    """Have card time covered, one job after another; paid by what is still valid when it will be used up.

    Returns:
        Per job that is refused why: NoRate, or what `vouchers.holding.place_holds` refuses.
    """
    if not wanted:
        return {}
    begun = [ahead.job.id for ahead in wanted if ahead.funded.funded_at is not None]
    timed = covered_time(session, begun)
    tariffs = tariffs_of(session, {(ahead.job.tenant_id, ahead.model) for ahead in wanted})
    facts = held_facts(session, begun)
    held = {job_id for job_id, _ in facts}
    hardware = hardware_of(session, {ahead.model for ahead in wanted})
    refused: dict[UUID, HubError] = {}
    covered: list[_Covered] = []
    for ahead in wanted:
        try:
            covered.append(_covered(ahead, timed.get((ahead.job.id, ahead.model), 0), tariffs, at))
        except HubError as refusal:
            refused[ahead.job.id] = refusal
    asked = [
        _request(
            entry,
            facts.get((entry.ahead.job.id, entry.ahead.model)),
            centre,
            hardware,
            at,
            extends=entry.ahead.job.id in held,
        )
        for entry in covered
        if entry.micros > entry.ahead.funded.held_micros
    ]
    outcomes = place_holds(session, asked, at) if asked else []
    for request, outcome in zip(asked, outcomes, strict=True):
        if isinstance(outcome, HubError):
            refused[request.job_id] = outcome
    _note(session, [entry for entry in covered if entry.ahead.job.id not in refused], at)
    return refused


def hardware_of(session: Session, models: Collection[str]) -> dict[str, str]:
    """By accelerator model what the voucher rules call its hardware."""
    vendors: dict[str, str] = dict(_VENDORS(session, models=list(models)))
    return {model: "domestic" if vendors.get(model) in _DOMESTIC else "other" for model in models}


def charge_facts(
    centre: CentreFacts, job: JobRow, model: str, hardware: Mapping[str, str], slot_ms: int, project: str | None
) -> ChargeFacts:
    """What the voucher rules look at in a job's usage of a model in this centre."""
    return ChargeFacts(
        model=model,
        hardware=hardware[model],
        cost_kind=centre.cost_kind(job.environment),
        region=centre.region,
        centre_pflops=centre.pflops,
        card_ms=slot_ms // 1000,
        project=project,
    )


def priced_ahead(at: datetime, ahead_ms: int) -> Span:
    """The time that is set aside for, at whose dearest moment it is priced; a little longer, for a late start."""
    return Span(unix_ms(at), unix_ms(at) + ahead_ms + STEP_MS)


def _covered(
    ahead: Ahead, timed_slot_ms: int, tariffs: Mapping[tuple[UUID, str], Tariff], at: datetime
) -> _Covered:
    """What a job's holds come to with the time ahead. Raises NoRate."""
    funded, more = ahead.funded, ahead.slot_ms - timed_slot_ms
    if more <= 0:
        return _Covered(ahead, timed_slot_ms, funded.held_slot_ms, funded.held_micros)
    tariff, admitted_at = tariffs[ahead.job.tenant_id, ahead.model], funded.funded_at or at
    price = dearest_in(tariff, ahead.job, ahead.model, admitted_at, priced_ahead(at, ahead.ahead_ms))
    micros = funded.held_micros + hold_micros(more, price)
    return _Covered(ahead, ahead.slot_ms, funded.held_slot_ms + more, micros)


def _request(
    entry: _Covered,
    held: ChargeFacts | None,
    centre: CentreFacts,
    hardware: Mapping[str, str],
    at: datetime,
    *,
    extends: bool,
) -> HoldRequest:
    """A job's usage of a model is described as it was held for first.

    So neither a device that left nor a centre that grew while a job runs takes its holds away from it.
    """
    ahead = entry.ahead
    facts = held or charge_facts(centre, ahead.job, ahead.model, hardware, 0, ahead.funded.project)
    return HoldRequest(
        job_id=ahead.job.id,
        tenant_id=ahead.job.tenant_id,
        cost_micros=entry.micros,
        facts=replace(facts, card_ms=entry.slot_ms // 1000),
        voucher_ids=ahead.funded.voucher_ids,
        usage_until=at + timedelta(milliseconds=ahead.ahead_ms),
        extends=extends,
    )


def covered_time(session: Session, job_ids: Sequence[UUID]) -> dict[tuple[UUID, str], int]:
    """By job and model the slot-milliseconds that holds have covered so far."""
    if not job_ids:
        return {}
    return {(job_id, model): slot_ms for job_id, model, slot_ms in _TIMED(session, jobs=list(job_ids))}


def _note(session: Session, covered: Sequence[_Covered], at: datetime) -> None:
    if not covered:
        return
    _COVERED(
        session,
        jobs=array(entry.ahead.job.id for entry in covered),
        models=array_of_text(entry.ahead.model for entry in covered),
        model_slot_ms=array(entry.model_slot_ms for entry in covered),
        slot_ms=array(entry.slot_ms for entry in covered),
        micros=array(entry.micros for entry in covered),
        funded=array_of_text((entry.ahead.funded.funded_at or at).isoformat() for entry in covered),
    )
