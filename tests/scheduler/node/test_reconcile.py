from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from scheduler.node.protocol import DeviceShare, RunSpec
from scheduler.node.reconcile import Alive, SyncPlan, plan_sync


def spec(run_id: str, *devices: DeviceShare, **changes: Any) -> RunSpec:  # noqa: ANN401 - any field
    made = RunSpec(run_id, "j", "t", 1, ("true",), f"/w/{run_id}", f"/l/{run_id}", devices=devices)
    return replace(made, **changes)


def plan(
    desired: Iterable[RunSpec],
    alive: Iterable[RunSpec] = (),
    known: Iterable[str] = (),
    ended: Iterable[str] = (),
    runs_max: int = 10,
    stopping: Iterable[str] = (),
    going_on: Iterable[str] = (),
) -> SyncPlan:
    living = {run.run_id: Alive(run, run.run_id in stopping) for run in alive}
    return plan_sync(desired, living, {*known, *living}, set(ended), runs_max, going_on)


def test_of_what_goes_on_only_the_id_is_said_and_one_that_is_not_here_does_not_start() -> None:
    found = plan([], alive=[spec("a"), spec("b")], going_on=["a", "c"])
    assert (found.renew, found.stop, found.start, found.refuse) == (("a",), ("b",), (), ())
    held = plan([spec("d", DeviceShare(0))], alive=[spec("a", DeviceShare(0))], going_on=["a"])
    assert [refusal.code for refusal in held.refuse] == ["taken"]


def test_what_is_missing_starts_and_what_is_not_desired_stops() -> None:
    found = plan([spec("a")], alive=[spec("b")])
    assert [start.spec.run_id for start in found.start] == ["a"]
    assert found.stop == ("b",)


def test_a_run_that_lives_is_renewed_and_not_started_again() -> None:
    found = plan([spec("a")], alive=[spec("a")])
    assert (found.start, found.renew, found.stop) == ((), ("a",), ())


def test_a_run_that_ended_never_starts_again() -> None:
    found = plan([spec("a"), spec("b")], known=["a", "b"], ended=["a"])
    assert not found.start
    assert [(refusal.run_id, refusal.code) for refusal in found.refuse] == [("b", "already_ran")]


def test_a_run_waits_for_a_leaving_one_that_holds_its_slots() -> None:
    found = plan([spec("b", DeviceShare(0, 0, 500))], alive=[spec("a", DeviceShare(0))])
    assert found.stop == ("a",)
    assert found.start[0].after == ("a",)


def test_a_run_waits_for_a_desired_one_that_is_stopping_by_itself() -> None:
    found = plan(
        [spec("a", DeviceShare(0)), spec("b", DeviceShare(0))],
        alive=[spec("a", DeviceShare(0))],
        stopping=["a"],
    )
    assert found.start[0].after == ("a",)


def test_slots_that_a_desired_run_holds_are_not_given_twice() -> None:
    found = plan(
        [spec("a", DeviceShare(0, 0, 600)), spec("b", DeviceShare(0, 500, 1000)), spec("c", DeviceShare(1))]
    )
    assert [start.spec.run_id for start in found.start] == ["a", "c"]
    assert [(refusal.run_id, refusal.code) for refusal in found.refuse] == [("b", "taken")]


def test_halves_of_one_card_are_two_things() -> None:
    found = plan([spec("a", DeviceShare(0, 0, 500)), spec("b", DeviceShare(0, 500, 1000))])
    assert len(found.start) == 2


def test_a_workspace_inside_another_runs_workspace_is_refused() -> None:
    found = plan([spec("a"), spec("b", workspace="/w/a/below")])
    assert [refusal.run_id for refusal in found.refuse] == ["b"]


def test_a_node_takes_no_more_runs_than_it_may() -> None:
    found = plan([spec("a"), spec("b")], runs_max=1)
    assert [refusal.code for refusal in found.refuse] == ["node_full"]
