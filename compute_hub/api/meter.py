"""What the meter could not vouch for, and what became of the card time that jobs held."""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query
from sqlalchemy import select
from sqlalchemy.orm import Session

from compute_hub.api.call import Caller
from compute_hub.api.shapes import After, Limit, Page, View, page_of
from compute_hub.metering.gaps import list_gap_cases
from compute_hub.metering.holding import Held, held_time
from compute_hub.metering.tables import UsageMismatchRow
from kernel.clock import utc_now
from scheduler.jobs import find_job

router = APIRouter(prefix="/v1", tags=["usage"])

_UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"


class GapCaseView(View):
    """A run whose records stop before their end; `filled` says whether the missing record has arrived since."""

    job_id: UUID
    attempt: int
    rank: int
    node: str
    first_missing_k: int
    kind: str
    opened_at: datetime
    filled: bool


class MeterAlarmView(View):
    """A record that contradicts an earlier one or the run it names; it is never billed."""

    id: UUID
    record_id: str
    problem: str
    content: dict[str, Any]
    received_at: datetime


class HeldTimeView(View):
    """Card time of one job on one model: allocated = metered + unused, metered = busy + idle; and what it took.

    `energy_joules` is null where it is not known; `energy_estimated` says that it follows, at least in part, from the
    model's declared power instead of a sensor. `memory_bytes_max` is the most any of its processes' groups kept;
    `device_memory_bytes_max` that of its share of a node's cards' own memory, null where they do not say it.
    """

    model: str
    allocated_card_ms: int
    metered_card_ms: int
    unused_card_ms: int
    busy_card_ms: int
    idle_card_ms: int
    energy_joules: float | None
    energy_estimated: bool
    memory_bytes_max: int
    device_memory_bytes_max: int | None


class HeldTimesView(View):
    """What became of the card time a job held, by model."""

    items: list[HeldTimeView]


@router.get("/gap-cases", name="list_gap_cases")
def gap_cases(
    call: Caller,
    limit: Limit = 100,
    after: Annotated[str, Query(pattern=rf"^({_UUID}\.\d{{1,9}}\.\d{{1,9}}\.\d{{1,9}})?$")] = "",
) -> Page[GapCaseView]:
    """Runs whose records do not reach their end, by job."""
    job_id, *numbers = after.split(".")
    place = (UUID(job_id), *map(int, numbers)) if after else None

    def action(session: Session) -> Page[GapCaseView]:
        found = list_gap_cases(session, limit=limit, after=place)  # type: ignore[arg-type] # the pattern says so
        items = [
            GapCaseView(
                job_id=gap.case.job_id,
                attempt=gap.case.attempt,
                rank=gap.case.rank,
                node=gap.node,
                first_missing_k=gap.case.first_missing_k,
                kind=gap.case.kind,
                opened_at=gap.case.opened_at,
                filled=gap.filled,
            )
            for gap in found
        ]
        last = items[-1] if items else None
        return page_of(
            items, limit, last and f"{last.job_id}.{last.attempt}.{last.rank}.{last.first_missing_k}"
        )

    return call.read(action)


@router.get("/meter-alarms", name="list_meter_alarms")
def alarms(call: Caller, limit: Limit = 100, after: After = None) -> Page[MeterAlarmView]:
    """Records that contradict what was recorded before, or the run they name."""

    def action(session: Session) -> Page[MeterAlarmView]:
        query = select(UsageMismatchRow).order_by(UsageMismatchRow.id).limit(limit)
        if after is not None:
            query = query.where(UsageMismatchRow.id > after)
        items = [
            MeterAlarmView(
                id=row.id,
                record_id=row.record_id,
                problem=row.problem,
                content=row.content,
                received_at=row.received_at,
            )
            for row in session.scalars(query)
        ]
        return page_of(items, limit, items[-1].id if items else "")

    return call.read(action)


@router.get("/jobs/{job_id}/held-time", name="show_held_time")
def held(job_id: UUID, call: Caller) -> HeldTimesView:
    """What became of the card time a job held: busy, idle, or reserved and not used."""

    def action(session: Session) -> HeldTimesView:
        find_job(session, job_id, tenant_id=call.scope)
        return HeldTimesView(items=[_held(one) for one in held_time(session, job_id=job_id, at=utc_now())])

    return call.read(action)


def _held(one: Held) -> HeldTimeView:
    return HeldTimeView(
        model=one.model,
        allocated_card_ms=one.allocated_ms,
        metered_card_ms=one.metered_ms,
        unused_card_ms=one.unused_ms,
        busy_card_ms=one.busy_ms,
        idle_card_ms=one.idle_ms,
        energy_joules=None if one.energy_mj is None else one.energy_mj / 1000,
        energy_estimated=one.energy_estimated,
        memory_bytes_max=one.memory_bytes_max,
        device_memory_bytes_max=one.device_memory_bytes_max,
    )
