"""What a step does beside hearing, admitting and having started: for jobs that wait or run, and nodes that are silent.

Each is a transaction of its own under the guard of the epoch. Raises LeadershipLost, and then nothing was written.
"""

import structlog
from sqlalchemy import Engine, select, update
from sqlalchemy.orm import defer

from kernel.clock import boottime_ms, unix_ms, utc_now
from kernel.database import transaction
from scheduler.controller.clearing import order_clearing
from scheduler.controller.explaining import explain_waiting
from scheduler.controller.lease import Lease
from scheduler.controller.live_state import LiveState
from scheduler.controller.nodes import Nodes
from scheduler.controller.observing import lose_node
from scheduler.controller.ports import Accounting
from scheduler.controller.settling import WITHDRAWN_MAX, end_waiting, settle, unsettled
from scheduler.controller.stopwatch import Stopwatch
from scheduler.controller.watching import Step
from scheduler.leadership import Leadership, fence
from scheduler.operations import note
from scheduler.tables import JobRow, NodeRow

_log = structlog.get_logger(__name__)


def withdraw(engine: Engine, lease: Lease, accounting: Accounting) -> tuple[list[Step], bool]:
    """End jobs that were cancelled while they waited; what became of them, and whether there may be more of them."""
    lease.proceed()
    with transaction(engine) as session:
        steps = end_waiting(session, lease.leadership, accounting, utc_now())
    return steps, len(steps) >= WITHDRAWN_MAX


def settle_loose(engine: Engine, leadership: Leadership, accounting: Accounting) -> tuple[list[Step], bool]:
    """Settle what a controller before left, and what is to be stopped; what became of it, and whether there was any."""
    at = utc_now()
    with transaction(engine) as session:
        fence(session, leadership)
        order_clearing(session, at)
        loose = unsettled(session)
        settled = settle(session, loose, accounting, at)
    return list(settled.steps), bool(loose)


def explain(engine: Engine, lease: Lease, live: LiveState) -> None:
    """Write down why those wait that do."""
    lease.proceed()
    with transaction(engine) as session:
        fence(session, lease.leadership)
        explain_waiting(session, live, unix_ms(utc_now()))


def give_up_lost(
    engine: Engine, leadership: Leadership, nodes: Nodes, accounting: Accounting
) -> tuple[list[Step], list[str]]:
    """Give up nodes on which every lease that could have been renewed has lapsed for certain; what moved, and which."""
    at, steps = utc_now(), list[Step]()
    with transaction(engine) as session:
        fence(session, leadership)
        up = session.scalars(select(NodeRow.name).where(NodeRow.state != "down")).all()
        lost = nodes.lost(up, boottime_ms())
        for name in lost:
            _log.warning("node_lost", node=name)
            session.execute(update(NodeRow).where(NodeRow.name == name).values(state="down"))
            note(session, name, "lost", "no longer answers; what ran there is given up", at=at)
            steps += lose_node(session, leadership, name, accounting, at).steps
            nodes.forget(name)
    return steps, lost


def keep_funded(engine: Engine, leadership: Leadership, stopwatch: Stopwatch, accounting: Accounting) -> None:
    """Extend what is set aside for running jobs; have those stopped whose funds end."""
    at = utc_now()
    with transaction(engine) as session:
        fence(session, leadership)
        jobs = session.scalars(
            select(JobRow)
            .where(JobRow.state.in_(("starting", "running")), JobRow.stop_reason.is_(None))
            .order_by(JobRow.id)
            .options(defer(JobRow.argv), defer(JobRow.env))  # which may be large, and say nothing of funds
        ).all()
        elapsed = stopwatch.elapsed_ms(jobs, at, boottime_ms())
        broke = accounting.keep_funded(session, jobs, elapsed, at)
        for job in jobs:
            if job.id not in broke:
                continue
            session.refresh(job, ["stop_reason"], with_for_update=True)
            if job.stop_reason is None:  # its tenant may just have cancelled it
                job.stop_reason, job.reason = "funds_exhausted", broke[job.id]
