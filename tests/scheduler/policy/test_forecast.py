"""Start estimates come from the same policy and leave the state alone."""

from dataclasses import replace

from scheduler.policy.cycle import plan_cycle, run_cycle
from scheduler.policy.forecast import estimate_starts
from scheduler.policy.model import Queue, Quota
from scheduler.policy.settings import POLICIES, PolicySettings
from scheduler.simulator.engine import Simulation
from scheduler.simulator.generator import WorkloadShape, generate
from scheduler.simulator.workload import Cluster, TraceJob
from tests.scheduler.policy.builders import job, node, state_of


def test_a_forecast_plays_the_queue_forward_without_touching_the_state() -> None:
    state = state_of([node("n", 8)])
    for number in range(3):
        state.job_queued(job(f"j{number}", 8, submitted_ms=number, time_limit_ms=1000))
    run_cycle(state, 10)
    before = (set(state.queued), set(state.running))
    starts = estimate_starts(state, frozenset({"j1", "j2"}), 10)
    assert list(starts) == ["j1", "j2"]
    assert 10 < starts["j1"] < starts["j2"] <= 2010
    assert (set(state.queued), set(state.running)) == before
    assert plan_cycle(state, 11).starts == ()


def test_a_job_that_can_never_start_has_no_estimate() -> None:
    state = state_of([node("n", 2)])
    state.job_queued(job("huge", 9))
    assert estimate_starts(state, frozenset({"huge"}), 0) == {}


def test_where_limits_are_exact_and_nobody_else_comes_the_forecast_is_what_happens() -> None:
    rules = replace(POLICIES["default"], learns=False)
    nodes = [node(f"node-{number:04d}", 8) for number in range(3)]
    work = generate(WorkloadShape(jobs=80, nodes=3, load_percent=100), 11)
    exact = [
        replace(one, submitted_ms=0, time_limit_ms=duration_ms, estimate_ms=None) for one, duration_ms in work
    ]
    state = state_of(nodes, settings=rules)
    for one in exact:
        state.job_queued(one)
    told = estimate_starts(state, frozenset(one.id for one in exact), 0)
    trace = tuple(TraceJob(one, one.time_limit_ms) for one in exact)
    runs = Simulation(Cluster(tuple(nodes)), trace, (Queue("main"),), rules).run().runs
    assert {run.job.id: run.start_ms for run in runs} == told


def test_a_forecast_counts_on_evictions_that_are_ordered_and_on_no_others() -> None:
    queues = [Queue("a", quotas={"A100": Quota(8000)}), Queue("b")]
    state = state_of([node("n", 8)], queues, PolicySettings(min_run_ms=60_000, grace_ms=5000))
    state.job_queued(job("x", 8, "b"))
    run_cycle(state, 0)
    state.job_queued(job("c", 8, "a"), 1)
    run_cycle(state, 1)
    assert estimate_starts(state, frozenset({"c"}), 1)["c"] > 3_000_000
    for eviction in run_cycle(state, 60_000).evictions:
        state.eviction_ordered(eviction)
    assert estimate_starts(state, frozenset({"c"}), 60_000) == {"c": 65_000}
