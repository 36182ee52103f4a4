"""Nodes kept for a tenant or for nobody: what starts on them, and what is said to those who wait."""

from scheduler.policy.cycle import plan_cycle, run_cycle
from scheduler.policy.model import Queue, Reservation
from scheduler.policy.reasons import explain
from scheduler.policy.state import SchedulerState
from tests.scheduler.policy.builders import job, node, state_of

HOUR = 3_600_000


def _state(*reservations: Reservation) -> SchedulerState:
    state = state_of([node("n1", 1), node("n2", 1)], [Queue("main"), Queue("mine")])
    state.reservations_changed(reservations, 0)
    return state


def _started(state: SchedulerState, now_ms: int = 0) -> dict[str, str]:
    return {start.job_id: start.placements[0].node for start in plan_cycle(state, now_ms).starts}


def test_a_tenants_reservation_takes_its_own_jobs_and_no_others() -> None:
    state = _state(Reservation("r", ("n1", "n2"), 0, 2 * HOUR, for_tenant="mine"))
    state.job_queued(job("theirs", tenant="other"))
    state.job_queued(job("ours", queue="mine", tenant="mine"))
    assert set(_started(state)) == {"ours"}
    assert explain(state, "theirs", 0).sentence.startswith("what is free is reserved or about to be drained")
    state.job_queued(job("later", queue="mine", tenant="mine"))
    assert set(_started(state)) == {"ours", "later"}


def test_before_a_reservation_only_what_is_gone_by_then_starts() -> None:
    state = _state(Reservation("r", ("n1", "n2"), HOUR, 2 * HOUR))
    state.job_queued(job("long", time_limit_ms=2 * HOUR))
    state.job_queued(job("short", time_limit_ms=HOUR // 2))
    assert set(_started(state)) == {"short"}
    assert set(_started(state, 2 * HOUR)) == {"long", "short"}


def test_a_cancelled_reservation_binds_nobody_any_more() -> None:
    state = _state(Reservation("r", ("n1", "n2"), 0, 2 * HOUR))
    state.job_queued(job("a"))
    assert not run_cycle(state, 0).starts
    state.reservations_changed([], 0)
    assert set(_started(state)) == {"a"}


def test_what_was_promised_on_nodes_reserved_later_is_promised_elsewhere() -> None:
    state = _state()
    for name in ("a", "b"):
        state.job_queued(job(name))
    run_cycle(state, 0)
    state.job_queued(job("c", time_limit_ms=2 * HOUR))
    run_cycle(state, 0)
    kept = next(iter(state.promises.by_pool.values()))
    bits = {name: state.capacity.nodes[name].bit for name in ("n1", "n2")}
    taken = next(name for name, bit in bits.items() if kept.nodes == bit)
    state.reservations_changed([Reservation("r", (taken,), HOUR, 9 * HOUR)], 0)
    run_cycle(state, 0)
    assert next(iter(state.promises.by_pool.values())).nodes == bits["n2" if taken == "n1" else "n1"]


def test_devices_on_closed_nodes_are_named_to_those_who_wait() -> None:
    state = _state()
    state.node_drained("n1")
    for name in ("a", "b"):
        state.job_queued(job(name))
    run_cycle(state, 0)
    assert "1 installed on nodes that take no new jobs" in explain(state, "b", 0).sentence
