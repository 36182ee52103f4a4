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
        ([job("x", 4, "b"), job("y", 4, "b")], job("c", 4, "a"), 60_000, ["y"]),
        ([job("x", 4, "b"), job("y", 4, "a")], job("c", 1, "a"), 60_000, []),
        ([job("x", 8, "b", preemptible=True)], job("c", 5, "a"), 60_000, []),
        ([job(f"x{i}", 2, "b", preemptible=True) for i in range(4)], job("c", 2, "a"), 60_000, ["x2"]),
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


EQUAL = [Queue("a"), Queue("b")]
HEAVY = [Queue("a", quotas={"A100": Quota(weight=3)}), Queue("b", quotas={"A100": Quota(weight=1)})]


@pytest.mark.parametrize(
    ("queues", "sizes", "claim", "victims"),
    [
        (EQUAL, [1] * 8, 1, ["x0"]),
        (EQUAL, [1] * 8, 3, ["x0", "x1", "x2"]),
        (EQUAL, [1] * 8, 4, []),
        (EQUAL, [8], 1, []),
        (HEAVY, [1] * 8, 4, ["x0", "x1", "x2", "x3"]),
        (EQUAL, [4, 4], 4, []),
        (HEAVY, [4, 4], 3, ["x0"]),
    ],
)
def test_fairness_evicts_only_what_leaves_the_claimant_strictly_below_the_victims_queue(
    queues: list[Queue], sizes: list[int], claim: int, victims: list[str]
) -> None:
    state = busy_with([job(f"x{i}", size, "b", preemptible=True) for i, size in enumerate(sizes)], queues)
    state.job_queued(job("c", claim, "a"), 1)
    plan = plan_cycle(state, 60_000)
    assert sorted(eviction.job_id for eviction in plan.evictions) == victims
    assert {eviction.reason for eviction in plan.evictions} <= {"is further below its fair share"}


def test_fairness_evicts_nobody_who_may_not_be_preempted() -> None:
    state = busy_with([job(f"x{i}", 1, "b") for i in range(8)], EQUAL)
    state.job_queued(job("c", 1, "a"), 1)
    assert plan_cycle(state, 60_000).evictions == ()


BORROWED = [Queue("a", quotas={"A100": Quota(0, borrow_milli=4000)}), Queue("b")]


@pytest.mark.parametrize(
    ("claim", "victims"),
    [
        (job("c", 2, "b"), ["x2"]),
        (job("c", 2, "a"), []),
        (job("c", 2, "a", preemptible=True), []),
        (job("c", 6, "b"), []),
    ],
)
def test_what_runs_beyond_a_borrow_limit_gives_way_to_a_firm_claim(claim: Job, victims: list[str]) -> None:
    state = busy_with(
        [job("firm", 2, "b"), *(job(f"x{i}", 2, "a", preemptible=True) for i in range(3))], BORROWED
    )
    assert len(state.running) == 4
    state.job_queued(claim, 1)
    assert [eviction.job_id for eviction in plan_cycle(state, 60_000).evictions] == victims


def test_a_guarantee_is_reclaimed_from_those_beyond_borrow_limits_before_others() -> None:
    queues = [
        Queue("a", quotas={"A100": Quota(2000)}),
        Queue("b"),
        Queue("c", quotas={"A100": Quota(0, borrow_milli=0)}),
    ]
    running = [
        job("late", 2, "b", preemptible=True),
        job("spare", 4, "c", preemptible=True),
        job("firm", 2, "b"),
    ]
    state = busy_with(running, queues)
    state.job_queued(job("claim", 2, "a"), 1)
    assert [one.job_id for one in plan_cycle(state, 60_000).evictions] == ["spare"]


def test_every_claim_a_guarantee_has_room_for_is_served_at_once_and_none_beyond() -> None:
    state = busy_with([job(f"x{i}", 1, "b") for i in range(8)], GUARANTEED)
    for number in range(6):
        state.job_queued(job(f"c{number}", 1, "a"), 1)
    plan = plan_cycle(state, 60_000)
    assert {one.for_job_id for one in plan.evictions} == {"c0", "c1", "c2", "c3"}
    assert len(plan.evictions) == 4
    assert plan_cycle(state, 60_000) == plan


def test_a_claim_that_needs_more_victims_than_a_cycle_may_order_is_served_all_the_same() -> None:
    state = busy_with(
        [job(f"x{i}", 1, "b") for i in range(8)], GUARANTEED, replace(RULES, evictions_per_cycle_max=2)
    )
    state.job_queued(job("c", 4, "a"), 1)
    state.job_queued(job("d", 4, "b"), 1)
    plan = plan_cycle(state, 60_000)
    assert len(plan.evictions) == 4


def test_nobody_new_takes_what_a_claim_waits_for_while_its_victims_run_their_minimum() -> None:
    state = busy_with([job("x", 4, "b", time_limit_ms=10 * HOUR), job("y", 4, "b")], GUARANTEED)
    state.allocation_ended("y", 30_000, succeeded=True)
    state.job_queued(job("z", 4, "b", time_limit_ms=10 * HOUR, submitted_ms=30_000), 30_000)
    assert [one.job_id for one in run_cycle(state, 30_000).starts] == ["z"]
    state.job_queued(job("c", 4, "a"), 40_000)
    assert run_cycle(state, 40_000).next_wake_ms == 60_000
    state.allocation_ended("x", 50_000, succeeded=True)
    state.job_queued(job("thief", 1, "b", submitted_ms=0), 50_000)
    assert [one.job_id for one in run_cycle(state, 50_000).starts] == ["c"]


def test_a_hard_promise_to_a_borrower_yields_to_a_guarantee_and_to_nothing_else() -> None:
    queues = [Queue("a", quotas={"A100": Quota(4000)}), Queue("b", max_wait_ms=1)]
    state = state_of([node("n1", 4), node("n2", 4)], queues, RULES)
    state.job_queued(job("x", 4, "b", time_limit_ms=10 * HOUR))
    run_cycle(state, 0)
    state.job_queued(job("gang", 4, "b", nodes=2), 0)
    run_cycle(state, HOUR)
    assert state.promises.by_pool["A100"].hard
    state.job_queued(job("other", 4, "b", time_limit_ms=20 * HOUR, submitted_ms=HOUR), HOUR)
    assert run_cycle(state, HOUR).starts == ()
    state.job_queued(job("claim", 4, "a", time_limit_ms=20 * HOUR), HOUR)
    assert [start.job_id for start in run_cycle(state, HOUR).starts] == ["claim"]


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
