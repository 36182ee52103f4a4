"""The judge sees every violation: one hand-made bad log per rule, and the good log it was made from."""

from dataclasses import replace

import pytest

from tests.scheduler.validity import (
    Asked,
    Attempt,
    Bound,
    Kept,
    Log,
    Machine,
    Nominated,
    Piece,
    Promised,
    Stop,
    differences,
    faults,
    reclaims,
)

M1 = Machine("m1", "A100", 4, 8000, 100)
M2 = Machine("m2", "A100", 4, 8000, 100)
QUEUES = (
    Bound("firms", None, {"A100": 6000}, guaranteed_milli={"A100": 4000}),
    Bound("a", "firms", {"A100": 4000}, guaranteed_milli={"A100": 2000}),
    Bound("b", None, guaranteed_milli={"A100": 2000}),
)


def asked(job: str, devices: int = 1, queue: str = "a", **facts: object) -> Asked:
    known = {"submitted_ms": 0, "limit_ms": 100, "models": ("A100",), "nodes": 1, "slots": 1000}
    return Asked(
        job=job, queue=queue, devices=devices, **{**known, "cpu_milli": 1000, "memory_mib": 10, **facts}
    )  # type: ignore[arg-type]


def ran(
    job: str, start: int = 0, end: int = 50, devices: tuple[int, ...] = (0,), node: str = "m1", **facts: object
) -> Attempt:
    pieces = tuple(Piece(node, device, 0, 1000) for device in devices)
    return replace(Attempt(job, 1, start, end, "finished", (node,), pieces), **facts)  # type: ignore[arg-type]


def log(*rows: tuple[Asked, Attempt], **facts: object) -> Log:
    jobs, attempts = {one.job: one for one, _ in rows}, tuple(run for _, run in rows)
    return Log((M1, M2), QUEUES, tuple(jobs.values()), attempts, min_run_ms=10, grace_ms=5, **facts)  # type: ignore[arg-type]


GOOD = log((asked("x", 2), ran("x", devices=(0, 1))), (asked("y", queue="b"), ran("y", devices=(2,))))
X, Y = asked("x"), asked("y", queue="b")
STOPPED = {"reason": "preempted"}
PROMISE = Promised(0, "y", "A100", frozenset({"m2"}), 20, hard=True)
CYCLES = {"cycles_ms": (0, 10, 20, 30), "backfills": True}
FREE = (Bound("a", None, max_wait_ms=10), Bound("b", None))


def free(one: Log) -> Log:
    """The same log with queues without bounds."""
    return replace(one, bounds=FREE)


def switched(first: str, second: str, job: Asked) -> Log:
    """A gang over two machines in these switches."""
    pieces = (Piece("m1", 0, 0, 1000), Piece("m2", 0, 0, 1000))
    machines = (replace(M1, switch=("z", first)), replace(M2, switch=("z", second)))
    return replace(log((job, ran(job.job, nodes=("m1", "m2"), pieces=pieces))), machines=machines)


def tailed(start: int) -> Attempt:
    """One device on the first machine and two left over on the second."""
    pieces = (Piece("m1", 0, 0, 1000), Piece("m2", 0, 0, 1000), Piece("m2", 1, 0, 1000))
    return ran("x", start, nodes=("m1", "m2"), pieces=pieces)


def test_a_gang_of_one_switch_and_an_empty_machine_for_what_is_left_over_are_no_fault() -> None:
    assert faults(switched("s1", "s1", asked("x", nodes=2, same_switch=True))) == []
    assert faults(switched("s1", "s2", asked("x", nodes=2))) == []
    assert faults(log((asked("x", tail=2), tailed(5)), (Y, ran("y", 0, 5, devices=(3,), node="m2")))) == []


@pytest.mark.parametrize(
    ("rows", "facts"),
    [
        (((asked("z", 4), ran("z", 0, 20, (0, 1, 2, 3))), (X, ran("x", 20))), {}),
        (
            ((asked("z", user="u"), ran("z", 0, 20)), (asked("x", user="u"), ran("x", 20))),
            {"user_running_max": 1},
        ),
        (((asked("z"), ran("z", 0, 20)), (X, ran("x", 20))), {"running_max": 1}),
        (
            (
                (asked("z", array="r", array_max=1), ran("z", 0, 20)),
                (asked("x", array="r", array_max=1), ran("x", 20)),
            ),
            {},
        ),
    ],
)
def test_who_waits_for_a_bound_or_a_limit_is_no_fault(
    rows: tuple[tuple[Asked, Attempt], ...], facts: dict[str, int]
) -> None:
    bounds = (QUEUES[0], replace(QUEUES[1], **facts), QUEUES[2])  # type: ignore[arg-type]
    assert faults(replace(log(*rows, **CYCLES), bounds=bounds)) == []


def test_what_is_not_lent_or_being_cleared_may_stand_idle_beside_a_bound() -> None:
    rows = ((asked("z", 4, queue="b"), ran("z", 0, 20, (0, 1, 2, 3))), (X, ran("x", 20, node="m2")))
    waits = log(*rows, **CYCLES)
    assert faults(waits) == ["x waits at 0 though it fits", "x waits at 10 though it fits"]
    unlent = (*QUEUES[:2], Bound("b", None), Bound("c", None, unlent_milli={"A100": 4000}))
    assert faults(replace(waits, bounds=unlent)) == []
    cleared = tuple(Nominated(at_ms, "y", frozenset()) for at_ms in (0, 10))
    assert faults(replace(waits, nominations=cleared)) == []


def test_a_good_log_has_no_fault() -> None:
    assert faults(GOOD) == []
    assert differences(GOOD, GOOD) == []


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (log((X, ran("x")), (Y, ran("y"))), "share slots"),
        (log((X, ran("x", devices=(7,)))), "does not have"),
        (log((X, ran("x", pieces=(Piece("m1", 0, 0, 1001),)))), "impossible range"),
        (replace(log((X, ran("x"))), machines=(replace(M1, lost=((20, 60),)), M2)), "while it is lost"),
        (log((X, ran("x")), kept=(Kept(("m1",), 40, 60),)), "while they are reserved"),
        (log((asked("x", cpu_milli=9000), ran("x"))), "more processors or memory"),
        (log((asked("x", memory_mib=101), ran("x"))), "more processors or memory"),
        (log((asked("x", models=("910B",)), ran("x"))), "did not ask for"),
        (log((asked("x", nodes=2), ran("x"))), "got 1 nodes of 2"),
        (log((asked("x", 2), ran("x"))), "got devices [1] instead of [2]"),
        (log((asked("x", slots=500), ran("x"))), "other fractions"),
        (log((asked("x", submitted_ms=5), ran("x"))), "before it may"),
        (log((asked("x", not_before_ms=5), ran("x"))), "before it may"),
        (log((asked("x", limit_ms=40), ran("x"))), "beyond its limit"),
        (log((X, ran("x")), (X, ran("x", 20, 60, (1,), attempt=2))), "two live attempts"),
        (log((X, ran("x")), (X, ran("x", 60, 70, attempt=2))), "runs again after it ended"),
        (log((X, ran("x", attempt=2))), "counts its attempts wrongly"),
        (log((X, ran("x")), (asked("z", depends_on=("x",)), ran("z", 10, 20, (1,)))), "succeeded"),
        (
            log((asked("x", 4), ran("x", devices=(0, 1, 2, 3))), (X, ran("x", 0, 9, node="m2"))),
            "queue a exceeds",
        ),
        (
            replace(
                log((X, ran("x")), (asked("z"), ran("z", devices=(1,)))),
                bounds=(Bound("firms", None, running_max=1), QUEUES[1], QUEUES[2]),
            ),
            "queue firms runs more jobs",
        ),
        (
            replace(
                log((asked("x", user="u"), ran("x")), (asked("z", user="u"), ran("z", devices=(1,)))),
                bounds=(Bound("a", None, user_running_max=1),),
            ),
            "user 'u' runs more",
        ),
        (
            log(
                (asked("x", array="r", array_max=1), ran("x")),
                (asked("z", array="r", array_max=1), ran("z", devices=(1,))),
            ),
            "array 'r' runs more",
        ),
        (
            replace(GOOD, bounds=(*QUEUES, Bound("c", None, unlent_milli={"A100": 6000}))),
            "that a queue does not lend",
        ),
        (log((X, ran("x", 0, 8, **STOPPED))), "preempted before its minimum run time"),  # type: ignore[arg-type]
        (
            log((X, ran("x", 0, 12, **STOPPED)), (Y, ran("y", 12)), stops=(Stop(7, "x", 1, "y"),)),  # type: ignore[arg-type]
            "told to stop before its minimum",
        ),
        (
            log((asked("x", 3), ran("x", 0, 30, (0, 1, 2))), (Y, ran("y", 30)), stops=(Stop(20, "x", 1, "y"),)),
            "runs on after its grace",
        ),
        (
            log((X, ran("x", 0, 20, **STOPPED)), (Y, ran("y", 20)), stops=(Stop(15, "x", 1, "y"),)),  # type: ignore[arg-type]
            "though a is within its guarantee",
        ),
        (
            log((X, ran("x", 0, 20, **STOPPED)), (asked("z"), ran("z", 20)), stops=(Stop(15, "x", 1, "z"),)),  # type: ignore[arg-type]
            "of its own queue",
        ),
        (
            log(
                (asked("x", preemptible=True), ran("x", 0, 20, **STOPPED)),  # type: ignore[arg-type]
                (asked("y", queue="b", preemptible=True), ran("y", 20, 40, **STOPPED)),  # type: ignore[arg-type]
                (asked("x", preemptible=True), ran("x", 40, 50, attempt=2)),
                stops=(Stop(15, "x", 1, "y"), Stop(35, "y", 1, "x")),
            ),
            "makes way for its own victim",
        ),
        (
            free(log((Y, ran("y", 30)), promises=(PROMISE, replace(PROMISE, at_ms=10, from_ms=30)), **CYCLES)),
            "moves from 20 back to 30",
        ),
        (
            free(log((Y, ran("y", 30)), promises=(PROMISE,), **CYCLES)),
            "promised a start by 20 and starts at 30",
        ),
        (free(log((X, ran("x", 20)))), "waits past its queue's bound"),
        (free(log((X, ran("x", 20)), **CYCLES)), "x waits at 0 though it fits"),
        (log((X, ran("x", 20)), **CYCLES), "x waits at 0 though it fits"),
        (
            log((Y, ran("y", 0, 10)), (asked("z", depends_on=("y",)), ran("z", 30, 40)), **CYCLES),
            "z waits at 10 though it fits",
        ),
        (switched("s1", "s2", asked("x", nodes=2, same_switch=True)), "asked for one switch and lies in"),
        (log((asked("x", pflops_milli=320), ran("x"))), "weaker than it asked for"),
        (
            log((asked("x", tail=2), tailed(5)), (Y, ran("y", 0, devices=(3,), node="m2"))),
            "no machine of its own for what is left over",
        ),
    ],
)
def test_the_judge_sees_each_violation(bad: Log, told: str) -> None:
    assert any(told in fault for fault in faults(bad)), faults(bad)


def test_two_models_in_one_gang_are_seen() -> None:
    pieces = (Piece("m1", 0, 0, 1000), Piece("h1", 0, 0, 1000))
    bad = log((asked("x", nodes=2, models=()), ran("x", nodes=("m1", "h1"), pieces=pieces)))
    bad = replace(bad, machines=(M1, Machine("h1", "910B", 4, 8000, 100)))
    assert faults(bad) == ["x runs on two models at once"]


def test_what_promises_and_room_excuse_is_no_fault() -> None:
    slip = free(log((Y, ran("y", 30)), promises=(PROMISE, replace(PROMISE, at_ms=10, from_ms=30)), **CYCLES))
    lost = replace(slip, machines=(M1, replace(M2, lost=((5, 25),))))
    assert not any("moves" in fault for fault in faults(lost))
    cleared = replace(slip, nominations=(Nominated(5, "x", frozenset({"m2"})),))
    assert not any("moves" in fault for fault in faults(cleared))
    rows = ((X, ran("x", 20)), (Y, ran("y", 20, devices=(1,))))
    kept_free = free(log(*rows, promises=(replace(PROMISE, nodes=frozenset({"m1", "m2"})),), **CYCLES))
    assert not any("x waits at 0" in fault for fault in faults(kept_free))


def test_a_claim_inside_its_guarantee_that_waits_too_long_is_seen() -> None:
    rows = log((X, ran("x", 15)), (Y, ran("y", 16, devices=(1,))))
    jobs = {one.job: one for one in rows.asked}
    assert reclaims(rows, jobs) == []
    late = replace(rows, attempts=(ran("x", 17), ran("y", 16, devices=(1,))))
    assert reclaims(late, jobs) == ["x is inside the guarantee of a and waits beyond 15"]


def test_two_different_logs_of_one_input_are_seen() -> None:
    other = replace(GOOD, attempts=(GOOD.attempts[0], ran("y", devices=(3,))))
    assert differences(GOOD, other)
    assert differences(GOOD, replace(GOOD, cycles_ms=(1,))) == ["the logs differ in their orders or promises"]
    assert "1 attempts" in differences(replace(GOOD, attempts=GOOD.attempts[:1]), GOOD)[0]
