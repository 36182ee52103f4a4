"""The imaginary pool: what first come, first served would have made jobs wait, and who is promoted by it."""

import pytest

from scheduler.policy.congestion import Congestion, FirstCome
from scheduler.policy.cycle import run_cycle
from scheduler.policy.model import Queue
from tests.scheduler.policy.builders import job, node, state_of

Arrival = tuple[int, int, int]
"""When, how many milli-slots, for how long."""


@pytest.mark.parametrize(
    ("arrivals", "until_ms", "bound_ms"),
    [
        ([(0, 1000, 100)], 50, 0),
        ([(0, 2000, 100), (0, 1000, 100)], 60, 63),
        ([(0, 2000, 100), (0, 1000, 100)], 500, 105),
        ([(0, 1000, 100), (0, 2000, 100), (0, 1000, 100)], 500, 210),
        ([(0, 2000, 100), (0, 3000, 100), (0, 1000, 100)], 500, 105),
        ([(0, 2000, 100), (0, 1000, 100)], 100 + 41 * 100, 0),
    ],
    ids=["alone", "waiting-still", "waited", "nobody-passes", "too-large-is-left-out", "forgotten"],
)
def test_the_bound_is_the_longest_wait_in_strict_order_and_a_twentieth(
    arrivals: list[Arrival], until_ms: int, bound_ms: int
) -> None:
    pool = FirstCome()
    for number, (at_ms, milli, lasts_ms) in enumerate(arrivals):
        pool.arrived(f"job-{number}", milli, lasts_ms, at_ms)
    for now_ms in range(0, until_ms + 1, 10):
        pool.advance(now_ms, 2000, {})
    assert pool.overdue_after_ms == bound_ms


def test_a_job_that_ends_early_ends_early_in_the_imagination_too() -> None:
    pool = FirstCome()
    pool.arrived("a", 2000, 1000, 0)
    pool.arrived("b", 2000, 1000, 0)
    pool.advance(0, 2000, {})
    pool.ended("a", 200)
    pool.advance(1000, 2000, {})
    assert pool.overdue_after_ms == 210


def test_a_job_that_fits_and_has_nobody_before_it_starts_at_the_instant_it_arrives() -> None:
    pool = FirstCome()
    pool.advance(0, 2000, {})
    for name, milli, at_ms in (("a", 1000, 10), ("b", 1000, 20), ("c", 2000, 30)):
        pool.arrived(name, milli, 1000, at_ms)
    for now_ms in (500, 1010, 1015, 2000):
        pool.advance(now_ms, 2000, {})
    assert pool.overdue_after_ms == (1020 - 30) * 105 // 100


def test_a_line_goes_on_when_the_pool_has_grown() -> None:
    pool = FirstCome()
    pool.advance(0, 1000, {})
    pool.arrived("a", 1000, 10_000, 0)
    pool.arrived("b", 1000, 10_000, 0)
    pool.advance(1000, 1000, {})
    pool.advance(1001, 2000, {})
    pool.advance(9000, 2000, {})
    assert pool.overdue_after_ms == 1001 * 105 // 100


def test_a_job_that_is_withdrawn_holds_up_nobody() -> None:
    pool = FirstCome()
    for name in ("a", "b", "c"):
        pool.arrived(name, 2000, 1000, 0)
    pool.advance(0, 2000, {})
    pool.left("a")
    pool.left("b")
    pool.advance(100, 2000, {})
    pool.advance(900, 2000, {})
    assert pool.overdue_after_ms == 105


HOUR_MS = 3_600_000


@pytest.mark.parametrize(
    ("max_wait_ms", "first"),
    [(None, "large"), (1000 * HOUR_MS, "small")],
    ids=["bound-from-congestion", "bound-of-the-queue"],
)
def test_who_waits_longer_than_first_come_would_have_let_it_goes_first(
    max_wait_ms: int | None, first: str
) -> None:
    state = state_of([node("n", 1)], [Queue("main", max_wait_ms=max_wait_ms)])
    state.job_queued(job("running", 1, time_limit_ms=HOUR_MS))
    run_cycle(state, 0)
    state.job_queued(job("large", 1, submitted_ms=0, time_limit_ms=100 * HOUR_MS))
    for number in range(3):
        at_ms = number * HOUR_MS // 4
        state.job_queued(job(f"small-{number}", 1, submitted_ms=at_ms, time_limit_ms=HOUR_MS // 60), at_ms)
        run_cycle(state, at_ms)
    state.allocation_ended("running", HOUR_MS, succeeded=True)
    state.job_queued(job("small", 1, submitted_ms=HOUR_MS, time_limit_ms=1000), HOUR_MS)
    for number in range(3):
        state.job_withdrawn(f"small-{number}")
    started = [start.job_id for start in run_cycle(state, 2 * HOUR_MS).starts]
    assert started == [first]


@pytest.mark.parametrize(
    ("waited_hours", "order"),
    [
        (90, ["small", "medium", "large"]),
        (96, ["small", "large", "medium"]),
        (104, ["small", "large", "medium"]),
        (106, ["large", "small", "medium"]),
    ],
    ids=["patient", "promoted", "still-promoted", "overdue"],
)
def test_a_job_that_will_soon_be_overdue_is_passed_by_small_jobs_only_and_an_overdue_one_by_nobody(
    waited_hours: int, order: list[str]
) -> None:
    state = state_of([node("n", 1)])
    now_ms = waited_hours * HOUR_MS
    state.job_queued(job("running", 1, submitted_ms=now_ms, time_limit_ms=200 * HOUR_MS), now_ms)
    run_cycle(state, now_ms)
    seen = Congestion()
    for model in state.congestion.pools:
        seen.pools[model] = FirstCome()
        seen.pools[model].longest_ms = 100 * HOUR_MS
    state.congestion.inherit(seen)
    for name, submitted_ms, hours in (("large", 0, 1000), ("medium", now_ms, 400), ("small", now_ms, 1)):
        asked = job(name, 1, submitted_ms=submitted_ms, time_limit_ms=hours * HOUR_MS)
        state.job_queued(asked, now_ms)
    now_ms += 1
    state.allocation_ended("running", now_ms, succeeded=True)
    started = []
    while plan := run_cycle(state, now_ms).starts:
        started += [start.job_id for start in plan]
        state.allocation_ended(started[-1], now_ms, succeeded=False)
    assert started == order
