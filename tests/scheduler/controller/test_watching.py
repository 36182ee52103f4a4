"""Which nodes a controller has watched, and which it asks again by itself."""

from dataclasses import replace

from scheduler.node.protocol import Report, RunState
from tests.scheduler.controller.counted import Centre


def starting(report: Report) -> Report:
    """As a node reports that still prepares what it has just been told to start."""
    return replace(report, runs=tuple(replace(run, state=RunState.STARTING) for run in report.runs))


def test_a_node_where_a_job_is_starting_is_asked_by_the_next_step_and_watched_after_it(centre: Centre) -> None:
    centre.tick()
    assert centre.machines.watched == {"n"}
    centre.machines.falsified = starting
    centre.submit()
    centre.tick()
    assert centre.machines.watched == frozenset()
    words = centre.wakeups.wait(0)
    assert words == {"n"}
    asked = len(centre.machines.requests)
    centre.controller.step(words, ticking=False)
    assert len(centre.machines.requests) == asked + 1
    assert centre.machines.watched == {"n"}  # a start that takes its time is waited for, not asked for
    assert centre.wakeups.wait(0) == set()


def test_a_node_that_runs_what_it_was_told_is_watched_at_once(centre: Centre) -> None:
    centre.started()
    assert centre.machines.watched == {"n"}
    assert centre.wakeups.wait(0) == set()


def test_a_node_that_does_not_answer_is_not_watched(centre: Centre) -> None:
    centre.tick()
    centre.machines.deaf = True
    centre.tick()
    assert centre.machines.watched == frozenset()
