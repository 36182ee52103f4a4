"""Start estimates come from the same policy and leave the state alone."""

from scheduler.policy.cycle import plan_cycle, run_cycle
from scheduler.policy.forecast import estimate_starts
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
