"""Keeping usage records: each once, whatever the network repeats; a contradiction is kept as an alarm, never billed.

A record counts only if it is about a run that this hub placed on the node that sent it, under that run's own job,
attempt, rank and id, for no more slots than the run holds. Anything else is an alarm too.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

import structlog
from sqlalchemy import bindparam, func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from compute_hub.metering.energy import ESTIMATED, MEASURED, Draw, estimated_energy_mj
from compute_hub.metering.tables import UsageMismatchRow, UsageRecordRow
from kernel.bulk import among, array, array_of_text
from kernel.ids import derived_id
from kernel.prepared import Prepared
from scheduler.node.codec import encode
from scheduler.node.protocol import UsageRecord
from scheduler.tables import AllocationRow, RunRow

NO_DRAWS: Final[Mapping[str, Draw]] = {}
"""Of models whose power nobody declared."""

_KEEP: Final = Prepared(
    text("""
    WITH kept AS (
        INSERT INTO usage_records (id, job_id, run_id, attempt, rank, k, node, boot_id, model, started_at, offset_ms,
                                   duration_ms, slot_ms, busy_ms, memory_bytes_max, device_memory_bytes_max, energy_mj,
                                   energy_basis, final, content_sha256, received_at)
        SELECT u.id, u.job_id, u.run_id, u.attempt, u.rank, u.k, u.node, u.boot_id, u.model,
               timestamptz 'epoch' + u.started_ms * interval '1 millisecond', u.offset_ms, u.duration_ms, u.slot_ms,
               u.busy_ms, u.memory_bytes_max, u.device_memory_bytes_max, u.energy_mj, u.energy_basis, u.final, u.digest,
               CAST(:received AS timestamptz)
          FROM unnest(CAST(:id AS uuid[]), CAST(:job_id AS uuid[]), CAST(:run_id AS uuid[]), CAST(:attempt AS bigint[]),
                      CAST(:rank AS bigint[]), CAST(:k AS bigint[]), CAST(:node AS text[]), CAST(:boot_id AS text[]),
                      CAST(:model AS text[]), CAST(:started_ms AS bigint[]), CAST(:offset_ms AS bigint[]),
                      CAST(:duration_ms AS bigint[]), CAST(:slot_ms AS bigint[]), CAST(:busy_ms AS bigint[]),
                      CAST(:memory_bytes_max AS bigint[]), CAST(:device_memory_bytes_max AS bigint[]),
                      CAST(:energy_mj AS bigint[]), CAST(:energy_basis AS text[]), CAST(:final AS boolean[]),
                      CAST(:digest AS text[]))
            AS u(id, job_id, run_id, attempt, rank, k, node, boot_id, model, started_ms, offset_ms, duration_ms,
                 slot_ms, busy_ms, memory_bytes_max, device_memory_bytes_max, energy_mj, energy_basis, final, digest)
        ON CONFLICT DO NOTHING
        RETURNING id, job_id, attempt, rank, k, model, slot_ms),
    queued AS (INSERT INTO uncharged_usage (job_id, attempt, rank, k) SELECT job_id, attempt, rank, k FROM kept),
    added AS (
        INSERT INTO usage_totals (job_id, attempt, model, slot_ms)
        SELECT job_id, attempt, min(model), sum(slot_ms) FROM kept GROUP BY job_id, attempt ORDER BY job_id, attempt
        ON CONFLICT (job_id, attempt) DO UPDATE SET slot_ms = usage_totals.slot_ms + excluded.slot_ms)
    SELECT id, pg_notify(:wake, '') FROM kept
""").columns(UsageRecordRow.id)
)

_WIDTH: Final = func.upper(AllocationRow.slots) - func.lower(AllocationRow.slots)
_PLACED: Final = Prepared(
    select(
        RunRow.id,
        RunRow.job_id,
        RunRow.attempt,
        RunRow.rank,
        RunRow.node,
        AllocationRow.model,
        func.sum(_WIDTH),
    )
    .join(AllocationRow, AllocationRow.run_id == RunRow.id)
    .where(among(RunRow.id, bindparam("runs")))
    .group_by(RunRow.id, AllocationRow.model)
)

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


@dataclass(frozen=True, slots=True)
class _Kept:
    """A record that can be about its run, its node and model, what it says of energy, the hash of its content."""

    record: UsageRecord
    node: str
    model: str
    busy_ms: int
    energy_mj: int | None
    energy_basis: str | None
    digest: str


def record_usage(
    session: Session,
    usage: Mapping[str, Sequence[UsageRecord]],
    at: datetime,
    draws: Mapping[str, Draw] = NO_DRAWS,
    *,
    wake: str,
) -> None:
    """Keep records under their ids and queue the new ones for charging.

    Args:
        session: of the transaction in which the nodes' reports are kept.
        usage: by node that sent them, records as they came.
        at: now.
        draws: declared power by model, for energy that no sensor measured.
        wake: the notification channel that hears of new ones when the transaction commits.
    """
    sent = [(node, record) for node, records in usage.items() for record in records]
    if not sent:
        return
    placed = _placed(session, {record.run_id for _, record in sent})
    kept: dict[str, _Kept] = {}
    alarms: list[tuple[UsageRecord, str]] = []
    for node, record in sent:
        run_placed = placed.get(record.run_id)
        if run_placed is None:
            alarms.append((record, "it is about a run that was never placed here"))
            continue
        digest, problem = _digest(record), _problem(record, node, run_placed)
        if not problem and record.id in kept and kept[record.id].digest != digest:
            problem = "it contradicts another record of the same id"
        if problem:
            alarms.append((record, problem))
        else:
            kept[record.id] = _taken(record, run_placed, digest, draws.get(run_placed.model))
    alarms += _keep(session, kept, at, wake)
    _raise_alarms(session, alarms, at)


def _taken(record: UsageRecord, placed: _Placed, digest: str, draw: Draw | None) -> _Kept:
    busy_ms = record.cpu_ms if record.device_busy_ms is None else record.device_busy_ms
    energy_mj, basis = record.energy_mj, None if record.energy_mj is None else MEASURED
    if energy_mj is None and draw is not None:
        energy_mj, basis = estimated_energy_mj(record.slot_ms, busy_ms, draw), ESTIMATED
    return _Kept(record, placed.node, placed.model, busy_ms, energy_mj, basis, digest)


def _keep(
    session: Session, kept: Mapping[str, _Kept], at: datetime, wake: str
) -> list[tuple[UsageRecord, str]]:
    """Insert what is new, add it up, queue it and tell, in one statement; returns what contradicts what is kept."""
    if not kept:
        return []
    rows = sorted(kept.values(), key=lambda one: one.record.id)
    told = _KEEP(session, **_columns(rows), received=at, wake=wake)
    new = {str(record_id) for record_id, *_ in told}
    repeated = {record_id: one for record_id, one in kept.items() if record_id not in new}
    known = _digests(session, repeated)
    return [
        (one.record, "it contradicts what was recorded under its id before")
        for record_id, one in repeated.items()
        if known.get(UUID(record_id)) != one.digest
    ]


def _columns(rows: Sequence[_Kept]) -> dict[str, str]:
    records = [one.record for one in rows]
    return {
        "id": array(record.id for record in records),
        "job_id": array(record.job_id for record in records),
        "run_id": array(record.run_id for record in records),
        "attempt": array(record.attempt for record in records),
        "rank": array(record.rank for record in records),
        "k": array(record.k for record in records),
        "node": array_of_text(one.node for one in rows),
        "boot_id": array_of_text(record.boot_id for record in records),
        "model": array_of_text(one.model for one in rows),
        "started_ms": array(record.started_unix_ms for record in records),
        "offset_ms": array(record.offset_ms for record in records),
        "duration_ms": array(record.duration_ms for record in records),
        "slot_ms": array(record.slot_ms for record in records),
        "busy_ms": array(one.busy_ms for one in rows),
        "memory_bytes_max": array(record.memory_bytes_max for record in records),
        "device_memory_bytes_max": array(record.device_memory_bytes_max for record in records),
        "energy_mj": array(one.energy_mj for one in rows),
        "energy_basis": array_of_text(one.energy_basis for one in rows),
        "final": array(record.final for record in records),
        "digest": array(one.digest for one in rows),
    }


def _digests(session: Session, record_ids: Iterable[str]) -> dict[UUID, str]:
    ids = [UUID(record_id) for record_id in record_ids]
    if not ids:
        return {}
    query = select(UsageRecordRow.id, UsageRecordRow.content_sha256).where(among(UsageRecordRow.id, ids))
    return dict(session.execute(query).all())


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
    return {
        str(run_id): _Placed(job_id, attempt, rank, node, model, int(slots))
        for run_id, job_id, attempt, rank, node, model, slots in _PLACED(session, runs=ids)
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


def _digest(record: UsageRecord) -> str:
    return hashlib.sha256(json.dumps(encode(record), sort_keys=True).encode()).hexdigest()
