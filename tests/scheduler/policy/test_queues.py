"""Quotas, tiers and shares of the queue tree, as tables; a thousand milli-slots are one device."""

import pytest

from scheduler.policy.cycle import run_cycle
from scheduler.policy.model import MS_PER_HOUR, Job, Queue, Quota
from scheduler.policy.queues import QueueTree, Tier
from tests.scheduler.policy.builders import job, node, state_of

TEN = 10_000


def started(queues: list[Queue], jobs: list[Job], devices: int = 8) -> list[str]:
    state = state_of([node("n", devices)], queues)
    for one in jobs:
        state.job_queued(one)
    return sorted(start.job_id for start in run_cycle(state, 0).starts)


@pytest.mark.parametrize(
    ("used", "milli", "tier"),
    [
        (0, 2000, Tier.GUARANTEED),
        (1000, 1001, Tier.BORROWING),
        (2000, 3000, Tier.BORROWING),
        (2000, 3001, Tier.OPPORTUNISTIC),
    ],
)
def test_a_claim_is_guaranteed_then_borrows_then_takes_what_is_idle(used: int, milli: int, tier: Tier) -> None:
    tree = QueueTree([Queue("a", quotas={"A100": Quota(2000, borrow_milli=3000)}), Queue("b")])
    tree.charge(tree.leaf("a"), "A100", used, 0)
    assert tree.leaf("a").tier("A100", milli) is tier


PARENT = Queue("p", quotas={"A100": Quota(4000, borrow_milli=0)})


@pytest.mark.parametrize(
    ("queues", "leaf", "milli", "opportunistic", "refused_by"),
    [
        ([Queue("a", quotas={"A100": Quota(2000, 1000)})], "a", 3000, False, None),
        ([Queue("a", quotas={"A100": Quota(2000, 1000)})], "a", 3001, False, "a"),
        ([Queue("a", quotas={"A100": Quota(2000, 1000)})], "a", 3001, True, None),
        ([Queue("a", quotas={"A100": Quota(2000, 1000)})], "a", 10_001, True, ""),
        ([PARENT, Queue("a", "p")], "a", 4001, False, "p"),
        ([PARENT, Queue("a", "p")], "a", 4001, True, None),
        ([Queue("a"), Queue("b", quotas={"A100": Quota(4000, lend_milli=1000)})], "a", 7000, False, None),
        ([Queue("a"), Queue("b", quotas={"A100": Quota(4000, lend_milli=1000)})], "a", 7001, False, ""),
        ([Queue("a"), Queue("b", quotas={"A100": Quota(4000, lend_milli=1000)})], "a", 7001, True, ""),
        ([Queue("a"), Queue("b", quotas={"A100": Quota(4000, lend_milli=1000)})], "b", 10_000, False, None),
        (
            [PARENT, Queue("a", "p"), Queue("b", "p", {"A100": Quota(3000, lend_milli=0)})],
            "a",
            1000,
            False,
            None,
        ),
        (
            [PARENT, Queue("a", "p"), Queue("b", "p", {"A100": Quota(3000, lend_milli=0)})],
            "a",
            1001,
            False,
            "p",
        ),
        (
            [PARENT, Queue("a", "p"), Queue("b", "p", {"A100": Quota(3000, lend_milli=0)})],
            "b",
            4000,
            False,
            None,
        ),
    ],
)
def test_bounds_and_lend_limits_hold_at_every_level(
    queues: list[Queue],
    leaf: str,
    milli: int,
    opportunistic: bool,  # noqa: FBT001 - a column of the table
    refused_by: str | None,
) -> None:
    tree = QueueTree(queues)
    refusing = tree.refusal(tree.leaf(leaf), "A100", milli, TEN, opportunistic=opportunistic)
    assert (None if refusing is None else refusing.name) == refused_by


SPARE = [Queue("a", quotas={"A100": Quota(1000, borrow_milli=1000)}), Queue("b")]


@pytest.mark.parametrize(
    ("queues", "jobs", "expected"),
    [
        (SPARE, [job("x", 3, "a")], []),
        (SPARE, [job("x", 3, "a", preemptible=True)], ["x"]),
        (SPARE, [job("x", 3, "a", preemptible=True), job("y", 8, "b")], ["y"]),
        (SPARE, [job("x", 3, "a", preemptible=True), job("y", 6, "b")], ["y"]),
        (SPARE, [job("x", 3, "a", preemptible=True), job("y", 5, "b")], ["x", "y"]),
        (
            [Queue("a", quotas={"A100": Quota(0, 0)}), Queue("b", quotas={"A100": Quota(4000, lend_milli=0)})],
            [job("x", 4, "a", preemptible=True), job("y", 4, "a", preemptible=True)],
            ["x"],
        ),
    ],
)
def test_preemptible_jobs_take_what_is_idle_beyond_a_borrow_limit_after_everybody_else(
    queues: list[Queue], jobs: list[Job], expected: list[str]
) -> None:
    assert started(queues, jobs) == expected


@pytest.mark.parametrize(
    ("queue", "users", "running"),
    [
        (Queue("a", running_max=2), ["u", "v", "w"], 2),
        (Queue("a", user_running_max=1), ["u", "u", "v"], 2),
        (Queue("a", user_running_max=1, running_max=1), ["u", "v"], 1),
    ],
)
def test_queues_and_users_run_no_more_jobs_than_their_limits(
    queue: Queue, users: list[str], running: int
) -> None:
    jobs = [job(f"j{i}", 1, "a", user=user) for i, user in enumerate(users)]
    assert len(started([queue], jobs)) == running
    above = [
        Queue("p", running_max=queue.running_max, user_running_max=queue.user_running_max),
        Queue("a", "p"),
    ]
    assert len(started(above, jobs)) == running


@pytest.mark.parametrize(("hours_later", "average_milli"), [(0, 8000), (24, 4000), (48, 2000), (24 * 40, 0)])
def test_past_use_is_halved_every_half_life_at_every_level(hours_later: int, average_milli: int) -> None:
    tree = QueueTree([Queue("p"), Queue("a", "p"), Queue("b", "p"), Queue("q")])
    leaf = tree.leaf("a")
    tree.charge(leaf, "A100", 8000, 0)
    tree.charge(leaf, "A100", -8000, 100 * 24 * MS_PER_HOUR)
    now_ms = (100 * 24 + hours_later) * MS_PER_HOUR
    for state in leaf.ancestry[1:]:
        assert state.recent_milli("A100", now_ms) == pytest.approx(average_milli, abs=8)


def test_among_equals_the_group_that_used_less_lately_goes_first_and_inside_it_the_member() -> None:
    queues = [Queue("p"), Queue("q"), *(Queue(f"{parent}{i}", parent) for parent in "pq" for i in range(2))]
    state = state_of([node("n", 1)], queues)
    for name in ("p0", "p1", "q0", "q1"):
        state.job_queued(job(name, 1, name))
        state.job_queued(job(f"{name}-again", 1, name, submitted_ms=1))
    order = []
    for hour in range(8):
        (start,) = run_cycle(state, hour * MS_PER_HOUR).starts
        order.append(start.job_id[:2])
        state.allocation_ended(start.job_id, (hour + 1) * MS_PER_HOUR, succeeded=True)
    assert [name[0] for name in order[:4]] in (["p", "q", "p", "q"], ["q", "p", "q", "p"])
    assert sorted(order[:4]) == ["p0", "p1", "q0", "q1"]
