"""From plan to intent: attempt, runs, allocations and the hold on the funds are one commit, before anything acts.

So is who is to stop for whom.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import structlog
from sqlalchemy import bindparam, select
from sqlalchemy.dialects.postgresql import Range
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import set_committed_value

from kernel.bulk import among, copy_rows
from kernel.changes import Loose, write_changes
from kernel.clock import unix_ms
from kernel.ids import derived_id
from kernel.prepared import Prepared
from scheduler.controller.evicting import order_evictions
from scheduler.controller.live_state import LiveState, machines_of
from scheduler.controller.ports import Accounting, Admission
from scheduler.controller.watching import Step
from scheduler.leadership import Leadership, fence
from scheduler.policy.model import WHOLE_MILLI, Placement, Plan, Start
from scheduler.tables import AllocationRow, JobRow, RunRow

UNFUNDED_RETRY_MS: Final = 5000
"""How long a job whose funds are missing is left out of planning before it is tried again; doubled every time."""

_JOB: Final = Loose(
    JobRow,
    *("id", "tenant_id", "state", "reason", "attempt", "revision", "held", "stop_reason", "traceparent"),
    *("queued_at", "not_before", "retry_at", "placed_at", "kind", "environment", "priority"),
    *("node_count", "devices_per_node", "slots_milli", "time_limit_ms", "grace_ms"),
)
_ASKED: Final = Prepared(
    select(*_JOB.columns)
    .where(among(JobRow.id, bindparam("jobs")))
    .order_by(JobRow.tenant_id, JobRow.id)
    .with_for_update()
)

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Admitted:
    """What one cycle committed: the nodes that must be synced for it, and whether a job had to stand back.

    When one stood back for want of funds, what was planned for it is free, so another cycle is due.
    """

    nodes: frozenset[str]
    stood_back: bool
    starts: int
    evictions: int
    steps: tuple[Step, ...] = ()


def admit(
    session: Session,
    leadership: Leadership,
    live: LiveState,
    plan: Plan,
    accounting: Accounting,
    at: datetime,
    *,
    apart: bool = False,
) -> Admitted:
    """Write a plan's starts and evictions; a job whose funds are missing waits and says so.

    What became of a job since the picture was taken is looked at again: one that was cancelled, held or told to wait
    for others stays.

    Args:
        session: of one transaction.
        leadership: whose epoch fences it.
        live: the picture it was planned on.
        plan: of one cycle.
        accounting: who holds the funds.
        at: when it was planned.
        apart: begin each start by itself, so that a slice the database says is taken costs its job a pause and nobody
            else anything.

    Raises:
        LeadershipLost: nothing was written.
        sqlalchemy.exc.IntegrityError: a slice is taken, and nothing may be committed; not if they are begun apart.
    """
    fence(session, leadership)
    begin = _begin_apart if apart else _begin
    begun = begin(session, leadership, plan.starts, accounting, live, at)
    for start in plan.starts:
        if UUID(start.job_id) not in begun:
            live.shelve(UUID(start.job_id), unix_ms(at), UNFUNDED_RETRY_MS)
    ordered = order_evictions(session, plan.evictions, live, accounting, at, unfunded_ms=UNFUNDED_RETRY_MS)
    steps = (*begun.values(), *ordered.claims)
    nodes = ordered.nodes.union(*(step.nodes for step in begun.values()))
    stood_back = len(begun) < len(plan.starts)
    return Admitted(nodes, stood_back, len(plan.starts), len(plan.evictions), steps)


def _begin_apart(
    session: Session,
    leadership: Leadership,
    starts: Sequence[Start],
    accounting: Accounting,
    live: LiveState,
    at: datetime,
) -> dict[UUID, Step]:
    begun: dict[UUID, Step] = {}
    for start in starts:
        try:
            with session.begin_nested():
                begun |= _begin(session, leadership, [start], accounting, live, at)
        except IntegrityError as error:
            _log.error("allocation_refused", job=start.job_id, reason=str(error.orig))
    return begun


def _begin(
    session: Session,
    leadership: Leadership,
    starts: Sequence[Start],
    accounting: Accounting,
    live: LiveState,
    at: datetime,
) -> dict[UUID, Step]:
    """Begin all starts at once; by job that was begun, the step it took."""
    if not starts:
        return {}
    placed = {UUID(start.job_id): machines_of(start.placements) for start in starts}
    # Locked in the order of tenants, as money is; asked for in the order of the plan.
    asked = _JOB.rows(_ASKED(session, jobs=list(placed)))
    may = {job.id: job for job in asked if _may_start(job) and live.is_as_seen(job)}
    refused = _fund(session, [(may[one], placed[one]) for one in placed if one in may], accounting, live, at)
    for job in may.values():
        if job.id in refused:
            job.reason = refused[job.id]
        else:
            job.attempt += 1
            job.state, job.placed_at, job.reason = "starting", at, "its processes are being started"
    write_changes(session, may.values())
    begun = [job for job in may.values() if job.id not in refused]
    ranks = [(job, rank, placement) for job in begun for rank, placement in enumerate(placed[job.id])]
    copy_rows(session, RunRow, [_run(job, rank, placement, leadership) for job, rank, placement in ranks])
    allocations = (_allocations(_run_id(job, rank), placement, live, at) for job, rank, placement in ranks)
    copy_rows(session, AllocationRow, [row for rows in allocations for row in rows])
    return {job.id: _admitted(job, placed[job.id], at) for job in begun}


def _fund(
    session: Session,
    jobs: Sequence[tuple[JobRow, Sequence[Placement]]],
    accounting: Accounting,
    live: LiveState,
    at: datetime,
) -> Mapping[UUID, str]:
    """Ask for funds for the attempts that would begin; a sentence for each job that has not enough.

    Meanwhile the jobs say what their attempt would be, which is not written: most are changed once more, and a row is
    best written once.
    """
    asked = [Admission(job, _slots_by_model(placements, live)) for job, placements in jobs]
    before = {job.id: job.attempt for job, _ in jobs}
    for job, _ in jobs:
        set_committed_value(job, "attempt", before[job.id] + 1)
    try:
        return accounting.admit(session, asked, at)
    finally:
        for job, _ in jobs:
            set_committed_value(job, "attempt", before[job.id])


def _run(job: JobRow, rank: int, placement: Placement, leadership: Leadership) -> dict[str, Any]:
    return {
        "id": _run_id(job, rank),
        "job_id": job.id,
        "attempt": job.attempt,
        "rank": rank,
        "node": placement.node,
        "epoch": leadership.epoch,
        "state": "placed",
        "devices": [list(piece) for piece in placement.devices],
        "acknowledged": False,
    }


def _admitted(job: JobRow, placements: Sequence[Placement], at: datetime) -> Step:
    waiting_since = max(filter(None, (job.queued_at, job.retry_at, job.not_before)))
    nodes = tuple(dict.fromkeys(placement.node for placement in placements))
    return Step(
        "admitted",
        job.id,
        job.attempt,
        job.traceparent,
        min(at, waiting_since),
        at,
        nodes=nodes,
        cards_milli=job.node_count * job.devices_per_node * job.slots_milli,
    )


def _may_start(job: JobRow) -> bool:
    """Whether nobody has cancelled or held it since the picture was taken."""
    return job.state == "queued" and job.stop_reason is None and not job.held


def _run_id(job: JobRow, rank: int) -> UUID:
    return derived_id("run", job.id, job.attempt, rank)


def _allocations(run_id: UUID, placement: Placement, live: LiveState, at: datetime) -> list[dict[str, Any]]:
    rows = []
    for piece in placement.devices:
        device = live.devices[placement.node, piece.device]
        first = device.number * WHOLE_MILLI
        # A wall clock that was set back must not make this allocation overlap the one before.
        begins = at if device.freed_at is None else max(at, device.freed_at)
        rows.append(
            {
                "id": derived_id("allocation", run_id, piece.device, piece.slot_lo),
                "run_id": run_id,
                "node": placement.node,
                "device_index": piece.device,
                "model": device.model,
                "slots": Range(first + piece.slot_lo, first + piece.slot_hi),
                "span": Range(begins, None),
            }
        )
    return rows


def _slots_by_model(placements: Sequence[Placement], live: LiveState) -> dict[str, int]:
    totals: dict[str, int] = {}
    for placement in placements:
        for piece in placement.devices:
            model = live.devices[placement.node, piece.device].model
            totals[model] = totals.get(model, 0) + piece.slot_hi - piece.slot_lo
    return totals
