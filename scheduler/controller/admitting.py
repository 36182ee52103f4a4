"""From plan to intent: attempt, runs, allocations and the hold on the funds are one commit, before anything acts."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import Range
from sqlalchemy.orm import Session

from kernel.clock import unix_ms
from kernel.ids import derived_id
from scheduler.controller.live_state import LiveState
from scheduler.controller.ports import Accounting
from scheduler.leadership import Leadership, fence
from scheduler.policy.cycle import plan_cycle
from scheduler.policy.model import WHOLE_MILLI, Placement, Start
from scheduler.policy.reasons import explain
from scheduler.tables import AllocationRow, DeviceRow, JobRow, RunRow

UNFUNDED_RETRY_MS: Final = 5000
"""How long a job whose funds are missing is left out of planning before it is tried again."""


@dataclass(frozen=True)
class Admitted:
    """What one cycle committed: the nodes that must be synced for it, and whether a job had to stand back.

    When one stood back for want of funds, what was planned for it is free, so another cycle is due.
    """

    nodes: frozenset[str]
    stood_back: bool


def admit(
    session: Session, leadership: Leadership, live: LiveState, accounting: Accounting, at: datetime
) -> Admitted:
    """Plan one cycle and commit its starts; a job whose funds are missing waits and says so.

    Raises:
        LeadershipLost: nothing was written.
    """
    fence(session, leadership)
    live.refresh(session, unix_ms(at))
    plan = plan_cycle(live.policy, unix_ms(at))
    nodes: set[str] = set()
    stood_back = False
    devices = _devices(session) if plan.starts else {}
    for start in plan.starts:
        begun = _begin(session, leadership, start, accounting, devices, at)
        nodes |= begun
        if not begun:
            live.shelve(UUID(start.job_id), unix_ms(at) + UNFUNDED_RETRY_MS)
            stood_back = True
    _explain(session, live, at)
    return Admitted(frozenset(nodes), stood_back)


def _begin(
    session: Session,
    leadership: Leadership,
    start: Start,
    accounting: Accounting,
    devices: dict[tuple[str, int], DeviceRow],
    at: datetime,
) -> set[str]:
    job = session.scalars(select(JobRow).where(JobRow.id == start.job_id).with_for_update()).one()
    if job.state != "queued" or job.stop_reason is not None:
        return set()  # cancelled since the picture was taken
    job.attempt += 1
    refused = accounting.admit(session, job, _slots_by_model(start.placements, devices), at)
    if refused is not None:
        job.attempt -= 1
        job.reason = refused
        return set()
    job.state, job.placed_at, job.reason = "starting", at, "its processes are being started"
    for rank, placement in enumerate(start.placements):
        _place(session, leadership, job, rank, placement, devices, at)
    session.flush()
    return {placement.node for placement in start.placements}


def _place(
    session: Session,
    leadership: Leadership,
    job: JobRow,
    rank: int,
    placement: Placement,
    devices: dict[tuple[str, int], DeviceRow],
    at: datetime,
) -> None:
    run_id = derived_id("run", job.id, job.attempt, rank)
    session.add(
        RunRow(
            id=run_id,
            job_id=job.id,
            attempt=job.attempt,
            rank=rank,
            node=placement.node,
            epoch=leadership.epoch,
            state="placed",
            devices=[list(piece) for piece in placement.devices],
            acknowledged=False,
        )
    )
    session.flush()
    for piece in placement.devices:
        device = devices[placement.node, piece.device]
        first = device.number * WHOLE_MILLI
        session.add(
            AllocationRow(
                id=derived_id("allocation", run_id, piece.device, piece.slot_lo),
                run_id=run_id,
                node=placement.node,
                device_index=piece.device,
                model=device.model,
                slots=Range(first + piece.slot_lo, first + piece.slot_hi),
                span=Range(at, None),
            )
        )


def _explain(session: Session, live: LiveState, at: datetime) -> None:
    """Write down why each waiting job waits, where that changed."""
    for job in session.scalars(select(JobRow).where(JobRow.state == "queued")):
        if str(job.id) in live.policy.queued and str(job.id) not in live.policy.running:
            sentence = explain(live.policy, str(job.id), unix_ms(at)).sentence
            if job.reason != sentence:
                job.reason = sentence


def _devices(session: Session) -> dict[tuple[str, int], DeviceRow]:
    return {(device.node, device.index): device for device in session.scalars(select(DeviceRow))}


def _slots_by_model(
    placements: Sequence[Placement], devices: dict[tuple[str, int], DeviceRow]
) -> dict[str, int]:
    totals: dict[str, int] = {}
    for placement in placements:
        for piece in placement.devices:
            model = devices[placement.node, piece.device].model
            totals[model] = totals.get(model, 0) + piece.slot_hi - piece.slot_lo
    return totals
