"""Who may stop whom, when, and for what; and what is promised stays promised."""

from dataclasses import replace

import pytest

from scheduler.policy.cycle import plan_cycle, run_cycle
from scheduler.policy.model import Job, Queue, Quota, Reservation
from scheduler.policy.settings import PolicySettings
from scheduler.policy.state import SchedulerState
from tests.scheduler.policy.builders import job, node, state_of

RULES = PolicySettings(min_run_ms=60_000, grace_ms=5000)
GUARANTEED = [Queue("a", quotas={"A100": Quota(4000)}), Queue("b", quotas={"A100": Quota(4000)})]
HOUR = 3_600_000


def busy_with(jobs: list[Job], queues: list[Queue], settings: PolicySettings = RULES) -> SchedulerState:
    state = state_of([node("n", 8)], queues, settings)
    for one in jobs:
        state.job_queued(one)
    run_cycle(state, 0)
    return state


@pytest.mark.parametrize(
    ("running", "claim", "now_ms", "victims"),
    [
        ([job("x", 8, "b")], job("c", 4, "a"), 60_000, ["x"]),
        ([job("x", 8, "b")], job("c", 4, "a"), 59_999, []),
        ([job("x", 8, "b")], job("c", 5, "a"), 60_000, []),
        ([job("x", 4, "b"), job("y", 4, "b")], job("c", 4, "a"), 60_000, ["x"]),
        ([job("x", 4, "b"), job("y", 4, "a")], job("c", 1, "a"), 60_000, []),
        ([job("x", 8, "b", preemptible=True)], job("c", 5, "a"), 60_000, []),
        ([job(f"x{i}", 2, "b", preemptible=True) for i in range(4)], job("c", 2, "a"), 60_000, ["x0"]),
        ([job("x", 8, "a", preemptible=True)], job("c", 1, "a", priority=1), 60_000, ["x"]),
        ([job("x", 8, "a", preemptible=True)], job("c", 1, "a", priority=0), 60_000, []),
        ([job("x", 8, "a")], job("c", 1, "a", priority=1), 60_000, []),
    ],
)
def test_only_an_entitled_claim_stops_just_enough_borrowers_past_their_minimum(
    running: list[Job], claim: Job, now_ms: int, victims: list[str]
) -> None:
    state = busy_with(running, GUARANTEED)
    state.job_queued(claim, 1)
    plan = plan_cycle(state, now_ms)
    assert [eviction.job_id for eviction in plan.evictions] == victims
    assert all(eviction.for_job_id == claim.id for eviction in plan.evictions)


def test_what_an_eviction_frees_goes_to_the_claimant_and_to_nobody_before_it() -> None:
    state = busy_with([job("x", 8, "b")], GUARANTEED)
    state.job_queued(job("c", 4, "a"), 1)
    for eviction in run_cycle(state, 60_000).evictions:
        state.eviction_ordered(eviction)
    state.job_queued(job("thief", 8, "b", submitted_ms=60_000), 60_000)
    assert run_cycle(state, 60_001).evictions == ()
    state.allocation_ended("x", 65_000, succeeded=False)
    assert [start.job_id for start in run_cycle(state, 65_000).starts] == ["c"]


def test_a_claim_inside_its_guarantee_wakes_the_cycle_when_its_victim_has_run_long_enough() -> None:
    state = busy_with([job("x", 8, "b")], GUARANTEED)
    state.job_queued(job("c", 4, "a"), 1)
    assert plan_cycle(state, 1).next_wake_ms == 60_000


@pytest.mark.parametrize(("priority", "queue", "victims"), [(1, "b", []), (0, "a", ["x"])])
def test_the_cap_on_evictions_protects_a_job_from_all_but_a_guarantee(
    priority: int, queue: str, victims: list[str]
) -> None:
    rules = replace(RULES, evictions_per_job_max=0)
    state = busy_with([job("x", 8, "b", preemptible=True)], GUARANTEED, rules)
    state.job_queued(job("c", 4, queue, priority=priority), 1)
    assert [eviction.job_id for eviction in plan_cycle(state, 60_000).evictions] == victims


def test_backfill_uses_promised_nodes_only_for_what_is_gone_before() -> None:
    state = state_of([node("n1", 8), node("n2", 8)])
    state.job_queued(job("long", 8, time_limit_ms=10 * HOUR))
    run_cycle(state, 0)
    state.job_queued(job("gang", 8, nodes=2, submitted_ms=1), 1)
    run_cycle(state, 1)
    state.job_queued(job("short", 8, time_limit_ms=9 * HOUR, submitted_ms=HOUR * 20), 2)
    state.job_queued(job("late", 8, time_limit_ms=11 * HOUR, submitted_ms=HOUR * 20), 2)
    assert [start.job_id for start in run_cycle(state, 2).starts] == ["short"]


@pytest.mark.parametrize(
    ("limit_ms", "for_jobs", "starts"),
    [(HOUR, frozenset(), ["j"]), (3 * HOUR, frozenset(), []), (3 * HOUR, frozenset({"j"}), ["j"])],
)
def test_nobody_runs_into_a_reservation_of_others(
    limit_ms: int, for_jobs: frozenset[str], starts: list[str]
) -> None:
    state = state_of([node("n", 8)])
    state.reserved(Reservation("r", ("n",), 2 * HOUR, 4 * HOUR, for_jobs))
    state.job_queued(job("j", 8, time_limit_ms=limit_ms))
    assert [start.job_id for start in plan_cycle(state, 0).starts] == starts
    assert len(plan_cycle(state, 4 * HOUR).starts) == 1
