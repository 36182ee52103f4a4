"""Every state of waiting has a code and a sentence its owner understands."""

from collections.abc import Callable
from typing import Any

import pytest

from scheduler.policy.cycle import run_cycle
from scheduler.policy.model import Job, Node, Queue, Quota, Reservation, Topology
from scheduler.policy.reasons import clock, explain
from scheduler.policy.settings import PolicySettings
from scheduler.policy.state import SchedulerState
from tests.scheduler.policy.builders import job, node, state_of

NOON = 1_800_000_000_000 - 1_800_000_000_000 % 86_400_000 + 12 * 3_600_000
MINUTE = 60_000
TWO = [node("n1", 8), node("n2", 8)]
SWITCHES = [node(f"n{i}", 8, topology=("z", f"s{i // 2}")) for i in range(4)]


def blocker(devices: int, minutes: int = 141, **facts: Any) -> Job:  # noqa: ANN401 - any field of Job
    return job("b", devices, submitted_ms=NOON, time_limit_ms=minutes * MINUTE, **facts)


def asked(devices: int = 1, **facts: Any) -> Job:  # noqa: ANN401 - any field of Job
    return job("j", devices, **{"submitted_ms": NOON, **facts})


def nothing(_state: SchedulerState) -> None:
    """Nothing else happens."""


def keep(state: SchedulerState) -> None:
    state.reserved(Reservation("r", ("n1", "n2"), NOON + 10 * MINUTE, NOON + 20 * MINUTE))


PAIR = [Queue("main"), Queue("other", quotas={"A100": Quota(8000, lend_milli=0)})]
BOUND = [Queue("main", quotas={"A100": Quota(4000, borrow_milli=4000)}), Queue("other")]


ON_ONE_NETWORK = (
    "waiting for 4 free A100 (2 on each of 2 nodes); 4 free; "
    "on 1 of the nodes that can have a network together a part would fit; next expected 14:20 UTC"
)
NO_NETWORK = (
    "asks for 2 nodes with 2 free A100 each that can have a network together, "
    "more than this cluster has even when it is empty"
)
NO_PROCESSORS = (
    "waiting for 1 free A100 on one node (with 4 processors and 10 MiB per node); 1 free; "
    "on no node together; next expected 14:20 UTC"
)


@pytest.mark.parametrize(
    ("nodes", "queues", "running", "waiting", "event", "code", "sentence"),
    [
        (TWO, None, [], asked(), lambda s: s.job_held("j"), "held", "held; it starts after it is released"),
        (
            TWO,
            None,
            [],
            asked(depends_on=("x",)),
            lambda s: s.job_failed("x"),
            "dependency_failed",
            "depends on job x, which failed; withdraw it or submit it anew",
        ),
        (TWO, None, [], asked(depends_on=("x",)), nothing, "dependency", "waiting for job x to succeed"),
        (
            TWO,
            None,
            [],
            asked(depends_on=("x", "y", "z")),
            nothing,
            "dependency",
            "waiting for job x and 2 others to succeed",
        ),
        (
            TWO,
            None,
            [],
            asked(not_before_ms=NOON + 90 * MINUTE),
            nothing,
            "not_before",
            "asked not to start before 13:30 UTC",
        ),
        (
            TWO,
            None,
            [],
            asked(min_pflops_milli=320),
            nothing,
            "no_such_device",
            "no node has devices of at least 0.32 PFLOPS",
        ),
        (
            TWO,
            None,
            [],
            asked(9),
            nothing,
            "too_large",
            "asks for 9 free devices on one node, more than this cluster has even when it is empty",
        ),
        (TWO, BOUND, [], asked(9, nodes=1, models=("A100",)), nothing, "too_large", None),
        (
            TWO,
            BOUND,
            [],
            asked(8, nodes=2),
            nothing,
            "beyond_quota",
            "asks for 16 devices, more than its queue may ever use",
        ),
        (
            TWO,
            [Queue("main", running_max=1)],
            [blocker(1)],
            asked(),
            nothing,
            "queue_limit",
            "queue 'main' runs 1 job, which is its limit",
        ),
        (
            TWO,
            [Queue("main", user_running_max=1)],
            [blocker(1, user="u")],
            asked(user="u"),
            nothing,
            "user_limit",
            "user 'u' runs 1 job in queue 'main', which is the limit",
        ),
        (
            TWO,
            None,
            [blocker(1, array_id="r", array_running_max=1)],
            asked(array_id="r", array_running_max=1),
            nothing,
            "array_limit",
            "its array runs 1 job, which is its limit",
        ),
        (
            TWO,
            BOUND,
            [blocker(6)],
            asked(4),
            nothing,
            "quota",
            "queue 'main' uses 6 of at most 8 A100 (guarantee and borrow limit); the job needs 4 more",
        ),
        (
            TWO,
            PAIR,
            [blocker(8)],
            asked(4),
            nothing,
            "quota",
            "waiting for 4 A100; the 8 that are idle are guaranteed to queues that do not lend them",
        ),
        (
            TWO,
            [Queue("main"), Queue("other", quotas={"A100": Quota(2000)})],
            [blocker(8, nodes=2)],
            asked(4, models=("A100",)),
            nothing,
            "capacity",
            "waiting for 4 free A100 on one node; 0 free; next expected 14:20 UTC",
        ),
        (
            SWITCHES,
            None,
            [blocker(7, nodes=2, topology=Topology.SPREAD)],
            asked(8, nodes=2, models=("A100",), topology=Topology.SAME_SWITCH),
            nothing,
            "capacity",
            "waiting for 16 free A100 in one switch (8 on each of 2 nodes); 9 free; next expected 14:20 UTC",
        ),
        (
            [node(f"n{i}", 2, network=name) for i, name in enumerate("bab")],
            None,
            [blocker(2)],
            asked(2, nodes=2, models=("A100",), talks=True),
            nothing,
            "capacity",
            ON_ONE_NETWORK,
        ),
        (
            [node(f"n{i}", 2, network=str(i)) for i in range(2)],
            None,
            [],
            asked(2, nodes=2, models=("A100",), talks=True),
            nothing,
            "too_large",
            NO_NETWORK,
        ),
        (
            TWO,
            None,
            [blocker(5, nodes=2)],
            asked(4, models=("A100",)),
            nothing,
            "capacity",
            "waiting for 4 free A100 on one node; 6 free; on no node together; next expected 14:20 UTC",
        ),
        (
            [node("n", 2, cpu_milli=8000, memory_mib=100)],
            None,
            [blocker(1, cpu_milli=6000)],
            asked(1, cpu_milli=4000, memory_mib=10),
            nothing,
            "capacity",
            NO_PROCESSORS,
        ),
        (
            [node("n", 1)],
            None,
            [blocker(1, slots_milli=700)],
            asked(1, slots_milli=500),
            nothing,
            "capacity",
            "waiting for 0.5 free A100 on one node (1 × 500/1000); 0.3 free; next expected 14:20 UTC",
        ),
        (
            TWO,
            None,
            [],
            asked(),
            keep,
            "reservation",
            "what is free is reserved or about to be drained; a limit of 60 min would run into it",
        ),
        (TWO, None, [], asked(), nothing, "order", "fits now and is next in order at the coming cycle"),
    ],
)
def test_every_state_of_waiting_has_a_sentence(
    nodes: list[Node],
    queues: list[Queue] | None,
    running: list[Job],
    waiting: Job,
    event: Callable[[SchedulerState], None],
    code: str,
    sentence: str | None,
) -> None:
    state = state_of(nodes, queues)
    for one in running:
        state.job_queued(one)
    assert len(run_cycle(state, NOON).starts) == len(running)
    state.job_queued(waiting, NOON)
    event(state)
    told = explain(state, "j", NOON, 5)
    assert (told.code, told.start_estimate_ms) == (code, 5)
    assert sentence is None or told.sentence == sentence


def test_a_job_that_gives_way_to_a_promise_or_a_claim_says_so() -> None:
    state = state_of(TWO, settings=PolicySettings(min_run_ms=0))
    state.job_queued(blocker(8))
    run_cycle(state, NOON)
    state.job_queued(job("gang", 8, nodes=2, submitted_ms=NOON))
    state.job_queued(job("j", 1, submitted_ms=NOON, time_limit_ms=200 * MINUTE))
    run_cycle(state, NOON)
    told = explain(state, "j", NOON)
    assert told.code == "promise"
    assert told.sentence == (
        "what is free is promised to an earlier job from 14:21 UTC on; a limit of 200 min would run into it"
    )


def test_a_claimant_and_whom_it_keeps_away_say_so() -> None:
    queues = [Queue("a", quotas={"A100": Quota(8000)}), Queue("main")]
    state = state_of([node("n", 8)], queues, PolicySettings(min_run_ms=MINUTE))
    state.job_queued(blocker(4))
    run_cycle(state, NOON)
    state.job_queued(job("c", 8, "a", submitted_ms=NOON), NOON)
    run_cycle(state, NOON)
    state.job_queued(asked(2), NOON)
    run_cycle(state, NOON)
    assert {name: explain(state, name, NOON).code for name in state.queued} == {
        "c": "nominated",
        "j": "promise",
    }
    state.promises.by_pool.clear()
    assert explain(state, "j", NOON).sentence == "what is free is being cleared for a stronger claim"
    plan = run_cycle(state, NOON + MINUTE)
    for eviction in plan.evictions:
        state.eviction_ordered(eviction)
    assert explain(state, "c", NOON).sentence == "room is being made for it: 1 running job told to stop"


@pytest.mark.parametrize(
    ("at_ms", "text"), [(NOON + 140 * MINUTE, "14:20 UTC"), (NOON + 13 * 3_600_000, "2027-01-16 01:00 UTC")]
)
def test_times_carry_the_date_unless_they_are_today(at_ms: int, text: str) -> None:
    assert clock(at_ms, NOON) == text
