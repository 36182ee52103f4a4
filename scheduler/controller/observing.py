"""From what nodes report to what the database says of runs, under the guard of the epoch.

All reports are applied together, in a number of statements that does not depend on that of the nodes; only if that
fails, in another transaction each by itself, and of one that fails each half of its runs, so that only a run that
cannot be written stays behind. A run only moves forward. It ends when its node says so, when its node certainly does
not have it, or when the node is given up; its slices are free from the moment we know that, and no sooner.
"""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final
from uuid import UUID

import structlog
from sqlalchemy import DateTime, bindparam, func, select, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from kernel.bulk import among
from kernel.changes import Loose, write_changes
from kernel.clock import from_unix_ms
from kernel.prepared import Prepared
from scheduler.controller.ports import Accounting
from scheduler.controller.settling import CENTRES_STOPS, Settled, settle, settle_together
from scheduler.leadership import Leadership, fence
from scheduler.node.protocol import EndReason, Refusal, Report, RunState, RunStatus
from scheduler.tables import AllocationRow, DeviceRow, JobRow, RunRow

_ORDER: Final = {"placed": 0, "starting": 0, "running": 1, "stopping": 2, "ended": 3}
"""That a node prepares a run is not written down: it would cost every job a transaction and decides nothing."""

_FOR_NOW: Final = frozenset({"taken", "node_full"})
"""Refusals that only say "not now": the run is asked for again with the next sync."""

_RUN: Final = Loose(
    RunRow,
    *("id", "job_id", "attempt", "rank", "node", "state"),
    *("started_at", "ended_at", "exit_code", "end_reason", "end_detail"),
)
_TOLD: Final = Prepared(
    select(*_RUN.columns, JobRow.stop_reason)
    .join(JobRow, JobRow.id == RunRow.job_id)
    .where(among(RunRow.id, bindparam("runs")), RunRow.state != "ended")
    .order_by(RunRow.id)
    .with_for_update(of=RunRow)
)
_LIVE: Final = Prepared(
    select(*_RUN.columns)
    .where(RunRow.node == bindparam("node"), RunRow.state != "ended")
    .order_by(RunRow.id)
    .with_for_update()
)


def _giving_back() -> Prepared:
    """Ends the allocations of runs and says so of their devices; a clock that was set back empties no span."""
    least = func.lower(AllocationRow.span) + text("interval '1 microsecond'")
    freed = func.greatest(bindparam("at", type_=DateTime(timezone=True)), least)
    spans = (
        update(AllocationRow)
        .where(among(AllocationRow.run_id, bindparam("runs")), func.upper_inf(AllocationRow.span))
        .values(span=func.tstzrange(func.lower(AllocationRow.span), freed))
        .returning(
            AllocationRow.node, AllocationRow.device_index, func.upper(AllocationRow.span).label("until")
        )
        .cte()
    )
    latest = (
        select(spans.c.node, spans.c.device_index, func.max(spans.c.until).label("until"))
        .group_by(spans.c.node, spans.c.device_index)
        .cte()
    )
    return Prepared(
        update(DeviceRow)
        .where(DeviceRow.node == latest.c.node, DeviceRow.index == latest.c.device_index)
        .values(freed_at=func.greatest(DeviceRow.freed_at, latest.c.until))
    )


_FREE: Final = _giving_back()

_DETAIL_MAX: Final = 4000
_REASON_MAX: Final = 1000

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Observed:
    """A node's answer and what it answers.

    Args:
        asked: ids of the runs that were desired there.
        states: by id, how far the runs were that had not ended there; what is not among them is no news.
        only: ids of the runs about which it is to be believed; all, if left out.
    """

    report: Report
    asked: AbstractSet[str]
    states: Mapping[str, str]
    only: AbstractSet[str] | None = None

    def about(self, run_id: str) -> bool:
        """Whether it is to be believed about a run."""
        return self.only is None or run_id in self.only

    def without(self, spoilt: AbstractSet[str]) -> Report:
        """What of the report is kept when some runs are left out of it."""
        return replace(
            self.report,
            runs=tuple(run for run in self.report.runs if run.run_id not in spoilt),
            usage=tuple(record for record in self.report.usage if record.run_id not in spoilt),
        )

    @property
    def moves_nothing(self) -> bool:
        """Whether the report says nothing of runs and their usage that was not known when the node was asked."""
        report, known = self.report, self.states
        if report.usage or report.refused or not known.keys() <= self.asked:
            return False
        running = {run_id for run_id, state in known.items() if state == "running"}
        states = {status.run_id: status.state for status in report.runs}
        return running <= states.keys() <= self.asked and all(
            state is RunState.STARTING or (state is RunState.RUNNING and run_id in running)
            for run_id, state in states.items()
        )


def observe(
    session: Session,
    observed: Mapping[str, Observed],
    accounting: Accounting,
    at: datetime,
    *,
    apart: bool = False,
) -> tuple[Settled, dict[str, Report]]:
    """Apply reports in a fenced transaction; what cannot be applied is raised, and then nothing may be committed.

    Args:
        session: of the transaction.
        observed: by node.
        accounting: who keeps the usage.
        at: now.
        apart: apply each by itself: a run about which a report cannot be applied is left out, loudly, and holds nobody
            else up.

    Returns:
        What moved with it, and by node what is kept of its report: what is left out is reported again.
    """
    if apart:
        jobs, kept = _take_each(session, observed, accounting, at)
        return settle(session, jobs, accounting, at), kept
    touched = _take(session, observed, accounting, at)
    settled = settle_together(session, {run.job_id for run in touched}, accounting, at, touched)
    return settled, {node: one.report for node, one in observed.items()}


def _take_each(
    session: Session, observed: Mapping[str, Observed], accounting: Accounting, at: datetime
) -> tuple[set[UUID], dict[str, Report]]:
    """Leave out, loudly, what cannot be applied."""
    touched: set[UUID] = set()
    kept = {}
    for node, one in sorted(observed.items()):
        report = one.report
        told = {run.run_id for run in report.runs} | {record.run_id for record in report.usage}
        told |= {refusal.run_id for refusal in report.refused}
        runs = sorted(told | one.states.keys())
        moved, spoilt = _take_halves(session, node, one, runs, accounting, at)
        touched |= moved
        kept[node] = one.without(spoilt)
    return touched, kept


def _take_halves(
    session: Session, node: str, one: Observed, runs: Sequence[str], accounting: Accounting, at: datetime
) -> tuple[set[UUID], set[str]]:
    """Apply what a node says of these runs; of those that cannot be applied, each is found by halving and left out."""
    try:
        with session.begin_nested():
            touched = _take(session, {node: replace(one, only=frozenset(runs))}, accounting, at)
        return {run.job_id for run in touched}, set()
    except Exception as error:  # noqa: BLE001 - the same
        raise_if_away(error)
        if len(runs) <= 1:
            reason = f"{type(error).__name__}: {error}"[:_REASON_MAX]
            _log.error("report_not_applied", node=node, run="".join(runs), reason=reason)
            return set(), set(runs)
    middle = len(runs) // 2
    parts = [_take_halves(session, node, one, part, accounting, at) for part in (runs[:middle], runs[middle:])]
    return {job for moved, _ in parts for job in moved}, {run for _, spoilt in parts for run in spoilt}


def raise_if_away(error: Exception) -> None:
    """A database that is away is no fault of a row's."""
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        raise error


def _take(
    session: Session, observed: Mapping[str, Observed], accounting: Accounting, at: datetime
) -> list[RunRow]:
    usage = {
        node: [record for record in one.report.usage if one.about(record.run_id)]
        for node, one in sorted(observed.items())
    }
    if any(usage.values()):
        accounting.record_usage(session, usage, at)
    return _apply(session, observed, at)


def lose_node(
    session: Session, leadership: Leadership, node: str, accounting: Accounting, at: datetime
) -> Settled:
    """End every run of a node whose leases have lapsed unseen. Raises LeadershipLost."""
    fence(session, leadership)
    runs = _RUN.rows(_LIVE(session, node=node))
    for run in runs:
        _end_run(run, "node_lost", f"node {node} has not been heard of", None, at)
    write_changes(session, runs)
    _free(session, runs, at)
    return settle(session, {run.job_id for run in runs}, accounting, at)


def correct_lost(session: Session, report: Report) -> None:
    """A node that was given up is back: what it has not heard of never started, and nobody need wait for its usage.

    What it has run it reports until that is acknowledged, so only its first report can tell; the caller has fenced.
    """
    known = {status.run_id for status in report.runs} | {record.run_id for record in report.usage}
    query = select(RunRow).where(
        RunRow.node == report.node, RunRow.end_reason == "node_lost", RunRow.started_at.is_(None)
    )
    for run in session.scalars(query.order_by(RunRow.id).with_for_update()):
        if str(run.id) not in known:
            run.end_reason = "never_started"
            run.end_detail = f"{run.end_detail}, and had not started it"
    session.flush()


def _apply(session: Session, observed: Mapping[str, Observed], at: datetime) -> list[RunRow]:
    """Move the runs about which there is something to say; only those are read and locked. Returns those that moved.

    Nobody but this controller moves runs, so they are still as they were when their nodes were asked.
    """
    statuses = {(node, one.run_id): one for node, seen in observed.items() for one in seen.report.runs}
    refusals = {(node, one.run_id): one for node, seen in observed.items() for one in seen.report.refused}
    told = []
    for node, seen in observed.items():
        for run_id, state in seen.states.items():
            status = statuses.get((node, run_id))
            if seen.about(run_id) and (
                _ORDER[status.state] > _ORDER[state]
                if status is not None
                else (node, run_id) in refusals or run_id not in seen.asked or state != "placed"
            ):
                told.append(run_id)
    if not told:
        return []
    touched: list[RunRow] = []
    found = _TOLD(session, runs=told)
    for run, (*_, stop_reason) in zip(_RUN.rows(found), found, strict=True):
        at_node = (run.node, str(run.id))
        if at_node in statuses:
            moved = _advance(run, statuses[at_node], stop_reason, at)
        elif at_node in refusals:
            moved = _refuse(run, refusals[at_node], at)
        else:
            moved = _miss(run, at)
        if moved:
            touched.append(run)
    write_changes(session, touched)
    _free(session, [run for run in touched if run.state == "ended"], at)
    return touched


def _advance(run: RunRow, status: RunStatus, stop_reason: str | None, at: datetime) -> bool:
    if _ORDER[status.state] <= _ORDER[run.state]:
        return False
    run.state = status.state.value
    if status.started_unix_ms is not None:
        run.started_at = from_unix_ms(status.started_unix_ms)
    if status.state is RunState.ENDED:
        ended = from_unix_ms(status.ended_unix_ms) if status.ended_unix_ms is not None else at
        reason = (status.end_reason or EndReason.SUPERVISOR_LOST).value
        if reason == EndReason.STOPPED and stop_reason is None:
            reason = "node_stopped"  # nobody asked for it: the node was shut down in order
        elif reason == EndReason.STOPPED and stop_reason in CENTRES_STOPS:
            reason = stop_reason
        code = status.exit_code if status.exit_code is not None else -(status.signal or 0) or None
        _end_run(run, reason, status.reason, code, ended)
    return True


def _refuse(run: RunRow, refusal: Refusal, at: datetime) -> bool:
    if refusal.code in _FOR_NOW:
        _log.warning("run_not_started_now", run=str(run.id), node=run.node, reason=refusal.reason)
        return False
    reason = "supervisor_lost" if refusal.code == "already_ran" else "start_failed"
    _end_run(run, reason, refusal.reason, None, at)
    return True


def _miss(run: RunRow, at: datetime) -> bool:
    """The node certainly does not have a run that is no longer asked of it, or that it said was running.

    A run it has not started is not in its journal, and no record of it will ever come. One that runs stays in its
    reports until its end is acknowledged; where it is missing, the supervisor is another one or has lost its journal.
    """
    if run.state == "placed":
        _end_run(run, "never_started", "it was stopped before it was started", None, at)
    else:
        _end_run(run, "supervisor_lost", f"node {run.node} has forgotten it", None, at)
    return True


def _end_run(run: RunRow, reason: str, detail: str, code: int | None, ended: datetime) -> None:
    run.state, run.end_reason, run.end_detail = "ended", reason, _storable(detail)
    run.exit_code, run.ended_at = code, ended


def _storable(sentence: str) -> str:
    """A node's sentence, which may hold what a job printed, without what the database cannot keep."""
    text = sentence[:_DETAIL_MAX].encode(errors="replace").decode()
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


def _free(session: Session, runs: Sequence[RunRow], at: datetime) -> None:
    """Give back what runs held that have ended, from when we know, which is never before the process was dead."""
    if runs:
        _FREE(session, runs=[run.id for run in runs], at=at)
