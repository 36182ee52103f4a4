"""Keeping usage records: each once, whatever the network repeats; a contradiction is kept as an alarm, never billed."""

import hashlib
import json
from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import structlog
from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from compute_hub.metering.tables import UnchargedUsageRow, UsageMismatchRow, UsageRecordRow
from kernel.clock import from_unix_ms
from kernel.ids import derived_id
from scheduler.node.codec import encode
from scheduler.node.protocol import UsageRecord
from scheduler.tables import AllocationRow

_log = structlog.get_logger(__name__)


def record_usage(session: Session, node: str, records: Sequence[UsageRecord], at: datetime) -> None:
    """Keep records under their ids and queue the new ones for charging."""
    if not records:
        return
    models = _models(session, {UUID(record.run_id) for record in records})
    rows = [_row(record, node, models, at) for record in records]
    new = set(
        session.scalars(
            insert(UsageRecordRow).values(rows).on_conflict_do_nothing().returning(UsageRecordRow.id)
        )
    )
    repeated = [record for record in records if UUID(record.id) not in new]
    if new:
        queue = [{"record_id": row["id"], "job_id": row["job_id"]} for row in rows if row["id"] in new]
        session.execute(insert(UnchargedUsageRow).values(queue))
    if repeated:
        _compare(session, repeated, at)


def _compare(session: Session, records: Sequence[UsageRecord], at: datetime) -> None:
    kept = dict(
        session.execute(
            select(UsageRecordRow.id, UsageRecordRow.content_sha256).where(
                UsageRecordRow.id.in_([UUID(record.id) for record in records])
            )
        )
        .tuples()
        .all()
    )
    for record in records:
        digest = _digest(record)
        if kept.get(UUID(record.id)) == digest:
            continue
        _log.error("usage_mismatch", record=record.id, job=record.job_id)
        mismatch = {
            "id": derived_id("usage-mismatch", record.id, digest),
            "record_id": UUID(record.id),
            "content": encode(record),
            "received_at": at,
        }
        session.execute(insert(UsageMismatchRow).values(mismatch).on_conflict_do_nothing())


def _models(session: Session, run_ids: set[UUID]) -> dict[UUID, str]:
    """By run, the model of its devices; a run's devices are all of one model."""
    return dict(
        session.execute(
            select(AllocationRow.run_id, AllocationRow.model)
            .where(AllocationRow.run_id.in_(run_ids))
            .distinct()
        )
        .tuples()
        .all()
    )


def _row(record: UsageRecord, node: str, models: dict[UUID, str], at: datetime) -> dict[str, object]:
    run_id = UUID(record.run_id)
    return {
        "id": UUID(record.id),
        "job_id": UUID(record.job_id),
        "run_id": run_id,
        "attempt": record.attempt,
        "rank": record.rank,
        "k": record.k,
        "node": node,
        "boot_id": record.boot_id,
        "model": models[run_id],
        "started_at": from_unix_ms(record.started_unix_ms),
        "duration_ms": record.duration_ms,
        "slot_ms": record.slot_ms,
        "busy_ms": record.cpu_ms,
        "final": record.final,
        "content_sha256": _digest(record),
        "received_at": at,
    }


def _digest(record: UsageRecord) -> str:
    return hashlib.sha256(json.dumps(encode(record), sort_keys=True).encode()).hexdigest()
