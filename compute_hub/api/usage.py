"""What the meter recorded of a job: the ground every charge stands on."""

from datetime import datetime
from uuid import UUID

from fastapi import APIRouter
from sqlalchemy import select
from sqlalchemy.orm import Session

from compute_hub.api.call import Caller, View
from compute_hub.billing.tables import ChargedUsageRow
from compute_hub.identity.roles import Role
from compute_hub.metering.tables import UsageRecordRow
from scheduler.jobs import find_job

router = APIRouter(prefix="/v1", tags=["usage"])


class UsageView(View):
    """One record of one rank: `slot_ms` is the sum of slots times milliseconds, 1000 slots being a card."""

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
    final: bool
    charge_id: UUID | None


@router.get("/jobs/{job_id}/usage")
def usage(job_id: UUID, call: Caller) -> list[UsageView]:
    """All usage records of a job, by attempt, rank and number, and the charge each went into."""
    call.require(Role.TENANT, Role.OPERATOR, Role.AUDITOR, Role.AUTHORITY)

    def action(session: Session) -> list[UsageView]:
        find_job(session, job_id, tenant_id=call.principal.tenant_id)
        rows = session.execute(
            select(UsageRecordRow, ChargedUsageRow.charge_id)
            .join(ChargedUsageRow, ChargedUsageRow.record_id == UsageRecordRow.id, isouter=True)
            .where(UsageRecordRow.job_id == job_id)
            .order_by(UsageRecordRow.attempt, UsageRecordRow.rank, UsageRecordRow.k)
            .limit(10_000)
        )
        return [
            UsageView(
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
                final=row.final,
                charge_id=charge_id,
            )
            for row, charge_id in rows
        ]

    return call.read(action)
