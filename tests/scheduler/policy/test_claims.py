"""What claims and promises rest on, one rule each: found by spoiling the policy and looking which test noticed."""

from collections.abc import Callable

import pytest

from scheduler.policy.cycle import run_cycle
from scheduler.policy.errors import SliceTaken
from scheduler.policy.model import (
    DeviceSlice,
    DeviceState,
    Job,
    Node,
    Placement,
    Queue,
    Quota,
    Reservation,
    Start,
    Topology,
)
from scheduler.policy.nominations import Nomination, Nominations
from scheduler.policy.rights import overrides
from scheduler.policy.settings import POLICIES, PolicySettings
from scheduler.policy.state import SchedulerState
from tests.scheduler.policy.builders import job, node, state_of

RULES = PolicySettings(min_run_ms=60_000, grace_ms=5000)
HOUR = 3_600_000
EASY = POLICIES["easy"]
"""Its promises are hard at once."""


def runs(state: SchedulerState, one: Job, *where: tuple[str, tuple[int, ...]], at_ms: int = 0) -> None:
    """The job runs on these devices of these nodes."""
    state.job_queued(one)
    parts = tuple(
        Placement(name, tuple(DeviceSlice(index, 0, 1000) for index in devices)) for name, devices in where
    )
    state.allocation_started(Start(one.id, parts), at_ms)


def evicted(state: SchedulerState, now_ms: int) -> list[tuple[str, str]]:
    """Who is told to stop for whom by a cycle; the orders are entered."""
    orders = run_cycle(state, now_ms).evictions
    for order in orders:
        state.eviction_ordered(order)
    return [(order.job_id, order.for_job_id) for order in orders]


def promised(state: SchedulerState) -> tuple[int, set[str]]:
    """From when on, and which nodes."""
    promise, pool = state.promises.by_pool["A100"], state.capacity.pools["A100"]
    return promise.from_ms, {one.node.name for one in pool.states if one.bit & promise.nodes}


@pytest.mark.parametrize("facts", [{"cpu_milli": 1000}, {"memory_mib": 10}, {"devices": 1}])
def test_what_is_left_over_of_a_gang_waits_for_an_empty_node_and_is_promised_one_that_is_empty_by_then(
    facts: dict[str, int],
) -> None:
    nodes = [node(name, 4, cpu_milli=8000, memory_mib=100) for name in ("n1", "n2")]
    state = state_of(nodes, settings=EASY)
    facts = {"devices": 0, **facts}
    devices = tuple(range(facts["devices"]))
    runs(state, job("x", time_limit_ms=HOUR, **facts), ("n1", devices))
    runs(state, job("y", time_limit_ms=2 * HOUR, **facts), ("n2", devices))
    state.job_queued(job("gang", 3, tail_devices=2))
    assert run_cycle(state, 0).starts == ()
    assert promised(state)[0] >= HOUR
    state.allocation_ended("y", 1, succeeded=True)
    (start,) = run_cycle(state, 1).starts
    assert {part.node: len(part.devices) for part in start.placements} == {"n1": 3, "n2": 2}


def fails(state: SchedulerState, name: str) -> None:
    """One device of the node fails."""
    state.node_joined(Node(name, "A100", tuple(DeviceState(index, healthy=index > 0) for index in range(4))))


@pytest.mark.parametrize("happens", [SchedulerState.node_left, SchedulerState.node_drained, fails])
def test_a_hard_promise_on_a_node_that_is_lost_drained_or_fails_is_made_anew_elsewhere_though_later(
    happens: Callable[[SchedulerState, str], object],
) -> None:
    state = state_of([node("n1", 4), node("n2", 4)], settings=EASY)
    runs(state, job("x", 4, time_limit_ms=HOUR), ("n1", (0, 1, 2, 3)))
    runs(state, job("y", 3, time_limit_ms=2 * HOUR), ("n2", (0, 1, 2)))
    state.job_queued(job("next", 4))
    run_cycle(state, 0)
    assert promised(state) == (HOUR, {"n1"})
    happens(state, "n1")
    state.job_queued(job("long", 1, submitted_ms=1, time_limit_ms=9 * HOUR), 1)
    assert run_cycle(state, 1).starts == ()
    assert promised(state) == (2 * HOUR, {"n2"})


def test_a_gang_of_one_switch_is_promised_a_switch_that_holds_all_of_it() -> None:
    nodes = [node(f"n{i}", 2, topology=("z", f"s{min(i, 1)}")) for i in range(3)]
    state = state_of(nodes, settings=EASY)
    for index, hours in enumerate((1, 2, 3)):
        runs(state, job(f"x{index}", 2, time_limit_ms=hours * HOUR), (f"n{index}", (0, 1)))
    state.job_queued(job("gang", 2, nodes=2, topology=Topology.SAME_SWITCH))
    run_cycle(state, 0)
    assert promised(state) == (3 * HOUR, {"n1", "n2"})


def test_a_gang_that_talks_is_promised_nodes_that_can_have_a_network_together() -> None:
    nodes = [node("n0", 2, network="a"), *(node(f"n{i}", 2, network="b") for i in (1, 2))]
    state = state_of(nodes, settings=EASY)
    for index, hours in enumerate((1, 2, 3)):
        runs(state, job(f"x{index}", 2, time_limit_ms=hours * HOUR), (f"n{index}", (0, 1)))
    state.job_queued(job("gang", 2, nodes=2, talks=True))
    run_cycle(state, 0)
    assert promised(state) == (3 * HOUR, {"n1", "n2"})
    state.node_joined(node("n0", 2, network="b"))
    run_cycle(state, 1)
    assert promised(state) == (2 * HOUR, {"n0", "n1"})


def test_a_claimant_whose_room_came_too_late_does_not_run_into_a_reservation() -> None:
    state = state_of([node("n", 4)], [Queue("a", quotas={"A100": Quota(4000)}), Queue("b")], RULES)
    runs(state, job("x", 4, "b"), ("n", (0, 1, 2, 3)))
    state.reserved(Reservation("r", ("n",), 62_000 + HOUR, 3 * HOUR))
    state.job_queued(job("claim", 4, "a", time_limit_ms=HOUR), 1)
    run_cycle(state, 1)
    assert evicted(state, 60_000) == [("x", "claim")]
    state.allocation_ended("x", 65_000, succeeded=False)
    assert run_cycle(state, 65_000).starts == ()
    assert [start.job_id for start in run_cycle(state, 3 * HOUR).starts] == ["claim"]


def test_a_claim_stops_nobody_on_nodes_it_would_run_into_a_reservation_on() -> None:
    queues = [Queue("a", quotas={"A100": Quota(2000)}), Queue("b")]
    state = state_of([node("n1", 2), node("n2", 2)], queues, RULES)
    runs(state, job("x", 2, "b"), ("n1", (0, 1)))
    runs(state, job("y", 2, "b"), ("n2", (0, 1)))
    state.reserved(Reservation("r", ("n1",), HOUR, 2 * HOUR))
    state.job_queued(job("claim", 2, "a", time_limit_ms=HOUR), 1)
    run_cycle(state, 1)
    assert evicted(state, 60_000) == [("y", "claim")]


def test_nobody_of_a_claimants_own_queue_uses_up_the_bound_it_counts_on() -> None:
    queues = [Queue("a", quotas={"A100": Quota(4000, 0)}), Queue("b")]
    state = state_of([node("n1", 4), node("n2", 1)], queues, RULES)
    runs(state, job("x", 4, "b"), ("n1", (0, 1, 2, 3)))
    runs(state, job("y", 1, "b"), ("n2", (0,)))
    state.job_queued(job("claim", 4, "a"), 1)
    run_cycle(state, 1)
    assert evicted(state, 60_000) == [("x", "claim")]
    state.allocation_ended("y", 60_001, succeeded=True)
    state.job_queued(job("later", 1, "a", submitted_ms=60_001), 60_001)
    assert run_cycle(state, 60_001).starts == ()
    state.allocation_ended("x", 65_000, succeeded=False)
    assert [start.job_id for start in run_cycle(state, 65_000).starts] == ["claim"]


@pytest.mark.parametrize(("made_way", "orders"), [(False, [("x", "claim")]), (True, [])])
def test_nobody_stops_by_priority_one_it_has_made_way_for_itself(
    made_way: bool,  # noqa: FBT001 - a column of the table
    orders: list[tuple[str, str]],
) -> None:
    state = state_of([node("n", 1)], [Queue("main")], RULES)
    runs(state, job("x", preemptible=True), ("n", (0,)))
    state.job_queued(job("claim", priority=1), 1)
    if made_way:
        state.yielding.note("claim", "between")
        state.yielding.note("between", "x")
    assert evicted(state, 60_000) == orders


def test_a_claim_may_not_stop_two_of_whom_either_alone_would_be_within_a_guarantee() -> None:
    queues = [Queue("a", quotas={"A100": Quota(3000)}), Queue("b", quotas={"A100": Quota(1000)})]
    state = state_of([node("n1", 2), node("n2", 2)], queues, RULES)
    runs(state, job("kept", 1, "a"), ("n2", (1,)))
    runs(state, job("wide", 1, "b", nodes=2), ("n1", (0,)), ("n2", (0,)))
    runs(state, job("small", 1, "b"), ("n1", (1,)))
    state.job_queued(job("claim", 2, "a"), 1)
    assert evicted(state, 120_000) == []


def test_who_was_imagined_gone_in_vain_is_spared() -> None:
    queues = [Queue("a", quotas={"A100": Quota(4000)}), Queue("b")]
    state = state_of([node("n1", 4), node("n2", 2)], queues, RULES)
    runs(state, job("x", 4, "b"), ("n1", (0, 1, 2, 3)))
    runs(state, job("later", 2, "b"), ("n2", (0, 1)), at_ms=1)
    state.job_queued(job("claim", 4, "a"), 2)
    assert evicted(state, 120_000) == [("x", "claim")]


def test_all_that_is_nominated_in_a_pool_is_kept_until_each_is_forgotten_or_its_node_lost() -> None:
    nominations = Nominations()
    for name, nodes in (("one", 0b0011), ("two", 0b0100), ("three", 0b1000)):
        nominations.make(Nomination(name, "A100", nodes, (f"victim of {name}",), 5))
    assert nominations.nodes_in("A100") == 0b1111
    assert (nominations.own("A100", "one"), nominations.own("910B", "one")) == (0b0011, 0)
    nominations.forget("two")
    assert nominations.nodes_in("A100") == 0b1011
    nominations.node_lost("910B", 0b0001)
    assert nominations.nodes_in("A100") == 0b1011
    nominations.node_lost("A100", 0b0001)
    assert (nominations.nodes_in("A100"), list(nominations.by_job)) == (0b1000, ["three"])


def test_claimants_who_count_on_one_victim_come_due_together() -> None:
    nominations = Nominations()
    rows = (
        ("one", ("x",), 5),
        ("two", ("x", "y"), 9),
        ("three", ("y",), 12),
        ("four", ("z",), 12),
        ("told", ("x",), None),
    )
    for name, victims, due_ms in rows:
        nominations.make(Nomination(name, "A100", 1, victims, due_ms))
    assert nominations.due(4) == []
    assert nominations.due(5) == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("queue", "devices", "overridden"), [("b", 3, True), ("b", 2, False), ("a", 3, False), ("a", 1, False)]
)
def test_a_claim_overrides_only_promises_to_another_queue_that_would_itself_borrow(
    queue: str,
    devices: int,
    overridden: bool,  # noqa: FBT001 - a column of the table
) -> None:
    queues = [Queue("a", quotas={"A100": Quota(2000)}), Queue("b", quotas={"A100": Quota(2000)})]
    state = state_of([node("n", 4)], queues)
    state.job_queued(job("claim", 1, "a"))
    state.job_queued(job("holder", devices, queue))
    pool = state.capacity.pools["A100"]
    assert overrides(state, state.queued["claim"], state.queued["holder"], pool) is overridden


def test_a_weight_divides_the_share_by_which_queues_are_compared() -> None:
    queues = [Queue("a", quotas={"A100": Quota()}), Queue("b", quotas={"A100": Quota(weight=3)})]
    state = state_of([node("n", 8)], queues)
    for number in range(8):
        for queue in ("a", "b"):
            state.job_queued(job(f"{queue}{number}", 1, queue))
    started = [start.job_id[0] for start in run_cycle(state, 0).starts]
    assert (started.count("a"), started.count("b")) == (2, 6)


@pytest.mark.parametrize(("claims", "orders"), [(15, [("x", "claim")]), (16, [])])
def test_a_job_for_which_others_were_stopped_often_enough_claims_no_more(
    claims: int, orders: list[tuple[str, str]]
) -> None:
    state = state_of([node("n", 1)], [Queue("main")], RULES)
    runs(state, job("x", preemptible=True), ("n", (0,)))
    state.job_queued(job("claim", priority=1), 1)
    state.claims_of["claim"] = claims
    assert evicted(state, 60_000) == orders


def test_a_cycle_orders_no_more_evictions_than_its_cap_and_the_next_one_goes_on() -> None:
    rules = PolicySettings(min_run_ms=60_000, grace_ms=5000, evictions_per_cycle_max=1)
    state = state_of([node("n1", 1), node("n2", 1)], [Queue("main")], rules)
    for name, where in (("x", "n1"), ("y", "n2")):
        runs(state, job(name, preemptible=True), (where, (0,)))
    for name in ("one", "two"):
        state.job_queued(job(name, priority=1), 1)
    assert len(evicted(state, 60_000)) == 1
    assert len(evicted(state, 60_001)) == 1
    assert all(running.evicted_for for running in state.running.values())


def test_only_what_happens_from_outside_forgets_who_made_way_for_whom() -> None:
    state = state_of([node("n", 2)], [Queue("main")], RULES)
    for name, index in (("x", 0), ("y", 1)):
        runs(state, job(name, preemptible=True), ("n", (index,)))
    state.job_queued(job("claim", priority=1), 1)
    ((victim, _),) = evicted(state, 60_000)
    state.allocation_ended(victim, 65_000, succeeded=False)
    assert victim in state.yielding
    state.allocation_ended("x" if victim == "y" else "y", 65_000, succeeded=True)
    assert victim not in state.yielding


def test_a_soft_promise_does_not_start_its_holder_before_one_whose_turn_comes_first() -> None:
    state = state_of([node("n", 2)])
    runs(state, job("x", 2), ("n", (0, 1)))
    state.job_queued(job("later", 2, time_limit_ms=HOUR), 0)
    run_cycle(state, 0)
    assert not state.promises.by_pool["A100"].hard
    state.allocation_ended("x", 10, succeeded=True)
    state.job_queued(job("short", 2, submitted_ms=10, time_limit_ms=10), 10)
    assert [start.job_id for start in run_cycle(state, 10).starts] == ["short"]


def test_a_hard_promise_is_set_aside_by_no_priority() -> None:
    state = state_of([node("n", 4)], settings=EASY)
    runs(state, job("x", 3, time_limit_ms=HOUR), ("n", (0, 1, 2)))
    state.job_queued(job("next", 4))
    run_cycle(state, 0)
    state.job_queued(job("urgent", 1, submitted_ms=1, time_limit_ms=2 * HOUR, priority=1), 1)
    assert run_cycle(state, 1).starts == ()
    assert promised(state) == (HOUR, {"n"})


def test_a_soft_promise_stays_with_the_higher_priority_of_its_queue() -> None:
    state = state_of([node("n", 2)])
    runs(state, job("x", 2), ("n", (0, 1)))
    state.job_queued(job("high", 2, priority=1), 0)
    run_cycle(state, 0)
    state.job_queued(job("short", 2, submitted_ms=1, time_limit_ms=1000), 1)
    run_cycle(state, 1)
    assert state.promises.by_pool["A100"].job_id == "high"


def test_a_node_that_joins_again_sells_nothing_that_is_in_use_there() -> None:
    state = state_of([node("n", 2)])
    runs(state, job("x", 1), ("n", (0,)))
    state.node_joined(node("n", 2))
    assert state.capacity.pools["A100"].free_milli == 1000
    state.job_queued(job("y", 2))
    assert run_cycle(state, 1).starts == ()


def test_a_range_of_a_shared_device_is_given_once() -> None:
    state = state_of([node("n", 1)])
    for name in ("x", "y"):
        state.job_queued(job(name, slots_milli=500))
    state.allocation_started(Start("x", (Placement("n", (DeviceSlice(0, 0, 500),)),)), 0)
    with pytest.raises(SliceTaken):
        state.allocation_started(Start("y", (Placement("n", (DeviceSlice(0, 250, 750),)),)), 0)
    state.allocation_started(Start("y", (Placement("n", (DeviceSlice(0, 500, 1000),)),)), 0)


@pytest.mark.parametrize(("before", "orders"), [(2, [("x", "claim")]), (3, [])])
def test_a_job_that_was_stopped_often_enough_gives_way_to_no_priority_any_more(
    before: int, orders: list[tuple[str, str]]
) -> None:
    state = state_of([node("n", 1)], [Queue("main")], RULES)
    runs(state, job("x", preemptible=True), ("n", (0,)))
    state.evictions_of["x"] = before
    state.job_queued(job("claim", priority=1), 1)
    assert evicted(state, 60_000) == orders
