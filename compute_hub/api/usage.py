"""What the meter recorded of a job: the ground every charge stands on."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query
from sqlalchemy import case, select, true, tuple_
from sqlalchemy.orm import Session

from compute_hub.api.call import Caller
from compute_hub.api.job_reference import JobId
from compute_hub.api.shapes import Limit, Page, View, page_of
from compute_hub.billing.tables import ChargedUsageRow
from compute_hub.metering.tables import UsageRecordRow
from scheduler.jobs import find_job

router = APIRouter(prefix="/v1", tags=["usage"])


class UsageView(View):
    """One record of one rank: `slot_ms` is the sum of slots times milliseconds, 1000 slots being a card.

    `energy_basis`: `measured` by the card's sensor, `estimated` from the model's declared power, or null with
    `energy_mj` where neither is known. `device_memory_bytes_max` is null where the card does not say it.
    """

    id: UUID
    attempt: int
    rank: int
    k: int
    node: str
    model: str
    started_at: datetime
    duration_ms: int
    slot_ms: int
    busy_ms: int
    memory_bytes_max: int
    device_memory_bytes_max: int | None
    energy_mj: int | None
    energy_basis: str | None
    final: bool
    charge_id: UUID | None


@router.get("/jobs/{job_id}/usage", name="list_job_usage")
def usage(
    job_id: JobId,
    call: Caller,
    limit: Limit = 100,
    after: Annotated[str, Query(pattern=r"^(\d{1,9}\.\d{1,9}\.\d{1,9})?$")] = "",
) -> Page[UsageView]:
    """A job's usage records by attempt, rank and number, and the charge each went into."""

    def action(session: Session) -> Page[UsageView]:
        find_job(session, job_id, tenant_id=call.scope)
        place = (UsageRecordRow.attempt, UsageRecordRow.rank, UsageRecordRow.k)
        last_range = (  # of those that begin at the record or before it: no other can contain it
            select(ChargedUsageRow.until_k, ChargedUsageRow.charge_id)
            .where(
                ChargedUsageRow.job_id == UsageRecordRow.job_id,
                ChargedUsageRow.attempt == UsageRecordRow.attempt,
                ChargedUsageRow.rank == UsageRecordRow.rank,
                ChargedUsageRow.first_k <= UsageRecordRow.k,
            )
            .order_by(ChargedUsageRow.first_k.desc())
            .limit(1)
            .lateral()
        )
        query = (
            select(UsageRecordRow, case((UsageRecordRow.k < last_range.c.until_k, last_range.c.charge_id)))
            .join(last_range, true(), isouter=True)
            .where(UsageRecordRow.job_id == job_id)
            .order_by(*place)
            .limit(limit)
        )
        if after:
            query = query.where(tuple_(*place) > tuple(map(int, after.split("."))))
        items = [_view(row, charge_id) for row, charge_id in session.execute(query)]
        last = items[-1] if items else None
        return page_of(items, limit, last and f"{last.attempt}.{last.rank}.{last.k}")

    return call.read(action)


def _view(row: UsageRecordRow, charge_id: UUID | None) -> UsageView:
    return UsageView(
        id=row.id,
        attempt=row.attempt,
        rank=row.rank,
        k=row.k,
        node=row.node,
        model=row.model,
        started_at=row.started_at,
        duration_ms=row.duration_ms,
        slot_ms=row.slot_ms,
        busy_ms=row.busy_ms,
        memory_bytes_max=row.memory_bytes_max,
        device_memory_bytes_max=row.device_memory_bytes_max,
        energy_mj=row.energy_mj,
        energy_basis=row.energy_basis,
        final=row.final,
        charge_id=charge_id,
    )
