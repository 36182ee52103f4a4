"""From plan to intent: attempt, runs, allocations and the hold on the funds are one commit, before anything acts.

So is who is to stop for whom.
"""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

import structlog
from sqlalchemy import select
from sqlalchemy.dialects.postgresql import Range
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from kernel.clock import unix_ms
from kernel.ids import derived_id
from scheduler.controller.evicting import order_evictions
from scheduler.controller.explaining import explain_waiting
from scheduler.controller.live_state import LiveState, machines_of
from scheduler.controller.ports import Accounting
from scheduler.leadership import Leadership, fence
from scheduler.policy.model import WHOLE_MILLI, Placement, Start
from scheduler.tables import AllocationRow, JobRow, RunRow

UNFUNDED_RETRY_MS: Final = 5000
"""How long a job whose funds are missing is left out of planning before it is tried again; doubled every time."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Admitted:
    """What one cycle committed: the nodes that must be synced for it, and whether a job had to stand back.

    When one stood back for want of funds, what was planned for it is free, so another cycle is due.
    """

    nodes: frozenset[str]
    stood_back: bool


def admit(
    session: Session,
    leadership: Leadership,
    live: LiveState,
    accounting: Accounting,
    at: datetime,
    *,
    answering: AbstractSet[str],
) -> Admitted:
    """Plan one cycle and commit its starts and evictions; a job whose funds are missing waits and says so.

    Args:
        session: of one transaction.
        leadership: whose epoch fences it.
        live: the picture to plan on.
        accounting: who holds the funds.
        at: now.
        answering: the machines that may be given new jobs.

    Raises:
        LeadershipLost: nothing was written.
    """
    fence(session, leadership)
    live.refresh(session, unix_ms(at), answering)
    plan = live.plan(unix_ms(at))
    nodes: set[str] = set()
    stood_back = False
    for start in plan.starts:
        begun = _try(session, leadership, start, accounting, live, at)
        nodes |= begun
        if not begun:
            live.shelve(UUID(start.job_id), unix_ms(at), UNFUNDED_RETRY_MS)
            stood_back = True
    nodes |= order_evictions(session, plan.evictions, live, accounting, at, unfunded_ms=UNFUNDED_RETRY_MS)
    explain_waiting(session, live, unix_ms(at))
    return Admitted(frozenset(nodes), stood_back)


def _try(
    session: Session,
    leadership: Leadership,
    start: Start,
    accounting: Accounting,
    live: LiveState,
    at: datetime,
) -> set[str]:
    """Begin one start; a slice the database says is taken costs this job a pause and nobody else anything."""
    try:
        with session.begin_nested():
            return _begin(session, leadership, start, accounting, live, at)
    except IntegrityError as error:
        _log.error("allocation_refused", job=start.job_id, reason=str(error.orig))
        return set()


def _begin(
    session: Session,
    leadership: Leadership,
    start: Start,
    accounting: Accounting,
    live: LiveState,
    at: datetime,
) -> set[str]:
    job = session.scalars(select(JobRow).where(JobRow.id == start.job_id).with_for_update()).one()
    if job.state != "queued" or job.stop_reason is not None:
        return set()  # cancelled since the picture was taken
    placements = machines_of(start.placements)
    job.attempt += 1
    refused = accounting.admit(session, job, _slots_by_model(placements, live), at)
    if refused is not None:
        job.attempt -= 1
        job.reason = refused
        return set()
    job.state, job.placed_at, job.reason = "starting", at, "its processes are being started"
    session.add_all(
        RunRow(
            id=_run_id(job, rank),
            job_id=job.id,
            attempt=job.attempt,
            rank=rank,
            node=placement.node,
            epoch=leadership.epoch,
            state="placed",
            devices=[list(piece) for piece in placement.devices],
            acknowledged=False,
        )
        for rank, placement in enumerate(placements)
    )
    session.flush()
    for rank, placement in enumerate(placements):
        session.add_all(_allocations(_run_id(job, rank), placement, live, at))
    session.flush()
    return {placement.node for placement in placements}


def _run_id(job: JobRow, rank: int) -> UUID:
    return derived_id("run", job.id, job.attempt, rank)


def _allocations(run_id: UUID, placement: Placement, live: LiveState, at: datetime) -> list[AllocationRow]:
    rows = []
    for piece in placement.devices:
        device = live.devices[placement.node, piece.device]
        first = device.number * WHOLE_MILLI
        # A wall clock that was set back must not make this allocation overlap the one before.
        begins = at if device.freed_at is None else max(at, device.freed_at)
        rows.append(
            AllocationRow(
                id=derived_id("allocation", run_id, piece.device, piece.slot_lo),
                run_id=run_id,
                node=placement.node,
                device_index=piece.device,
                model=device.model,
                slots=Range(first + piece.slot_lo, first + piece.slot_hi),
                span=Range(begins, None),
            )
        )
    return rows


def _slots_by_model(placements: Sequence[Placement], live: LiveState) -> dict[str, int]:
    totals: dict[str, int] = {}
    for placement in placements:
        for piece in placement.devices:
            model = live.devices[placement.node, piece.device].model
            totals[model] = totals.get(model, 0) + piece.slot_hi - piece.slot_lo
    return totals
