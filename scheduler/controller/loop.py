"""The controller: lead, hear, admit, have it started; then wait for a word or the next tick.

Every step decides on what the database says, commits, and only then talks to nodes. Killing it anywhere loses
nothing: the next leader reads the same tables, syncs nodes to the same intents and gets the same reports again.
Nothing that goes wrong in a step ends the process: the next tick begins again from the database.
"""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Final

import structlog
from sqlalchemy import DateTime, Engine, bindparam, update
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import Session

from kernel.bulk import among
from kernel.clock import boottime_ms, unix_ms, utc_now
from kernel.database import glance, transaction
from kernel.prepared import Prepared
from scheduler.controller.admitting import Admitted, admit
from scheduler.controller.asking import Question, questions
from scheduler.controller.chores import explain, give_up_lost, keep_funded, settle_loose, withdraw
from scheduler.controller.inventory import record_node
from scheduler.controller.lease import Candidate, Lease, renewals_ms
from scheduler.controller.live_state import LiveState
from scheduler.controller.nodes import Nodes
from scheduler.controller.observing import Observed, correct_lost, observe, raise_if_away
from scheduler.controller.ports import Accounting, Machines
from scheduler.controller.settling import Settled
from scheduler.controller.stopwatch import Stopwatch
from scheduler.controller.wakeups import Wakeups, over
from scheduler.controller.watching import Nobody, Step, Watcher
from scheduler.controller.waves import Waves, breath_ms, least_ms, starting_runs
from scheduler.jobs import WAKE_CHANNEL
from scheduler.leadership import Leadership, fence
from scheduler.node.protocol import Report
from scheduler.policy.model import Plan, Queue
from scheduler.policy.settings import PolicySettings, policy_named
from scheduler.refusals import LeadershipLost
from scheduler.store import Store
from scheduler.tables import NodeRow

_ROUNDS_MAX: Final = 20
"""Cycles in one step; what is still moving after so many is taken up at the next tick."""

_ROOM: Final = "room"
"""The word with which a step leaves the room it heard of last to the next one."""

_STANDBY_LOOK_MS: Final = 250
"""How often a standby looks whether the leader's lease has lapsed."""

_OVERDUE_LOOK_MS: Final = 40
"""How soon a leader looks again at a node that is lost and could not be given up."""

_MANY: Final = 500
_SHARE: Final = 8
_SPARED_MS_MAX: Final = 4000
"""What looks at every job (why it waits, whether its funds last) is done with every tick; where there are more than so
many, so much seldomer that it takes an eighth of the time at most, and every four seconds at least: a quarter of what
is held beyond the stop of a job whose funds end."""

_PREPARED_SHARE: Final = 32
"""A standby takes so small a part of its time to keep its picture, as long as that is never older than four seconds."""

_SEEN: Final = Prepared(
    update(NodeRow)
    .where(among(NodeRow.name, bindparam("nodes")))
    .values(last_seen_at=bindparam("at", type_=DateTime(timezone=True)))
)

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Pace:
    """How often and how patiently, in milliseconds."""

    tick_ms: int
    leader_lease_ms: int
    node_lease_ms: int


@dataclass
class _Term:
    """One term of leadership and what was learnt in it; all but the epoch may be lost."""

    lease: Lease
    nodes: Nodes
    live: LiveState
    waves: Waves
    stopwatch: Stopwatch
    starts: int = 0
    """Jobs that the last step started."""
    room: bool = False
    """Whether it heard of devices given back and left them to the next."""
    starting: set[str] = field(default_factory=set)
    """Nodes where jobs are starting that it admitted."""
    ahead: dict[str, Question] = field(default_factory=dict)
    """What nodes are asked as soon as what was started there is over."""
    spared: dict[str, int] = field(default_factory=dict)
    """Until when what is done sparingly is left."""
    seen_boot_ms: dict[str, int] = field(default_factory=dict)
    """When it was last written down that a node was seen."""

    @property
    def leadership(self) -> Leadership:
        """What every transaction of the term is fenced with."""
        return self.lease.leadership


class Controller:
    """One process of the controller; `run` returns when `stop` was called.

    `queues` are those the operator configured; a queue named by a tenant's id is that tenant's, everybody else gets one
    without guarantee and bound.
    """

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
        policy: PolicySettings | None = None,
        queues: Sequence[Queue] = (),
        watcher: Watcher | None = None,
    ) -> None:
        self._engine = engine
        self._machines = machines
        self._accounting = accounting
        self._store = store
        self._holder = holder
        self._pace = pace
        self._wakeups = wakeups
        self._policy = policy or policy_named("default")
        self._queues = tuple(queues)
        self._watcher = watcher or Nobody()
        self._candidate = Candidate(engine, holder, pace.leader_lease_ms)
        self._term: _Term | None = None
        self._prepared = LiveState(self._policy, self._queues)
        self._prepare_at = 0
        self._untold: list[Step] = []
        self._stopping = False

    def stop(self) -> None:
        """Let `run` return after the step it is in; running jobs are not touched."""
        self._stopping = True
        self._wakeups.put("stop")

    def run(self) -> None:
        """Lead while the lease can be had, stand by while it cannot; a thread renews it as long as this one lives."""
        done = threading.Event()
        threading.Thread(target=self._keep_lease, args=(done,), name="lease", daemon=True).start()
        try:
            self._run()
        finally:
            done.set()
            self.resign()

    def _run(self) -> None:
        next_tick = rested = rested_least = 0
        while not self._stopping:
            words = self._wakeups.wait(max(0, next_tick - boottime_ms()) / 1000)
            now_ms = boottime_ms()
            words |= self._wakeups.gather((rested - now_ms) / 1000, (rested_least - now_ms) / 1000)
            ticking = boottime_ms() >= next_tick
            if ticking:
                next_tick = boottime_ms() + self._pace.tick_ms
            began = boottime_ms()
            breath = self.attempt(words, ticking=ticking)
            ended = boottime_ms()
            rested, rested_least = ended + breath, ended + min(breath, least_ms(ended - began))
            next_tick = min(next_tick, self._next_look())

    def _breath_ms(self, took_ms: int) -> int:
        """How long to gather words after a step."""
        term = self._led
        wave_ms, waiting = term.waves.over_ms(term.starting), bool(term.live.policy.queued)
        return breath_ms(took_ms, wave_ms, starts=term.starts, room=term.room, waiting=waiting)

    def _expect(self, breath_ms: int) -> None:
        """Have the breath end as soon as all that was started is over and heard, on all nodes where anything was."""
        term = self._led
        waves = term.waves.awaited(term.starting)
        self._wakeups.expect([over(name) for name in waves])
        if waves and waves.keys() <= term.ahead.keys():
            asked = {name: term.ahead[name].once_over(runs, breath_ms) for name, runs in waves.items()}
            self._machines.ask_ahead(asked)

    def _keep_lease(self, done: threading.Event) -> None:
        while not done.wait(renewals_ms(self._pace.leader_lease_ms) / 1000):
            term = self._term
            if term is not None:
                term.lease.keep()

    def _next_look(self) -> int:
        """When to look though nobody says a word and no tick is due."""
        if self._term is None:
            return boottime_ms() + _STANDBY_LOOK_MS
        lost_next, now_ms = self._term.nodes.lost_next(), boottime_ms()
        return now_ms + self._pace.tick_ms if lost_next is None else max(lost_next, now_ms + _OVERDUE_LOOK_MS)

    def attempt(self, words: Iterable[str], *, ticking: bool) -> int:
        """Lead and step; whatever goes wrong is logged, and the next tick begins again from the database.

        Returns:
            For how many milliseconds to gather words then; to one who only stands by they say nothing.
        """
        began = boottime_ms()
        self._wakeups.expect([])
        try:
            if self.lead():
                with self._watcher.timing("tick"):
                    self.step(words, ticking=ticking)
                breath = self._breath_ms(boottime_ms() - began)
                self._expect(breath)
                return breath
            if ticking:
                self._prepare()
        except LeadershipLost as lost:
            _log.warning("leadership_lost", reason=str(lost))
            self._term = None
        except DBAPIError as error:
            # The database is away or refused. Whether the lease survives that is for the lease to say.
            _log.error("database_failed", reason=str(error.orig))
            self._watcher.failed()
        except Exception:  # noqa: BLE001 - the loop outlives every step
            _log.exception("step_failed")
            self._watcher.failed()
            if self._term is not None:
                self._term.live = LiveState(self._policy, self._queues)
        finally:
            self._watcher.led(leading=self._term is not None)
        if self._term is None:
            return _STANDBY_LOOK_MS
        return breath_ms(boottime_ms() - began, None, starts=0, room=False, waiting=True)

    def lead(self) -> bool:
        """Go on leading, or try to get the lease; whether this controller leads. Raises LeadershipLost."""
        if self._term is not None:
            self._term.lease.proceed()
            return True
        lease = self._candidate.take()
        if lease is None:
            return False
        _log.info("leading", epoch=lease.leadership.epoch, holder=self._holder)
        nodes = Nodes(self._pace.node_lease_ms, boottime_ms())
        self._term = _Term(lease, nodes, self._prepared, Waves(), Stopwatch())
        self._prepared = LiveState(self._policy, self._queues)
        return True

    def _prepare(self) -> None:
        """While another leads: keep the picture up to date, so that taking over takes no time."""
        if boottime_ms() < self._prepare_at:
            return
        began = boottime_ms()
        with glance(self._engine) as session:
            self._prepared.refresh(session, unix_ms(utc_now()), frozenset())
        pause_ms = min(_PREPARED_SHARE * (boottime_ms() - began), _SPARED_MS_MAX)
        self._prepare_at = boottime_ms() + max(pause_ms, self._pace.tick_ms)

    def resign(self) -> None:
        """Let a standby take over at once; if the database is away, the lease lapses by itself."""
        if self._term is None:
            return
        try:
            self._term.lease.resign()
        except DBAPIError as error:
            _log.warning("not_resigned", reason=str(error.orig))
        self._term = None

    def step(self, words: Iterable[str], *, ticking: bool) -> None:
        """Hear what moved, admit into the room that made, have it started, until nothing is due. Raises LeadershipLost.

        Room that is only heard of while others are started is the next step's: after the breath between two steps
        there is more of it, and a step costs little more for many jobs than for one. The watcher hears at its end of
        all that was committed, also when it fails.
        """
        try:
            self._step(words, ticking=ticking)
        finally:
            untold, self._untold = self._untold, []
            self._watcher.moved(untold)

    def _step(self, words: Iterable[str], *, ticking: bool) -> None:
        self._led.room, self._led.starts, self._led.starting = False, 0, set()
        reachable = set(self._machines.reachable())
        due = set(reachable) if ticking else set[str]()
        if ticking:
            term = self._led
            steps, lost = give_up_lost(self._engine, term.leadership, term.nodes, self._accounting)
            for name in lost:
                term.ahead.pop(name, None)  # what it said before that is no word of one that is back
            self._tell(steps)
            funding = partial(keep_funded, self._engine, term.leadership, term.stopwatch, self._accounting)
            self._sparingly("fund", len(term.live.policy.running), funding)
        if WAKE_CHANNEL in words or ticking:
            due |= self._withdraw() & reachable
        telling = reachable.intersection(words) | ((reachable - self._led.nodes.answering()) & due)
        if telling:
            due = self._sync(telling, reachable)[1] | (due - telling)
        freed = True
        for _ in range(_ROUNDS_MAX):
            if freed:
                due |= self._admit() & reachable
            if not due:
                break
            freed, due = self._sync(due, reachable)
            if freed and not due:
                self._led.room = True
                self._wakeups.put(_ROOM)
                break
        if ticking:
            explaining = partial(explain, self._engine, self._led.lease, self._led.live)
            self._sparingly("explain", len(self._led.live.policy.queued), explaining)
        self._watch()
        self._think_ahead()

    def _think_ahead(self) -> None:
        """Make up, while others work, what nodes are to be asked first when what was started there is over."""
        term = self._led
        term.ahead = {}
        if waves := term.waves.awaited(term.starting):
            term.ahead = questions(self._engine, self._store, term.nodes, term.leadership.epoch, waves.keys())

    def _watch(self) -> None:
        """Have nodes watched, but for those that are asked by the next step anyway: a start is news in a moment."""
        for name in sorted(self._led.starting):
            self._wakeups.put(name)
        self._machines.watch(self._led.nodes.answering() - self._led.starting)

    def _admit(self) -> set[str]:
        """Plan on what the database says, with no transaction open, and commit the plan; the nodes to sync for it."""
        nodes: set[str] = set()
        term = self._led
        for _ in range(_ROUNDS_MAX):
            term.lease.proceed()
            with self._watcher.timing("admit"):
                at = utc_now()
                with glance(self._engine) as session:
                    term.live.refresh(session, unix_ms(at), term.nodes.answering())
                plan = term.live.plan(unix_ms(at))
                if not plan.starts and not plan.evictions:
                    self._watcher.planned(starts=0, evictions=0)
                    break
                try:
                    admitted = self._write_plan(plan, at)
                except IntegrityError:
                    admitted = self._write_plan(plan, at, apart=True)
            term.starts += admitted.starts
            term.starting.update(*(step.nodes for step in admitted.steps if step.name == "admitted"))
            self._watcher.planned(starts=admitted.starts, evictions=admitted.evictions)
            self._tell(admitted.steps)
            nodes |= admitted.nodes
            if not admitted.stood_back:
                break
        return nodes

    def _write_plan(self, plan: Plan, at: datetime, *, apart: bool = False) -> Admitted:
        term = self._led
        with transaction(self._engine) as session:
            return admit(session, term.leadership, term.live, plan, self._accounting, at, apart=apart)

    def _sparingly(self, name: str, jobs: int, work: Callable[[], None]) -> None:
        began = boottime_ms()
        if jobs > _MANY and began < self._led.spared.get(name, 0):
            return
        work()
        ended = boottime_ms()
        self._led.spared[name] = ended + min(_SHARE * (ended - began), _SPARED_MS_MAX)

    def _withdraw(self) -> set[str]:
        """End what was cancelled while it waited; returns the nodes, if anything must be stopped."""
        term, more = self._led, True
        while more:
            steps, more = withdraw(self._engine, term.lease, self._accounting)
            self._tell(steps)
        steps, loose = settle_loose(self._engine, term.leadership, self._accounting)
        self._tell(steps)
        return set(self._machines.reachable()) if loose else set()

    def _sync(self, names: set[str], reachable: set[str]) -> tuple[bool, set[str]]:
        """One round trip to these nodes; whether devices were given back, and the nodes worth another one.

        A node that was asked ahead and has reported is not asked again.
        """
        term = self._led
        ahead = {name: term.ahead.pop(name) for name in names & term.ahead.keys()}
        said = {name: report for name, report in self._machines.early(names).items() if name in ahead}
        asked = {name: ahead[name] for name in said}
        if silent := names - said.keys():
            now = questions(self._engine, self._store, term.nodes, term.leadership.epoch, silent)
            term.lease.proceed()
            asked |= now
            said |= self._machines.sync({name: question.request for name, question in now.items()})
        reports = {
            name: report
            for name, report in said.items()
            if name in asked and asked[name].is_answered(name, report)
        }
        heard_ms, at = boottime_ms(), utc_now()
        term.lease.proceed()
        observed = {name: asked[name].observed(report) for name, report in reports.items()}
        settled, kept = self._observe(observed, at)
        for name, report in kept.items():
            term.nodes.answered(name, report, heard_ms)
            term.waves.heard(name, report)
        term.starting -= {name for name, report in kept.items() if not starting_runs(report)}
        more = {
            name
            for name in kept
            if (kept[name].usage and reports[name].usage_pending)
            or asked[name].wanted.later
            or reports[name].instance != asked[name].request.instance  # which has only answered
        }
        return settled.freed, set(reachable) if settled.stopping else more

    def _observe(self, observed: Mapping[str, Observed], at: datetime) -> tuple[Settled, dict[str, Report]]:
        """Write down what nodes said, if it is news, and every tick that they were seen."""
        term, now_ms = self._led, boottime_ms()
        fresh = {name for name in observed if now_ms < term.seen_boot_ms.get(name, 0) + self._pace.tick_ms}
        if observed and all(
            name in fresh and one.moves_nothing and not term.nodes.describes(name, one.report)
            for name, one in observed.items()
        ):
            return Settled(), {name: one.report for name, one in observed.items()}
        try:
            settled, kept = self._write_reports(observed, fresh, at)
        except LeadershipLost:
            raise
        except Exception as error:  # noqa: BLE001 - one row must not stop all others
            raise_if_away(error)
            settled, kept = self._write_reports(observed, fresh, at, apart=True)
        term.seen_boot_ms |= dict.fromkeys(kept.keys() - fresh, now_ms)
        self._tell(settled.steps)
        return settled, kept

    def _write_reports(
        self, observed: Mapping[str, Observed], fresh: AbstractSet[str], at: datetime, *, apart: bool = False
    ) -> tuple[Settled, dict[str, Report]]:
        with transaction(self._engine) as session:
            fence(session, self._led.leadership)
            self._describe(session, {name: one.report for name, one in observed.items()}, fresh)
            return observe(session, observed, self._accounting, at, apart=apart)

    def _tell(self, steps: Sequence[Step]) -> None:
        """Tell what is committed: the picture at once, the watcher when no node waits for it."""
        self._led.live.moved(steps)
        self._untold += steps

    def _describe(self, session: Session, reports: Mapping[str, Report], fresh: AbstractSet[str]) -> None:
        at = utc_now()
        for name, report in sorted(reports.items()):
            if self._led.nodes.describes(name, report) and record_node(session, report, at):
                correct_lost(session, report)
        if stale := sorted(reports.keys() - fresh):
            _SEEN(session, nodes=stale, at=at)

    @property
    def _led(self) -> _Term:
        assert self._term is not None  # noqa: S101 - lead() comes before step()
        return self._term
