"""What controllers make of nodes that answer strangely."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from uuid import UUID

import psycopg
import pytest
from sqlalchemy import Engine, select, text
from sqlalchemy.orm import Session

from kernel.clock import boottime_ms, unix_ms, utc_now
from kernel.database import transaction
from kernel.ids import new_id
from scheduler.controller import desired
from scheduler.controller.admitting import admit
from scheduler.controller.live_state import LiveState
from scheduler.controller.nodes import STOP_MARGIN_MS, Nodes
from scheduler.controller.observing import Observed
from scheduler.controller.settling import NOTICED_MS, RETRY_MS
from scheduler.controller.wakeups import notifications
from scheduler.jobs import WAKE_CHANNEL, cancel_job, change_dependencies, hold_job
from scheduler.leadership import acquire, standing
from scheduler.node.protocol import (
    UNAVAILABLE,
    EndReason,
    Isolation,
    Report,
    RunState,
    RunStatus,
    SyncRequest,
    UsageRecord,
)
from scheduler.policy.settings import policy_named
from scheduler.tables import JobRow, NodeEventRow, RunRow
from tests.conftest import Database
from tests.scheduler.controller.counted import BEGAN_MS, Centre, as_it_is, simulated


def test_a_sentence_with_what_the_database_cannot_keep_costs_its_node_nothing(centre: Centre) -> None:
    spoilt, neighbour = centre.started(), centre.started()

    def spoil(report: Report) -> Report:
        runs = (
            replace(run, state=RunState.ENDED, end_reason=EndReason.START_FAILED, reason="\0\udcff" * 9000)
            if run.job_id == str(spoilt)
            else run
            for run in report.runs
        )
        return replace(report, runs=tuple(runs))

    centre.machines.falsified = spoil
    centre.tick()
    assert centre.job(spoilt).state == "failed"
    assert "\N{REPLACEMENT CHARACTER}" in centre.job(spoilt).reason
    centre.tick()
    assert len(centre.machines.requests[-1][1].going_on) == 1
    assert centre.job(neighbour).state == "running"


def test_a_run_that_its_node_has_forgotten_is_lost_and_not_started_again(centre: Centre) -> None:
    job_id = centre.started()
    centre.machines.nodes["n"] = simulated("n", instance="second")
    centre.tick()
    assert centre.ends(job_id) == ["supervisor_lost"]
    assert centre.job(job_id).state == "failed"


def _a_gang_whose_first_rank_fails(centre: Centre, ago_ms: int = 0, **changes: object) -> UUID:
    """It runs on two nodes, of which one will say that its rank ended by itself with status 1."""
    centre.machines.nodes["m"] = simulated("m")
    centre.tick()
    gang = centre.started(node_count=2, devices_per_node=4, **changes)
    ended_ms = unix_ms(utc_now()) - ago_ms

    def fail(report: Report) -> Report:
        runs = (
            replace(
                run,
                state=RunState.ENDED,
                end_reason=EndReason.EXITED,
                exit_code=1,
                ended_unix_ms=ended_ms,
            )
            if run.rank == 0
            else run
            for run in report.runs
        )
        return replace(report, runs=tuple(runs))

    centre.machines.falsified = fail
    return gang


@pytest.mark.parametrize(
    ("ago_ms", "state", "lost_attempts"), [(0, "queued", [1]), (2 * NOTICED_MS, "failed", [])]
)
def test_a_gang_whose_ranks_fail_when_one_is_lost_is_tried_again_and_one_that_had_failed_before_is_not(
    centre: Centre, ago_ms: int, state: str, lost_attempts: list[int]
) -> None:
    gang = _a_gang_whose_first_rank_fails(centre, ago_ms, max_retries=1)
    lost = centre.node_of(gang, rank=1)
    centre.machines.nodes[lost] = simulated(lost, instance="second")
    centre.tick()
    assert centre.ends(gang) == ["exited", "supervisor_lost"]
    job = centre.job(gang)
    assert (job.state, job.lost_attempts) == (state, lost_attempts)


def test_a_rank_that_fails_because_another_one_was_stopped_for_the_centre_fails_no_job(centre: Centre) -> None:
    gang = _a_gang_whose_first_rank_fails(centre)
    with transaction(centre.engine) as session:
        session.execute(text("UPDATE jobs SET state = 'stopping', stop_reason = 'preempted'"))
    centre.tick()
    assert sorted(map(str, centre.ends(gang))) == ["exited", "preempted"]
    job = centre.job(gang)
    assert (job.state, job.evictions, job.lost_attempts) == ("queued", 1, [1])


def test_a_node_that_comes_back_with_other_cards_sells_each_of_them_once(
    centre: Centre, capsys: pytest.CaptureFixture[str]
) -> None:
    centre.started(devices_per_node=4)
    centre.machines.nodes["n"] = simulated("n", instance="second", model="sim-b")
    centre.tick()
    centre.machines.nodes["m"] = simulated("m", model="sim-a", devices=1)
    centre.tick()
    old = [centre.submit(models=("sim-a",)) for _ in range(3)]
    new = [centre.submit(models=("sim-b",)) for _ in range(4)]
    centre.tick()
    assert [centre.job(job_id).state for job_id in old] == ["running", "queued", "queued"]
    assert [centre.job(job_id).state for job_id in new] == ["running"] * 4
    assert "allocation_refused" not in capsys.readouterr().out


def test_a_node_where_no_sandbox_can_be_built_gets_no_job_until_one_can(centre: Centre) -> None:
    def broken(report: Report) -> Report:
        return replace(report, isolation=Isolation(UNAVAILABLE, ("No sandbox can be built on this node.",)))

    centre.machines.falsified = broken
    centre.tick()
    job_id = centre.submit()
    centre.tick()
    assert centre.job(job_id).state == "queued"
    centre.machines.falsified = as_it_is
    centre.tick()  # hears that it works again
    centre.tick()
    assert centre.job(job_id).state == "running"


def test_a_job_whose_funds_were_missing_waits_no_longer_for_a_clock_that_was_set_back() -> None:
    live, job_id, hour_ms = LiveState(policy_named("default")), new_id(), 3_600_000
    live.shelve(job_id, 2 * hour_ms, 5000)
    assert [live.is_shelved(job_id, 2 * hour_ms + later_ms) for later_ms in (0, 4999, 5000)] == [
        True,
        True,
        False,
    ]
    assert not live.is_shelved(job_id, hour_ms)


def test_another_host_of_the_same_name_waits_until_the_first_is_given_up(
    centre: Centre, capsys: pytest.CaptureFixture[str]
) -> None:
    job_id = centre.started()
    first = centre.machines.nodes["n"]
    centre.machines.nodes["n"] = simulated("n", host="another", instance="other")
    centre.tick()
    assert centre.job(job_id).state == "running"
    assert "node_answers_from_another_host" in capsys.readouterr().out
    centre.machines.nodes["n"] = first
    centre.tick()
    assert centre.ends(job_id) == [None]


def test_a_supervisor_obeys_no_request_that_follows_anothers_report(centre: Centre) -> None:
    centre.submit()
    centre.tick()
    request = next(one for _, one in centre.machines.requests if one.desired)
    now_ms = boottime_ms()
    namesake = simulated("n", instance="other")
    report, _ = namesake.sync(request, now_ms, unix_ms(utc_now()))
    assert report.runs == ()
    of_a_later_boot = replace(request, instance="other", as_of_boot_ms=now_ms + 3_600_000)
    report, _ = namesake.sync(of_a_later_boot, now_ms, unix_ms(utc_now()))
    assert report.runs == ()


def test_what_runs_is_named_and_what_is_new_is_told_in_portions(
    centre: Centre, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desired, "PORTION_BYTES", 3000)
    jobs = [centre.submit(env={"A": "x" * 2000}) for _ in range(3)]
    centre.tick()
    assert {centre.job(job_id).state for job_id in jobs} == {"running"}
    assert max(len(request.desired) for _, request in centre.machines.requests) == 1
    centre.tick()
    request = centre.machines.requests[-1][1]
    assert (request.desired, len(request.going_on)) == ((), 3)


def test_a_run_is_told_whole_until_its_node_names_it(centre: Centre) -> None:
    def starting(report: Report) -> Report:
        return replace(report, runs=tuple(replace(run, state=RunState.STARTING) for run in report.runs))

    centre.machines.falsified = starting
    job_id = centre.submit()
    centre.tick()
    centre.tick()
    told = [request for _, request in centre.machines.requests if request.desired]
    assert [spec.job_id for request in told for spec in request.desired] == [str(job_id)]
    assert centre.machines.requests[-1][1].going_on == (told[0].desired[0].run_id,)
    assert centre.job(job_id).state == "starting"
    centre.machines.falsified = as_it_is
    centre.tick()
    assert centre.job(job_id).state == "running"


@pytest.mark.parametrize(
    ("runs", "leaving", "moves_nothing"),
    [
        ((), False, False),
        ((("going", RunState.RUNNING),), False, True),
        ((("going", RunState.RUNNING), ("new", RunState.STARTING)), False, True),
        ((("going", RunState.RUNNING), ("new", RunState.STARTING)), True, False),
        ((("going", RunState.RUNNING), ("new", RunState.RUNNING)), False, False),
        ((("going", RunState.ENDED),), False, False),
        ((("going", RunState.STOPPING),), False, False),
        ((("going", RunState.RUNNING), ("nobody's", RunState.STARTING)), False, False),
    ],
)
def test_what_is_news_of_a_node_that_runs_one_and_was_asked_for_another(
    centre: Centre, runs: tuple[tuple[str, RunState], ...], *, leaving: bool, moves_nothing: bool
) -> None:
    report, _ = centre.machines.nodes["n"].sync(SyncRequest(1, 1, ()), BEGAN_MS, BEGAN_MS)
    said = replace(report, runs=tuple(RunStatus(name, "job", 1, 0, state) for name, state in runs))
    states = {"going": "running", "new": "placed"} | ({"unwanted": "stopping"} if leaving else {})
    observed = Observed(said, {"going", "new"}, states)
    assert observed.moves_nothing is moves_nothing


@pytest.mark.parametrize("change", ["told to wait for another", "held", "cancelled"])
def test_a_job_told_to_wait_held_or_cancelled_since_it_was_planned_is_not_started(
    centre: Centre, change: str
) -> None:
    needed, job_id = centre.submit(held=True), centre.submit()
    live, now = LiveState(policy_named("default")), utc_now()
    with transaction(centre.engine) as session:
        session.execute(text("UPDATE scheduler_leader SET held = false"))
        leadership = acquire(session, "other", now - now, now, lapsed=standing(session))
        live.refresh(session, unix_ms(now), frozenset({"n"}))
    assert leadership is not None
    plan = live.plan(unix_ms(now))
    assert [start.job_id for start in plan.starts] == [str(job_id)]
    with transaction(centre.engine) as session:
        if change == "held":
            hold_job(session, job_id, tenant_id=centre.tenant)
        elif change == "cancelled":
            cancel_job(session, job_id, tenant_id=centre.tenant)
        else:
            change_dependencies(session, job_id, [needed], tenant_id=centre.tenant)
    with transaction(centre.engine) as session:
        assert not admit(session, leadership, live, plan, centre.free, now).steps
    assert centre.job(job_id).state == "queued"


def test_a_node_that_was_given_up_is_nothing_to_wait_for() -> None:
    nodes = Nodes(lease_ms=6000, began_boot_ms=0)
    nodes.request("n", 1, (), (), {})
    assert nodes.lost(["n"], 6000) == []
    assert nodes.lost_next() == 6000 + STOP_MARGIN_MS
    assert nodes.lost(["n"], 6000 + STOP_MARGIN_MS) == ["n"]
    nodes.forget("n")
    nodes.request("n", 1, (), (), {})
    assert nodes.lost_next() is None
    assert nodes.lost([], 60_000) == []
    assert nodes.lost_next() is None


def test_of_several_words_said_at_once_none_is_lost(database: Database, engine: Engine) -> None:
    wait_once = notifications(database.url, WAKE_CHANNEL)
    assert wait_once() == WAKE_CHANNEL
    with transaction(engine) as session:
        session.execute(text(f"NOTIFY {WAKE_CHANNEL}, 'submitted'"))
        session.execute(text(f"NOTIFY {WAKE_CHANNEL}"))
    assert wait_once() == WAKE_CHANNEL
    with transaction(engine) as session:
        session.execute(text(f"NOTIFY {WAKE_CHANNEL}, 'submitted'"))
    assert wait_once() == "submitted"
    with transaction(engine) as session:
        session.execute(
            text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'")
        )
    with pytest.raises(psycopg.Error):  # after the farewell, which is no notification, comes the end
        while wait_once() is None:
            pass


def test_a_job_that_is_cancelled_while_its_funds_run_out_was_cancelled(centre: Centre) -> None:
    job_id = centre.started()

    def keep_funded(
        session: Session, jobs: Sequence[JobRow], _elapsed: Mapping[UUID, int], _at: datetime
    ) -> Mapping[UUID, str]:
        if not any(job.id == job_id for job in jobs):
            return {}
        assert session.is_active
        with transaction(centre.engine) as another:
            cancel_job(another, job_id, tenant_id=centre.tenant)
        return {job_id: "nothing is left"}

    centre.free.keep_funded = keep_funded  # type: ignore[method-assign] # its funds run out now
    centre.tick()
    centre.tick()
    assert centre.job(job_id).state == "cancelled"


def test_a_run_whose_device_is_held_by_a_process_nobody_can_end_is_tried_again_without_a_retry(
    centre: Centre,
) -> None:
    def held(report: Report) -> Report:
        runs = (
            replace(
                run, state=RunState.ENDED, end_reason=EndReason.DEVICE_HELD, reason="Process 7 cannot be ended"
            )
            for run in report.runs
        )
        ill = (replace(device, healthy=False, reason="Process 7 cannot be ended.") for device in report.devices)
        return replace(report, runs=tuple(runs), devices=tuple(ill))

    centre.machines.falsified = held
    job_id = centre.submit(max_retries=0)
    centre.tick()
    job = centre.job(job_id)
    assert (job.state, job.lost_attempts, job.retry_at is None) == ("queued", [1], False)
    assert job.reason == "attempt 1 did not start (Process 7 cannot be ended); it is tried elsewhere"
    with transaction(centre.engine) as session:
        reasons = session.execute(text("SELECT DISTINCT healthy, health_reason FROM devices")).all()
        assert reasons == [(False, "Process 7 cannot be ended.")]


def test_a_run_that_its_node_could_not_start_is_tried_without_a_retry_where_something_can_be_started(
    centre: Centre,
) -> None:
    def unable(report: Report) -> Report:
        runs = (
            replace(run, state=RunState.ENDED, end_reason=EndReason.NODE_FAILED, reason="Too many open files")
            for run in report.runs
        )
        return replace(report, runs=tuple(runs), isolation=Isolation(UNAVAILABLE, ("It is out of files.",)))

    centre.machines.falsified = unable
    job_id = centre.submit(max_retries=0)
    centre.tick()
    job = centre.job(job_id)
    assert (job.state, job.attempt, job.lost_attempts) == ("queued", 1, [1])
    assert job.reason == "attempt 1 did not start (Too many open files); it is tried elsewhere"
    another = centre.submit()
    centre.tick()
    assert centre.job(another).state == "queued"  # no node says that it could start it
    centre.machines.falsified = lambda report: report
    centre.tick()
    centre.tick()
    assert centre.job(another).state != "queued"
    with transaction(centre.engine) as session:
        kinds = session.scalars(select(NodeEventRow.kind).order_by(NodeEventRow.number)).all()
    assert [kind for kind in kinds if kind.startswith("starts")] == [
        *["starts_nothing"] * (len(kinds) // 3), *["starts_again"] * (len(kinds) // 3)
    ]  # fmt: skip


def test_a_retry_waits_for_its_pause_and_not_for_a_clock_that_was_set_back(centre: Centre) -> None:
    job_id = centre.started(max_retries=1)
    centre.machines.nodes["n"] = simulated("n", instance="second")  # which knows nothing of it
    centre.tick()
    job, hour_ms = centre.job(job_id), 3_600_000
    assert job.state == "queued"
    assert job.retry_at is not None
    lost_ms = unix_ms(job.retry_at) - RETRY_MS

    def starts(live: LiveState, now_ms: int) -> list[str]:
        with Session(centre.engine) as session:
            live.refresh(session, now_ms, frozenset({"n"}))
        return [start.job_id for start in live.plan(now_ms).starts]

    seen_before, seen_after = LiveState(policy_named("default")), LiveState(policy_named("default"))
    assert starts(seen_before, lost_ms) == []
    for live in (seen_before, seen_after):
        assert starts(live, lost_ms - hour_ms) == []
        assert starts(live, lost_ms - hour_ms + RETRY_MS) == [str(job_id)]


def test_a_run_that_cannot_be_written_is_named_and_the_rest_of_its_nodes_report_is_kept(
    centre: Centre, capsys: pytest.CaptureFixture[str]
) -> None:
    spoilt, *others = (centre.started() for _ in range(3))
    with Session(centre.engine) as session:
        run = str(session.scalars(select(RunRow.id).where(RunRow.job_id == spoilt)).one())

    def spoil(report: Report) -> Report:
        ends = {"state": RunState.ENDED, "end_reason": EndReason.EXITED, "exit_code": 0}
        runs = [replace(one, **ends) for one in report.runs]
        runs = [replace(one, exit_code=2**70) if one.run_id == run else one for one in runs]
        return replace(report, runs=tuple(runs))

    centre.machines.falsified = spoil
    centre.tick()
    assert [centre.job(job_id).state for job_id in (spoilt, *others)] == ["running", "succeeded", "succeeded"]
    assert f"run={run}" in capsys.readouterr().out
    centre.machines.requests.clear()
    centre.tick()
    acknowledged = {one for _, request in centre.machines.requests for one in request.acknowledged_exits}
    assert len(acknowledged) == 2
    assert run not in acknowledged
    with transaction(centre.engine) as session:
        assert session.scalar(text("SELECT state FROM nodes")) == "up"
    centre.machines.falsified = lambda report: replace(
        report, runs=tuple(replace(one, exit_code=0) for one in spoil(report).runs)
    )
    centre.tick()
    assert centre.job(spoilt).state == "succeeded"


def test_usage_that_cannot_be_written_holds_up_its_own_run_only(centre: Centre) -> None:
    spoilt, other = centre.started(milliseconds=0), centre.started(milliseconds=0)
    record_usage = centre.free.record_usage

    def refuse(session: Session, usage: Mapping[str, Sequence[UsageRecord]], at: datetime) -> None:
        assert all(record.job_id != str(spoilt) for record in usage["n"])
        record_usage(session, usage, at)

    centre.free.record_usage = refuse  # type: ignore[method-assign] # one of its rows cannot be written
    centre.machines.nodes["n"].advance(boottime_ms(), unix_ms(utc_now()))
    centre.tick()
    assert [centre.job(job_id).state for job_id in (spoilt, other)] == ["running", "succeeded"]
    centre.free.record_usage = record_usage  # type: ignore[method-assign] # and now it can
    centre.tick()
    assert centre.job(spoilt).state == "succeeded"
    assert {record.job_id for record in centre.free.usage.values()} == {str(spoilt), str(other)}


def test_a_slice_that_the_database_says_is_taken_costs_its_own_job_a_pause_and_no_other_its_start(
    centre: Centre, capsys: pytest.CaptureFixture[str]
) -> None:
    before = centre.started(milliseconds=0)
    centre.machines.nodes["n"].advance(boottime_ms(), unix_ms(utc_now()))
    centre.tick()
    assert centre.job(before).state == "succeeded"
    with transaction(centre.engine) as session:
        session.execute(text("UPDATE allocations SET span = tstzrange(lower(span), NULL)"))
    jobs = [centre.submit() for _ in range(4)]
    centre.tick()
    states = sorted(centre.job(job).state for job in jobs)
    assert states == ["queued", "running", "running", "running"]
    (waiting,) = [job for job in jobs if centre.job(job).state == "queued"]
    said = [line for line in capsys.readouterr().out.splitlines() if "allocation_refused" in line]
    assert len(said) == 1
    assert str(waiting) in said[0]
