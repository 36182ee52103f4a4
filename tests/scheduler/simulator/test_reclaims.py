"""Workloads that once kept a claim from its guarantee or moved a promise back, found by search and kept by hand."""

from dataclasses import replace

import pytest

from scheduler.policy.model import Job, Queue, Quota
from scheduler.policy.settings import POLICIES
from scheduler.simulator.workload import TraceJob, uniform_cluster
from tests.scheduler.simulator.logs import judged
from tests.scheduler.validity import faults, reclaims

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
            preemptible=preemptible == f"j{number:02d}",
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
