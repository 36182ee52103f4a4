"""Keeping usage records: each once, whatever the network repeats; a contradiction is kept as an alarm, never billed.

A record counts only if it is about a run that this hub placed on the node that sent it, under that run's own job,
attempt, rank and id, for no more slots than the run holds. Anything else is an alarm too.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

import structlog
from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from compute_hub.metering.energy import ESTIMATED, MEASURED, Draw, estimated_energy_mj
from compute_hub.metering.tables import UnchargedUsageRow, UsageMismatchRow, UsageRecordRow, UsageTotalRow
from kernel.clock import from_unix_ms
from kernel.ids import derived_id
from scheduler.node.codec import encode
from scheduler.node.protocol import UsageRecord
from scheduler.tables import AllocationRow, RunRow

NO_DRAWS: Final[Mapping[str, Draw]] = {}
"""Of models whose power nobody declared."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class _Placed:
    """A run as it was placed."""

    job_id: UUID
    attempt: int
    rank: int
    node: str
    model: str
    slots_milli: int


def record_usage(
    session: Session,
    node: str,
    records: Sequence[UsageRecord],
    at: datetime,
    draws: Mapping[str, Draw] = NO_DRAWS,
) -> None:
    """Keep records under their ids and queue the new ones for charging.

    Args:
        session: of the transaction in which the node's report is kept.
        node: who sent them.
        records: as they came.
        at: now.
        draws: declared power by model, for energy that no sensor measured.
    """
    if not records:
        return
    placed = _placed(session, {record.run_id for record in records})
    rows: dict[str, dict[str, object]] = {}
    alarms: list[tuple[UsageRecord, str]] = []
    for record in records:
        run = placed.get(record.run_id)
        problem = "it is about a run that was never placed here" if run is None else _problem(record, node, run)
        if (
            run is None
            or problem
            or (record.id in rows and rows[record.id]["content_sha256"] != _digest(record))
        ):
            alarms.append((record, problem or "it contradicts another record of the same id"))
        else:
            rows[record.id] = _row(record, node, run.model, at, draws.get(run.model))
    alarms += _keep(session, rows, {record.id: record for record in records})
    _raise_alarms(session, alarms, at)


def _keep(
    session: Session, rows: Mapping[str, dict[str, object]], records: Mapping[str, UsageRecord]
) -> list[tuple[UsageRecord, str]]:
    """Insert what is new, add it up and queue it; returns what contradicts what is kept."""
    if not rows:
        return []
    inserted = insert(UsageRecordRow).values(list(rows.values())).on_conflict_do_nothing()
    new = set(session.scalars(inserted.returning(UsageRecordRow.id)))
    fresh = [row for row in rows.values() if row["id"] in new]
    if fresh:
        queue = [{"record_id": row["id"], "job_id": row["job_id"]} for row in fresh]
        session.execute(insert(UnchargedUsageRow).values(queue))
        _add_up(session, fresh)
    repeated = {record_id: row for record_id, row in rows.items() if row["id"] not in new}
    kept = _digests(session, repeated)
    return [
        (records[record_id], "it contradicts what was recorded under its id before")
        for record_id, row in repeated.items()
        if kept.get(UUID(record_id)) != row["content_sha256"]
    ]


def _digests(session: Session, record_ids: Iterable[str]) -> dict[UUID, str]:
    ids = [UUID(record_id) for record_id in record_ids]
    if not ids:
        return {}
    query = select(UsageRecordRow.id, UsageRecordRow.content_sha256).where(UsageRecordRow.id.in_(ids))
    return dict(session.execute(query).all())


def _add_up(session: Session, rows: Sequence[dict[str, object]]) -> None:
    totals: Counter[tuple[object, object, object]] = Counter()
    for row in rows:
        totals[row["job_id"], row["attempt"], row["model"]] += int(str(row["slot_ms"]))
    statement = insert(UsageTotalRow).values(
        [
            {"job_id": job_id, "attempt": attempt, "model": model, "slot_ms": slot_ms}
            for (job_id, attempt, model), slot_ms in sorted(totals.items(), key=str)
        ]
    )
    session.execute(
        statement.on_conflict_do_update(
            index_elements=[UsageTotalRow.job_id, UsageTotalRow.attempt],
            set_={"slot_ms": UsageTotalRow.slot_ms + statement.excluded.slot_ms},
        )
    )


def _raise_alarms(session: Session, alarms: Sequence[tuple[UsageRecord, str]], at: datetime) -> None:
    for record, problem in alarms:
        _log.error("usage_mismatch", record=record.id, job=record.job_id, problem=problem)
        mismatch = {
            "id": derived_id("usage-mismatch", record.id, _digest(record)),
            "record_id": record.id,
            "problem": problem,
            "content": encode(record),
            "received_at": at,
        }
        session.execute(insert(UsageMismatchRow).values(mismatch).on_conflict_do_nothing())


def _placed(session: Session, run_ids: Iterable[str]) -> dict[str, _Placed]:
    """By run id, how it was placed; a run's devices are all of one model."""
    ids = [run_id for text in run_ids if (run_id := _as_uuid(text)) is not None]
    width = func.upper(AllocationRow.slots) - func.lower(AllocationRow.slots)
    rows = session.execute(
        select(
            RunRow.id,
            RunRow.job_id,
            RunRow.attempt,
            RunRow.rank,
            RunRow.node,
            AllocationRow.model,
            func.sum(width),
        )
        .join(AllocationRow, AllocationRow.run_id == RunRow.id)
        .where(RunRow.id.in_(ids))
        .group_by(RunRow.id, AllocationRow.model)
    )
    return {
        str(run_id): _Placed(job_id, attempt, rank, node, model, int(slots))
        for run_id, job_id, attempt, rank, node, model, slots in rows
    }


def _problem(record: UsageRecord, node: str, run: _Placed) -> str:
    """Why a record cannot be about the run it names; empty if it can."""
    named = (record.job_id, record.attempt, record.rank, node)
    if named != (str(run.job_id), run.attempt, run.rank, run.node):
        return "its job, attempt, rank or node is not that of its run"
    if record.id != str(derived_id("usage", record.job_id, record.attempt, record.rank, record.k)):
        return "its id does not follow from its job, attempt, rank and number"
    if (
        min(record.k, record.offset_ms, record.duration_ms) < 0
        or record.slot_ms != record.duration_ms * run.slots_milli
    ):
        return f"its card time is not its duration on the {run.slots_milli} slots of its run"
    return ""


def _as_uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


def _row(record: UsageRecord, node: str, model: str, at: datetime, draw: Draw | None) -> dict[str, object]:
    busy_ms = record.cpu_ms if record.device_busy_ms is None else record.device_busy_ms
    energy_mj, basis = record.energy_mj, None if record.energy_mj is None else MEASURED
    if energy_mj is None and draw is not None:
        energy_mj, basis = estimated_energy_mj(record.slot_ms, busy_ms, draw), ESTIMATED
    return {
        "id": UUID(record.id),
        "job_id": UUID(record.job_id),
        "run_id": UUID(record.run_id),
        "attempt": record.attempt,
        "rank": record.rank,
        "k": record.k,
        "node": node,
        "boot_id": record.boot_id,
        "model": model,
        "started_at": from_unix_ms(record.started_unix_ms),
        "offset_ms": record.offset_ms,
        "duration_ms": record.duration_ms,
        "slot_ms": record.slot_ms,
        "busy_ms": busy_ms,
        "memory_bytes_max": record.memory_bytes_max,
        "energy_mj": energy_mj,
        "energy_basis": basis,
        "final": record.final,
        "content_sha256": _digest(record),
        "received_at": at,
    }


def _digest(record: UsageRecord) -> str:
    return hashlib.sha256(json.dumps(encode(record), sort_keys=True).encode()).hexdigest()
