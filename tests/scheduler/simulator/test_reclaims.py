"""Workloads that once kept a claim from its guarantee or moved a promise back, found by search and kept by hand."""

from dataclasses import replace

import pytest

from scheduler.policy.cycle import run_cycle
from scheduler.policy.model import Job, Queue, Quota
from scheduler.policy.settings import POLICIES, PolicySettings
from scheduler.policy.yielding import Yielding
from scheduler.simulator.workload import TraceJob, uniform_cluster
from tests.scheduler.policy.builders import job, node, state_of
from tests.scheduler.simulator.logs import judged
from tests.scheduler.validity import faults, reclaims

RULES = PolicySettings(min_run_ms=60_000, grace_ms=5000)
FIRM = Queue("firms", quotas={"device": Quota(3000)})
TREE = (FIRM, Queue("a", "firms", {"device": Quota(3000)}), Queue("b", "firms", {"device": Quota(0)}))
LENT, UNLENT = (Queue("c", quotas={"device": Quota(1000, lend_milli=lend)}) for lend in (None, 0))
WIDE = (
    Queue("firms", quotas={"device": Quota(10_000)}),
    Queue("a", "firms", {"device": Quota(3000, 2000, 0)}),
    Queue("b", "firms", {"device": Quota(7000, 0, 0)}),
    Queue("c", quotas={"device": Quota(6000)}),
)
Row = tuple[str, int, int, int, int, int]
"""Queue, submitted, duration, limit (all in seconds), nodes, priority."""

THE_QUOTA_ITS_FIRST_VICTIM_LEAVES_IS_KEPT: list[Row] = [
    ("a", 0, 7, 7, 1, 0),
    ("b", 1, 1, 1, 1, 0),
    ("a", 0, 7, 7, 1, 0),
    ("a", 1, 1, 1, 1, 0),
    ("a", 7, 1, 1, 1, 0),
    ("b", 0, 5, 5, 1, 0),
    ("b", 0, 2, 2, 1, 0),
]
ROOM_ANOTHERS_VICTIM_LEAVES_IS_COUNTED_ON_TOGETHER: list[Row] = [
    ("a", 0, 1, 1, 1, 0),
    ("c", 0, 61, 61, 2, 0),
    ("a", 60, 96, 288, 2, 1),
    ("b", 60, 272, 816, 1, 1),
    ("b", 247, 132, 396, 1, 1),
    ("b", 0, 245, 245, 2, 0),
    ("b", 185, 53, 80, 1, 0),
    ("b", 0, 4, 4, 1, 0),
    ("a", 299, 1, 3, 2, 1),
]


OPPORTUNISTIC_JOBS_LEAVE_THE_QUOTA_A_CLAIM_COUNTS_ON: list[Row] = [
    ("a", 250, 1703, 1703, 1, 0),
    ("b", 152, 128, 384, 1, 0),
    ("a", 150, 265, 265, 1, 0),
    ("b", 196, 598, 598, 1, 0),
    ("a", 34, 226, 226, 1, 0),
]
WHO_LOSES_ITS_RIGHT_TO_ONE_VICTIM_TAKES_ANOTHER: list[Row] = [
    ("a", 90, 945, 2835, 1, 0),
    ("b", 114, 519, 1557, 1, 0),
    ("a", 281, 2246, 2246, 1, 0),
    ("a", 271, 1616, 2424, 1, 0),
    ("b", 60, 3861, 3861, 1, 0),
]
WHAT_IS_CLEARED_FOR_ONE_BEYOND_ITS_GUARANTEE_GOES_TO_ONE_INSIDE: list[Row] = [
    ("b", 358, 1050, 3150, 1, 0),
    ("a", 1048, 31, 31, 1, 0),
    ("b", 467, 394, 394, 1, 0),
    ("b", 381, 1700, 5100, 1, 0),
    ("a", 150, 3569, 3569, 1, 0),
    ("b", 560, 409, 1227, 1, 0),
    ("b", 1044, 6, 6, 1, 1),
]
A_CLAIM_GOES_BEFORE_A_PROMISE_IT_IS_GUARANTEED_AGAINST: list[Row] = [
    ("b", 63, 2663, 2663, 1, 0),
    ("a", 194, 487, 487, 1, 0),
    ("c", 107, 1263, 1263, 1, 0),
    ("c", 39, 346, 346, 1, 0),
    ("a", 268, 354, 1062, 1, 0),
    ("c", 160, 453, 1359, 1, 0),
]
A_PROMISE_THAT_GAVE_WAY_IS_MADE_ANEW_TO_THE_SAME_JOB: list[Row] = [
    ("b", 745, 291, 291, 1, 0),
    ("c", 364, 461, 1383, 1, 0),
    ("b", 0, 1239, 1858, 2, 0),
    ("b", 282, 52, 156, 2, 0),
    ("c", 83, 1270, 1270, 1, 0),
    ("a", 538, 3114, 9342, 1, 0),
    ("a", 357, 511, 766, 1, 0),
    ("b", 30, 946, 1419, 1, 0),
]
WHAT_COMES_FREE_IS_THE_CLAIMS_ONCE_ITS_VICTIM_IS_INSIDE_ITS_OWN_GUARANTEE: list[Row] = [
    ("b", 221, 89, 89, 1, 1),
    ("b", 95, 1911, 2867, 1, 0),
    ("a", 418, 2477, 7431, 2, 0),
    ("c", 46, 1374, 1374, 1, 0),
    ("a", 75, 579, 869, 1, 0),
    ("c", 1, 1914, 5742, 1, 0),
    ("b", 70, 3908, 11_724, 2, 0),
]


def firms_and_c(firms: Quota, a: Quota, b: Quota, c: Quota) -> tuple[Queue, ...]:
    return (
        Queue("firms", quotas={"device": firms}),
        Queue("a", "firms", {"device": a}),
        Queue("b", "firms", {"device": b}),
        Queue("c", quotas={"device": c}),
    )


def work_of(rows: list[Row], devices: int = 1, preemptible: str = "") -> tuple[TraceJob, ...]:
    jobs = []
    for number, (queue, submitted_s, duration_s, limit_s, nodes, priority) in enumerate(rows):
        job = Job(
            id=f"j{number:02d}",
            queue=queue,
            submitted_ms=submitted_s * 1000,
            time_limit_ms=limit_s * 1000,
            nodes=nodes,
            devices_per_node=devices,
            priority=priority,
            preemptible=f"j{number:02d}" in preemptible.split(),
        )
        jobs.append(TraceJob(job, duration_s * 1000))
    return tuple(jobs)


@pytest.mark.parametrize(
    ("queues", "rows", "min_run_ms", "grace_ms"),
    [
        ((*TREE, UNLENT), THE_QUOTA_ITS_FIRST_VICTIM_LEAVES_IS_KEPT, 0, 5000),
        ((*TREE, LENT), ROOM_ANOTHERS_VICTIM_LEAVES_IS_COUNTED_ON_TOGETHER, 60_000, 0),
    ],
)
def test_a_claim_inside_its_guarantee_has_it_back_in_time(
    queues: tuple[Queue, ...], rows: list[Row], min_run_ms: int, grace_ms: int
) -> None:
    rules = replace(POLICIES["default"], min_run_ms=min_run_ms, grace_ms=grace_ms)
    log, _ = judged(replace(uniform_cluster(4, 1), queues=queues), work_of(rows), queues, rules)
    assert faults(log) == []
    assert reclaims(log, {one.job: one for one in log.asked}) == []


@pytest.mark.parametrize(
    ("queues", "rows", "preemptible", "size", "min_run_ms", "grace_ms"),
    [
        (
            firms_and_c(Quota(2000, 0), Quota(0, 2000), Quota(2000, 2000), Quota(6000, 0)),
            OPPORTUNISTIC_JOBS_LEAVE_THE_QUOTA_A_CLAIM_COUNTS_ON,
            "j00",
            (2, 4),
            300_000,
            5000,
        ),
        (
            firms_and_c(Quota(3000, 0), Quota(3000), Quota(0, None, 0), Quota(1000, 0)),
            WHO_LOSES_ITS_RIGHT_TO_ONE_VICTIM_TAKES_ANOTHER,
            "j03",
            (1, 4),
            0,
            0,
        ),
        (
            firms_and_c(Quota(4000, 2000), Quota(2000, 2000), Quota(2000, 2000), Quota(0, 0, 0)),
            WHAT_IS_CLEARED_FOR_ONE_BEYOND_ITS_GUARANTEE_GOES_TO_ONE_INSIDE,
            "j05",
            (1, 4),
            0,
            5000,
        ),
        (
            firms_and_c(Quota(2000, 2000), Quota(2000), Quota(0, None, 0), Quota(2000, 0)),
            A_CLAIM_GOES_BEFORE_A_PROMISE_IT_IS_GUARANTEED_AGAINST,
            "j05",
            (4, 1),
            300_000,
            0,
        ),
        (
            firms_and_c(Quota(4000), Quota(1000, 0), Quota(3000, 0, 0), Quota(0, 2000)),
            A_PROMISE_THAT_GAVE_WAY_IS_MADE_ANEW_TO_THE_SAME_JOB,
            "",
            (4, 1),
            300_000,
            5000,
        ),
        (
            firms_and_c(Quota(4000, 0), Quota(3000), Quota(1000, 2000), Quota(0, 2000, 0)),
            WHAT_COMES_FREE_IS_THE_CLAIMS_ONCE_ITS_VICTIM_IS_INSIDE_ITS_OWN_GUARANTEE,
            "j06",
            (4, 1),
            300_000,
            5000,
        ),
    ],
)
def test_a_claim_beside_borrowers_opportunists_and_promises_has_its_guarantee_back_in_time(
    queues: tuple[Queue, ...],
    rows: list[Row],
    preemptible: str,
    size: tuple[int, int],
    min_run_ms: int,
    grace_ms: int,
) -> None:
    rules = replace(POLICIES["default"], min_run_ms=min_run_ms, grace_ms=grace_ms)
    place = replace(uniform_cluster(*size), queues=queues)
    log, _ = judged(place, work_of(rows, preemptible=preemptible), queues, rules)
    assert faults(log) == []
    assert reclaims(log, {one.job: one for one in log.asked}) == []


def test_a_claim_beyond_its_own_guarantee_but_inside_the_firms_moves_no_promise_to_a_sibling() -> None:
    rows: list[Row] = [
        ("a", 626, 640, 960, 1, 0),
        ("b", 288, 1563, 2345, 1, 0),
        ("b", 174, 562, 1686, 2, 0),
        ("c", 299, 517, 1551, 1, 0),
    ]
    rules = replace(POLICIES["default"], min_run_ms=300_000, grace_ms=5000)
    log, _ = judged(replace(uniform_cluster(4, 4), queues=WIDE), work_of(rows, 4, "j02"), WIDE, rules)
    assert faults(log) == []


ORDERED = Queue("firms", quotas={"device": Quota(4000, 2000)})
BOUNDED = Queue("firms", quotas={"device": Quota(3000, 0)})
WHO_CAME_AFTER_THE_BOUND_GIVES_WAY_NOT_WHO_CAME_BEFORE: list[Row] = [
    ("b", 145, 2005, 6015, 1, 0),
    ("c", 385, 262, 262, 2, 0),
    ("a", 1167, 259, 777, 1, 0),
    ("b", 1177, 1435, 1435, 2, 1),
    ("c", 271, 620, 1860, 1, 0),
    ("c", 77, 1472, 2208, 1, 0),
    ("a", 633, 720, 1080, 2, 0),
]
A_JOB_INSIDE_ITS_GUARANTEE_STOPS_AND_IS_STOPPED_IN_TURN: list[Row] = [
    ("b", 215, 2357, 7071, 1, 1),
    ("a", 1104, 613, 613, 2, 0),
    ("a", 73, 3714, 11_142, 1, 0),
    ("b", 549, 1153, 3459, 1, 1),
]


@pytest.mark.parametrize(
    ("queues", "rows", "firm", "grace_ms"),
    [
        (
            (
                ORDERED,
                Queue("a", "firms", {"device": Quota(3000, 0)}),
                Queue("b", "firms", {"device": Quota(1000, 0)}),
                Queue("c", quotas={"device": Quota(0, None, 0)}),
            ),
            WHO_CAME_AFTER_THE_BOUND_GIVES_WAY_NOT_WHO_CAME_BEFORE,
            {"j02"},
            5000,
        ),
        (
            (
                BOUNDED,
                Queue("a", "firms", {"device": Quota(3000)}),
                Queue("b", "firms", {"device": Quota(0, 2000)}),
                Queue("c", quotas={"device": Quota(1000, 0)}),
            ),
            A_JOB_INSIDE_ITS_GUARANTEE_STOPS_AND_IS_STOPPED_IN_TURN,
            {"j02", "j03"},
            0,
        ),
    ],
)
def test_nobody_makes_way_for_its_own_victim(
    queues: tuple[Queue, ...], rows: list[Row], firm: set[str], grace_ms: int
) -> None:
    work = tuple(
        one._replace(job=replace(one.job, preemptible=one.job.id not in firm)) for one in work_of(rows)
    )
    rules = replace(POLICIES["default"], min_run_ms=300_000, grace_ms=grace_ms)
    log, _ = judged(replace(uniform_cluster(4, 1), queues=queues), work, queues, rules)
    assert faults(log) == []


def test_a_job_covered_by_its_queues_guarantee_outlasts_whoever_came_later_beyond_it() -> None:
    state = state_of([node("n", 4)], [Queue("a", quotas={"A100": Quota(2000)}), Queue("b")], RULES)
    for name in ("first", "second", "third", "fourth"):
        state.job_queued(job(name, 1, "a", preemptible=True))
        run_cycle(state, 0)
    assert [one.covered for one in state.running.values()] == [True, True, False, False]
    state.job_queued(job("claim", 1, "b"), 1)
    assert [one.job_id for one in run_cycle(state, RULES.min_run_ms).evictions] == ["fourth"]


def test_only_a_guarantee_turns_round_what_a_job_made_way_for() -> None:
    yielding = Yielding()
    yielding.note("x", "y")
    yielding.note("y", "z")
    assert yielding.leads("x", "z")
    assert not yielding.leads("z", "x")
    copied = yielding.copy()
    copied.note("z", "w")
    assert copied.leads("x", "w")
    assert not yielding.leads("x", "w")
    yielding.forget()
    assert not yielding.leads("x", "y")


SHARED_ABOVE = [
    Queue("firms", quotas={"A100": Quota(3000)}),
    Queue("a", "firms", {"A100": Quota(2000)}),
    Queue("b", "firms", {"A100": Quota(1000)}),
    Queue("c", quotas={"A100": Quota(1000)}),
]


def test_who_comes_in_place_of_a_victim_leaves_the_queue_above_as_far_beyond_its_guarantee() -> None:
    state = state_of([node("n", 4)], SHARED_ABOVE, RULES)
    for name, queue in (("a0", "a"), ("b0", "b"), ("b1", "b"), ("b2", "b")):
        state.job_queued(job(name, 1, queue))
        run_cycle(state, 0)
    state.job_queued(job("claim-a", 1, "a"), 1)
    first = run_cycle(state, RULES.min_run_ms).evictions
    for order in first:
        state.eviction_ordered(order)
    state.job_queued(job("claim-c", 1, "c"), 1)
    second = run_cycle(state, RULES.min_run_ms + 1).evictions
    assert [(one.job_id, one.for_job_id) for one in (*first, *second)] == [("b1", "claim-a"), ("b2", "claim-c")]


def test_a_claim_keeps_its_nomination_when_somebody_comes_in_place_of_another_victim() -> None:
    state = state_of([node("n", 4)], SHARED_ABOVE, RULES)
    for name, queue in (("a0", "a"), ("b0", "b"), ("b1", "b"), ("b2", "b")):
        state.job_queued(job(name, 1, queue))
        run_cycle(state, 0)
    for name, queue in (("claim-a", "a"), ("claim-c", "c")):
        state.job_queued(job(name, 1, queue), 1)
        run_cycle(state, 1)
    before = state.promises.nominations.by_job["claim-c"]
    run_cycle(state, 2)
    assert state.promises.nominations.by_job["claim-c"] is before
