"""One cycle on small clusters: order, gangs, fractions, processors, models, quotas, and undoing a plan."""

import pytest

from scheduler.policy.cycle import plan_cycle, run_cycle
from scheduler.policy.model import (
    DeviceSlice,
    DeviceState,
    Job,
    Node,
    Placement,
    Queue,
    Quota,
    Start,
    Topology,
)
from scheduler.policy.reasons import explain
from scheduler.policy.settings import POLICIES
from tests.scheduler.policy.builders import job, node, state_of

TWO = [node("n1", 4), node("n2", 4)]
MIXED = [node("a1", 2, "A100", pflops_milli=312), node("h1", 2, "910B", pflops_milli=320)]
NETWORKS = [node(f"n{i}", 2, network=name) for i, name in enumerate("bab")]
SWITCHES = [node(f"n{i}", 2, topology=("z", f"s{i // 2}")) for i in range(4)]


@pytest.mark.parametrize(
    ("nodes", "jobs", "started"),
    [
        (TWO, [job("a", 4), job("b", 4), job("c", 4)], ["a", "b"]),
        (TWO, [job("g", 4, nodes=2), job("a", 1)], ["a"]),
        (TWO, [job("g", 4, nodes=3)], []),
        (TWO, [job("g", 4, nodes=1, tail_devices=2)], ["g"]),
        (TWO, [job("big", 5)], []),
        (MIXED, [job("a", 2, models=("A100", "910B")), job("b", 2, models=("A100", "910B"))], ["a", "b"]),
        (MIXED, [job("a", 2, min_pflops_milli=315)], ["a"]),
        (MIXED, [job("a", 2, min_pflops_milli=400)], []),
        ([node("n", 1)], [job(f"h{i}", 1, slots_milli=500) for i in range(3)], ["h0", "h1"]),
        ([node("n", 1)], [job(f"h{i}", 1, slots_milli=334) for i in range(3)], ["h0", "h1"]),
        ([node("n", 4, cpu_milli=3000)], [job(f"c{i}", 1, cpu_milli=1500) for i in range(3)], ["c0", "c1"]),
        ([node("n", 4, memory_mib=100)], [job(f"c{i}", 1, memory_mib=60) for i in range(3)], ["c0"]),
        (
            [node("n", 4, memory_mib=100), node("m", 4, memory_mib=100)],
            [job(f"g{i}", 1, nodes=2, memory_mib=60) for i in range(2)],
            ["g0"],
        ),
        (
            [node("n", 4, cpu_milli=3000), node("m", 4, cpu_milli=3000)],
            [job(f"g{i}", 1, nodes=2, cpu_milli=2000) for i in range(2)],
            ["g0"],
        ),
        ([node("n", 1, cpu_milli=1000)], [job("cpu", 0, cpu_milli=1000)], ["cpu"]),
        (SWITCHES, [job("g", 2, nodes=2, topology=Topology.SAME_SWITCH)], ["g"]),
        (SWITCHES, [job("g", 2, nodes=3, topology=Topology.SAME_SWITCH)], []),
        (SWITCHES, [job("g", 2, nodes=3)], ["g"]),
        (NETWORKS, [job("g", 2, nodes=2, talks=True)], ["g"]),
        (NETWORKS, [job("g", 2, nodes=3, talks=True)], []),
        (NETWORKS, [job("g", 2, nodes=3)], ["g"]),
        (NETWORKS, [job("a", 2), job("g", 2, nodes=2, talks=True)], ["a"]),
        (NETWORKS, [job("a", 2), job("g", 2, nodes=2)], ["a", "g"]),
    ],
)
def test_a_cycle_starts_exactly_the_jobs_that_fit_whole(
    nodes: list[Node], jobs: list[Job], started: list[str]
) -> None:
    state = state_of(nodes)
    for one in jobs:
        state.job_queued(one)
    assert [start.job_id for start in plan_cycle(state, 0).starts] == started


@pytest.mark.parametrize("others", [0, 1], ids=["alone", "beside-another"])
@pytest.mark.parametrize(
    ("told", "starts"),
    [((), True), (("hold",), False), (("hold", "release"), True), (("withdraw",), False)],
    ids=["nothing", "held", "released", "withdrawn"],
)
def test_what_is_said_of_a_job_before_its_first_cycle_counts(
    told: tuple[str, ...], others: int, *, starts: bool
) -> None:
    state = state_of(TWO)
    state.job_queued(job("a"))
    for number in range(others):
        state.job_queued(job(f"b{number}"))
    for word in told:
        if word == "hold":
            state.job_held("a")
        elif word == "release":
            state.job_released("a", 0)
        else:
            state.job_withdrawn("a")
    for plan in (plan_cycle(state, 0), plan_cycle(state, 0), run_cycle(state, 0)):
        assert [start.job_id for start in plan.starts].count("a") == starts
        assert len(plan.starts) == starts + others
    assert not state.pending.classes


def test_who_was_withdrawn_before_its_first_cycle_takes_no_turn_from_a_class() -> None:
    state = state_of([node("n", 1)])
    state.job_queued(job("first", 1))
    run_cycle(state, 0)
    state.job_queued(job("gone", 1, priority=2))
    state.job_withdrawn("gone")
    state.job_queued(job("waits", 1, priority=1))
    run_cycle(state, 1)
    assert [key.priority for key in state.pending.rotation(1)] == [1]


LIMITED = [Queue("main", user_running_max=99)]
UNLENT = [Queue("main"), Queue("other", quotas={"A100": Quota(2000, lend_milli=0)})]


@pytest.mark.parametrize(("queues", "started"), [(None, ["y", "z"]), (LIMITED, ["y", "z"]), (UNLENT, ["y"])])
def test_what_runs_on_drained_nodes_and_failed_devices_takes_nothing_of_what_is_free_elsewhere(
    queues: list[Queue] | None, started: list[str]
) -> None:
    state = state_of([node("n1", 4), node("n2", 4), node("n3", 2)], queues)
    for name, where, devices in (("x", "n1", 4), ("w", "n3", 2)):
        state.job_queued(job(name, devices))
        pieces = tuple(DeviceSlice(index, 0, 1000) for index in range(devices))
        state.allocation_started(Start(name, (Placement(where, pieces),)), 0)
    state.node_drained("n1")
    state.node_joined(Node("n3", "A100", (DeviceState(0, healthy=False), DeviceState(1, healthy=False))))
    pool = state.capacity.pools["A100"]
    assert (pool.capacity_milli, pool.free_milli) == (4000, 4000)
    for name in ("y", "z"):
        state.job_queued(job(name, 2))
    assert [start.job_id for start in plan_cycle(state, 1).starts] == started
    for name in ("x", "w"):
        state.allocation_ended(name, 1, succeeded=True)
    assert (pool.capacity_milli, pool.free_milli) == (4000, 4000)
    state.node_resumed("n1")
    state.node_joined(node("n3", 2))
    assert (pool.capacity_milli, pool.free_milli) == (10_000, 10_000)


def test_planning_leaves_the_state_as_it_was_and_repeats_itself() -> None:
    state = state_of(TWO)
    for one in (job("a", 4), job("b", 2), job("h", 1, slots_milli=250)):
        state.job_queued(one)
    first = plan_cycle(state, 0)
    assert plan_cycle(state, 0) == first
    assert len(first.starts) == 3
    assert run_cycle(state, 0) == first
    assert not state.queued


def test_committed_starts_are_fed_back_as_events_and_end_again() -> None:
    state = state_of(TWO)
    state.job_queued(job("g", 4, nodes=2))
    for start in plan_cycle(state, 0).starts:
        state.allocation_started(start, 0)
    state.job_queued(job("next", 4))
    assert plan_cycle(state, 1).starts == ()
    state.allocation_ended("g", 5, succeeded=True)
    assert [start.job_id for start in plan_cycle(state, 5).starts] == ["next"]


def test_a_spread_gang_lies_in_different_switches() -> None:
    state = state_of(SWITCHES)
    state.job_queued(job("g", 1, nodes=2, topology=Topology.SPREAD))
    (start,) = plan_cycle(state, 0).starts
    assert [placement.node for placement in start.placements] == ["n0", "n2"]


def test_a_packed_gang_takes_the_smallest_domain_that_holds_it() -> None:
    state = state_of([*SWITCHES, node("n9", 2, topology=("z", "s9"))])
    state.job_queued(job("one", 2, models=("A100",)))
    state.job_queued(job("g", 2, nodes=2))
    starts = {start.job_id: start for start in plan_cycle(state, 0).starts}
    assert [placement.node for placement in starts["g"].placements] == ["n2", "n3"]


@pytest.mark.parametrize(
    ("quotas", "started"),
    [
        ({"a": Quota(2000, borrow_milli=0)}, ["a0", "b0", "a1", "b1"]),
        ({"a": Quota(1000, borrow_milli=0)}, ["a0", "b0", "b1", "b2"]),
        ({"a": Quota(1000, borrow_milli=1000), "b": Quota(0, borrow_milli=1000)}, ["a0", "b0", "a1"]),
        ({"a": Quota(2000, lend_milli=0)}, ["a0", "a1", "b0", "b1"]),
    ],
)
def test_queues_take_turns_within_their_quotas(quotas: dict[str, Quota], started: list[str]) -> None:
    queues = [Queue(name, quotas={"A100": quotas[name]} if name in quotas else {}) for name in ("a", "b")]
    state = state_of([node("n", 4)], queues)
    for index in range(4):
        for queue in ("a", "b"):
            state.job_queued(job(f"{queue}{index}", queue=queue))
    names = [start.job_id for start in plan_cycle(state, 0).starts]
    assert sorted(names[: len(started)]) == sorted(started)


def test_a_strict_queue_lets_nobody_pass_its_first_job() -> None:
    state = state_of([node("n", 4)], settings=POLICIES["fifo"])
    state.job_queued(job("a", 3))
    state.job_queued(job("b", 3))
    state.job_queued(job("c", 1))
    assert [start.job_id for start in run_cycle(state, 0).starts] == ["a"]
    assert run_cycle(state, 1).starts == ()
    state.allocation_ended("a", 2, succeeded=True)
    assert [start.job_id for start in run_cycle(state, 2).starts] == ["b", "c"]


def test_dependencies_not_before_holds_and_limits_keep_a_job_waiting_and_say_so() -> None:
    state = state_of([node("n", 4)], [Queue("main", user_running_max=1)])
    state.job_queued(job("first", user="u"))
    state.job_queued(job("then", depends_on=("first",), user="v"))
    state.job_queued(job("late", not_before_ms=1000, user="w"))
    state.job_queued(job("held", user="x"))
    state.job_held("held")
    state.job_queued(job("second", user="u", submitted_ms=0))
    state.job_queued(job("huge", 9, user="y"))
    assert [start.job_id for start in run_cycle(state, 0).starts] == ["first"]
    codes = {name: explain(state, name, 0).code for name in state.queued}
    assert codes == {
        "then": "dependency",
        "late": "not_before",
        "held": "held",
        "second": "user_limit",
        "huge": "too_large",
    }
    state.allocation_ended("first", 1000, succeeded=True)
    state.job_released("held", 1000)
    assert {start.job_id for start in run_cycle(state, 1000).starts} == {"second", "then", "late", "held"}


def test_an_array_runs_no_more_at_a_time_than_its_limit() -> None:
    state = state_of([node("n", 4)])
    for index in range(4):
        state.job_queued(job(f"a{index}", array_id="a", array_running_max=2))
    assert len(run_cycle(state, 0).starts) == 2


def test_a_drained_node_takes_nothing_and_a_returned_one_does() -> None:
    state = state_of([node("n", 4)])
    state.job_queued(job("a"))
    state.node_drained("n")
    assert plan_cycle(state, 0).starts == ()
    state.node_resumed("n")
    assert len(plan_cycle(state, 0).starts) == 1


def test_a_redeemed_promise_goes_to_the_next_in_order_though_nobody_has_asked_for_it_yet() -> None:
    state = state_of([node(f"n{number}", 2) for number in range(3)], settings=POLICIES["easy"])
    for number, hours in enumerate((1, 5, 9)):
        state.job_queued(job(f"run-{number}", 2, time_limit_ms=hours * 3_600_000))
    run_cycle(state, 0)
    state.job_queued(job("first", 2, submitted_ms=1, time_limit_ms=7_200_000))
    state.job_queued(job("second", 2, submitted_ms=2, time_limit_ms=7_200_000))
    state.job_queued(job("third", 2, nodes=2, submitted_ms=3))
    run_cycle(state, 4)
    state.allocation_ended("run-0", 3_600_000, succeeded=True)
    assert [start.job_id for start in run_cycle(state, 3_600_000).starts] == ["first"]
    assert state.promises.by_pool["A100"].job_id == "second"


def test_who_is_gone_before_a_promise_goes_in_order_of_arrival_across_shapes() -> None:
    state = state_of([node("n1", 4), node("n2", 4)], settings=POLICIES["easy"])
    state.job_queued(job("long", 4, time_limit_ms=7_200_000))
    run_cycle(state, 0)
    state.job_queued(job("gang", 4, nodes=2, submitted_ms=1))
    state.job_queued(job("wide-and-long", 2, submitted_ms=2, time_limit_ms=9_000_000))
    state.job_queued(job("narrow", 1, submitted_ms=3))
    state.job_queued(job("narrow-later", 1, submitted_ms=4))
    state.job_queued(job("wide", 2, submitted_ms=5))
    state.job_queued(job("narrow-shortest", 1, submitted_ms=6, time_limit_ms=60_000))
    started = [start.job_id for start in run_cycle(state, 7).starts]
    assert started == ["narrow", "narrow-later", "wide"]


@pytest.mark.parametrize(
    ("hours", "expected"),
    [(1, "n2"), (4, "n2"), (6, "n3"), (20, "n1")],
    ids=[
        "prolongs-nothing",
        "as-long-as-its-neighbour",
        "prolongs-less",
        "prolongs-a-node-that-others-can-join",
    ],
)
def test_a_job_goes_to_the_node_that_it_keeps_in_use_least_longer(hours: int, expected: str) -> None:
    state = state_of([node("n1", 4), node("n2", 4), node("n3", 4)])
    for number, lasts in enumerate((4, 9)):
        held = job(f"run-{number}", 3, time_limit_ms=lasts * 3_600_000, estimate_ms=lasts * 3_600_000)
        state.job_queued(held)
        plan = plan_cycle(state, 0)
        state.allocation_started(
            plan.starts[0]._replace(
                placements=tuple(one._replace(node=f"n{number + 2}") for one in plan.starts[0].placements)
            ),
            0,
        )
    state.job_queued(job("new", 1, time_limit_ms=hours * 3_600_000, estimate_ms=hours * 3_600_000))
    assert [start.placements[0].node for start in run_cycle(state, 0).starts] == [expected]


@pytest.mark.parametrize(("queue", "holder"), [("b", "early"), ("a", "urgent")])
def test_a_priority_counts_for_a_vacant_promise_within_its_queue_and_not_across_queues(
    queue: str, holder: str
) -> None:
    state = state_of([node("n"), node("m")], [Queue("a"), Queue("b")])
    for name in ("x", "y"):
        state.job_queued(job(name, 8, "b"))
    run_cycle(state, 0)
    state.job_queued(job("early", 8, "a", submitted_ms=1000, nodes=2), 1000)
    long = {"submitted_ms": 2000, "time_limit_ms": 36_000_000}
    state.job_queued(job("urgent", 8, queue, priority=5, nodes=2, **long), 2000)
    run_cycle(state, 2000)
    state.promises.by_pool.clear()
    state.allocation_ended("x", 3000, succeeded=True)
    run_cycle(state, 3000)
    assert state.promises.by_pool["A100"].job_id == holder
