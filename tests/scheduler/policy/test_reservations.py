"""Nodes kept for a tenant or for nobody: what starts on them, and what is said to those who wait."""

from scheduler.policy.cycle import plan_cycle, run_cycle
from scheduler.policy.model import DeviceSlice, Placement, Queue, Quota, Reservation, Start
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


def test_before_a_reservation_a_short_job_starts_though_a_longer_one_came_long_before() -> None:
    state = _state(Reservation("r", ("n1", "n2"), 11 * HOUR, 13 * HOUR))
    state.job_queued(job("long", time_limit_ms=2 * HOUR))
    assert _started(state) == {"long": "n1"}
    state.reservations_changed([Reservation("r", ("n1", "n2"), HOUR, 13 * HOUR)], 0)
    assert _started(state) == {}
    for number, limit_ms in enumerate((HOUR, 3 * HOUR, HOUR // 2, HOUR + 1)):
        state.job_queued(job(f"j{number}", submitted_ms=1 + number, time_limit_ms=limit_ms))
    assert set(_started(state, 1)) == {"j2"}, "j0 would run a millisecond into it"


def test_of_a_queue_that_tenants_share_the_one_whose_nodes_these_are_goes_before_its_turn() -> None:
    state = _state(
        Reservation("r", ("n1",), 0, 9 * HOUR, for_tenant="guest"),
        Reservation("s", ("n2",), HOUR, 9 * HOUR, for_jobs=frozenset({"named"})),
    )
    for number, (name, tenant, limit_ms) in enumerate(
        (
            ("host", "host", 2 * HOUR),
            ("brief", "host", HOUR),
            ("named", "host", 3 * HOUR),
            ("guest", "guest", HOUR),
        )
    ):
        state.job_queued(job(name, tenant=tenant, submitted_ms=number - 8, time_limit_ms=limit_ms))
    started = _started(state, 0)
    assert started["guest"] == "n1"
    assert set(started) in ({"guest", "brief"}, {"guest", "named"})


def test_who_is_kept_from_some_models_by_its_quota_holds_up_no_shorter_job() -> None:
    queue = Queue("main", quotas={"910B": Quota(0, 0)})
    state = state_of([node("a", 2, "A100"), node("b", 2, "910B")], [queue])
    state.reserved(Reservation("r", ("a",), HOUR, 9 * HOUR))
    state.job_queued(job("long", time_limit_ms=2 * HOUR))
    state.job_queued(job("short", submitted_ms=1, time_limit_ms=HOUR // 2))
    assert _started(state, 10 * 60_000) == {"short": "a"}


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


def test_a_promise_that_is_kept_sets_free_whom_it_hindered_though_its_quota_leaves_it_one_model() -> None:
    both = ("A100", "910B")
    bounded = Queue("bounded", quotas={"910B": Quota(0, 0)})
    state = state_of([node("a", 2, "A100"), node("b", 2, "910B")], [Queue("main"), bounded])
    for name in ("on-a", "on-b"):
        state.job_queued(job(name, 1, models=both, time_limit_ms=HOUR))
        state.allocation_started(Start(name, (Placement(name[-1], (DeviceSlice(0, 0, 1000),)),)), 0)
    state.job_queued(job("wide", 2, models=both, time_limit_ms=HOUR))
    assert not run_cycle(state, 1).starts
    assert set(state.promises.by_pool) == {"A100", "910B"}
    state.job_queued(job("bound", 1, "bounded", submitted_ms=2, models=both, time_limit_ms=2 * HOUR))
    state.allocation_ended("on-b", 2, succeeded=True)
    assert {start.job_id: start.placements[0].node for start in run_cycle(state, 2).starts} == {
        "wide": "b",
        "bound": "a",
    }
