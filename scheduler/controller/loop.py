"""The controller: lead, admit, sync, observe, until nothing moves; then wait for a word or the next tick.

Every step decides on what the database says, commits, and only then talks to nodes. Killing it anywhere loses
nothing: the next leader reads the same tables, syncs nodes to the same intents and gets the same reports again.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

import structlog
from sqlalchemy import Engine, select, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from kernel.clock import boottime_ms, utc_now
from kernel.database import transaction
from scheduler.controller.admitting import admit
from scheduler.controller.desired import Store, desired_runs
from scheduler.controller.inventory import record_node
from scheduler.controller.live_state import LiveState
from scheduler.controller.observing import end_waiting, lose_node, observe, settle
from scheduler.controller.ports import Accounting, Machines
from scheduler.controller.wakeups import Wakeups
from scheduler.jobs import WAKE_CHANNEL
from scheduler.leadership import Leadership, acquire, fence, renew, resign
from scheduler.node.protocol import Report, RunState, SyncRequest
from scheduler.policy.settings import PolicySettings
from scheduler.refusals import LeadershipLost
from scheduler.tables import JobRow, NodeRow

_ROUNDS_MAX: Final = 20
"""Cycles in one step; what is still moving after so many is taken up at the next tick."""

_STOP_MARGIN_MS: Final = 3000
"""What a supervisor whose lease has lapsed may take to end its runs and have the kernel reap them."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Pace:
    """How often and how patiently, in milliseconds."""

    tick_ms: int
    leader_lease_ms: int
    node_lease_ms: int


@dataclass
class _Node:
    """What this controller remembers of a node between syncs; all of it may be lost."""

    acknowledged_usage: tuple[str, ...] = ()
    acknowledged_exits: tuple[str, ...] = ()
    asked_boot_ms: int = 0
    described: Report | None = None


class Controller:
    """One process of the controller; `run` returns when `stop` was called."""

    def __init__(
        self,
        engine: Engine,
        machines: Machines,
        accounting: Accounting,
        store: Store,
        *,
        holder: str,
        pace: Pace,
        wakeups: Wakeups,
    ) -> None:
        self._engine = engine
        self._machines = machines
        self._accounting = accounting
        self._store = store
        self._holder = holder
        self._pace = pace
        self._wakeups = wakeups
        self._live = LiveState(PolicySettings())
        self._leadership: Leadership | None = None
        self._nodes: dict[str, _Node] = {}
        self._stopping = False

    def stop(self) -> None:
        """Let `run` return after the step it is in; running jobs are not touched."""
        self._stopping = True
        self._wakeups.put("stop")

    def run(self) -> None:
        """Lead while the lease can be had, stand by while it cannot."""
        next_tick = 0
        while not self._stopping:
            words = self._wakeups.wait(max(0, next_tick - boottime_ms()) / 1000)
            ticking = boottime_ms() >= next_tick
            if ticking:
                next_tick = boottime_ms() + self._pace.tick_ms
            try:
                if self._lead(utc_now()):
                    self.step(words, ticking=ticking)
            except LeadershipLost as lost:
                _log.warning("leadership_lost", reason=str(lost))
                self._leadership = None
            except OperationalError as error:
                # The database is away. Whether the lease survives that is for the lease to say.
                _log.error("database_unreachable", reason=str(error.orig))
        if self._leadership is not None:
            with transaction(self._engine) as session:
                resign(session, self._leadership, utc_now())

    def step(self, words: Iterable[str], *, ticking: bool) -> None:
        """Admit, sync and observe until nothing moves. Raises LeadershipLost."""
        reachable = self._machines.reachable()
        due = set(reachable) if ticking else {word for word in words if word in reachable}
        if ticking:
            self._watch_leases(reachable)
            self._keep_funded()
        if WAKE_CHANNEL in words or ticking:
            due |= self._withdraw()
        for _ in range(_ROUNDS_MAX):
            admitted = self._admit()
            due |= admitted
            if not due:
                return
            moved = self._sync(due & set(reachable))
            due = set(reachable) if moved else set()

    def _lead(self, at: datetime) -> bool:
        lease = timedelta(milliseconds=self._pace.leader_lease_ms)
        with transaction(self._engine) as session:
            if self._leadership is not None:
                renew(session, self._leadership, lease, at)
                return True
            self._leadership = acquire(session, self._holder, lease, at)
        if self._leadership is None:
            return False
        _log.info("leading", epoch=self._leadership.epoch, holder=self._holder)
        self._live = LiveState(PolicySettings())
        self._nodes = {}
        return True

    def _admit(self) -> set[str]:
        nodes: set[str] = set()
        while True:
            with transaction(self._engine) as session:
                admitted = admit(session, self._led(), self._live, self._accounting, utc_now())
            nodes |= admitted.nodes
            if not admitted.stood_back:
                return nodes

    def _withdraw(self) -> set[str]:
        """End what was cancelled while it waited; returns the nodes where something must be stopped."""
        at = utc_now()
        with transaction(self._engine) as session:
            end_waiting(session, self._led(), self._accounting, at)
            stopping = session.scalars(
                select(JobRow).where(
                    JobRow.stop_reason.is_not(None), JobRow.state.in_(("starting", "running", "stopping"))
                )
            ).all()
            settle(session, {job.id for job in stopping}, self._accounting, at)
        return set(self._machines.reachable()) if stopping else set()

    def _sync(self, names: set[str]) -> bool:
        with transaction(self._engine) as session:
            fence(session, self._led())
            desired = desired_runs(session, self._store)
        requests: dict[str, SyncRequest] = {}
        for name in sorted(names):
            node = self._nodes.setdefault(name, _Node())
            node.asked_boot_ms = boottime_ms()
            requests[name] = SyncRequest(
                epoch=self._led().epoch,
                lease_ms=self._pace.node_lease_ms,
                desired=tuple(desired.get(name, ())),
                acknowledged_usage=node.acknowledged_usage,
                acknowledged_exits=node.acknowledged_exits,
            )
        reports = self._machines.sync(requests)
        at = utc_now()
        with transaction(self._engine) as session:
            self._describe(session, reports, at)
            moved = observe(session, self._led(), reports, self._accounting, at)
        for name, report in reports.items():
            self._remember(name, report)
        return moved or any(report.usage_pending > len(report.usage) for report in reports.values())

    def _remember(self, name: str, report: Report) -> None:
        """What is now safe in the database need not be reported again."""
        node = self._nodes[name]
        node.acknowledged_usage = tuple(record.id for record in report.usage)
        node.acknowledged_exits = tuple(run.run_id for run in report.runs if run.state is RunState.ENDED)
        node.described = _description(report)

    def _describe(self, session: Session, reports: Mapping[str, Report], at: datetime) -> None:
        fence(session, self._led())
        for name, report in sorted(reports.items()):
            if self._nodes[name].described != _description(report):
                record_node(session, report, at)
        session.execute(update(NodeRow).where(NodeRow.name.in_(list(reports))).values(last_seen_at=at))

    def _watch_leases(self, reachable: Iterable[str]) -> None:
        """Give up nodes on which every lease this controller could have renewed has lapsed for certain."""
        patience = self._pace.node_lease_ms + _STOP_MARGIN_MS
        at, now_ms = utc_now(), boottime_ms()
        with transaction(self._engine) as session:
            fence(session, self._led())
            rows = session.scalars(select(NodeRow).where(NodeRow.state != "down").order_by(NodeRow.name)).all()
            for row in rows:
                node = self._nodes.setdefault(row.name, _Node(asked_boot_ms=now_ms))
                unseen_ms = (at - row.last_seen_at) // timedelta(milliseconds=1)
                if unseen_ms > patience and (now_ms - node.asked_boot_ms > patience or row.name in reachable):
                    if row.name in reachable and now_ms - node.asked_boot_ms <= patience:
                        continue
                    _log.warning("node_lost", node=row.name, unseen_ms=unseen_ms)
                    row.state = "down"
                    lose_node(session, self._led(), row.name, self._accounting, at)

    def _keep_funded(self) -> None:
        at = utc_now()
        with transaction(self._engine) as session:
            fence(session, self._led())
            jobs = session.scalars(
                select(JobRow)
                .where(JobRow.state.in_(("starting", "running")), JobRow.stop_reason.is_(None))
                .order_by(JobRow.id)
            ).all()
            broke = set(self._accounting.keep_funded(session, jobs, at))
            for job in jobs:
                if job.id in broke:
                    job.stop_reason = "funds_exhausted"

    def _led(self) -> Leadership:
        assert self._leadership is not None  # noqa: S101 - run() leads before it steps
        return self._leadership


def _description(report: Report) -> Report:
    """The part of a report that describes the node rather than what happens on it."""
    return replace(report, runs=(), usage=(), usage_pending=0, refused=(), seq=0, epoch_seen=0)
