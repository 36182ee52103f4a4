"""The lease of leadership beside steps that take long, and steps that never end."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

import pytest

from kernel.clock import boottime_ms
from scheduler.controller.loop import Controller
from tests.scheduler.controller.cluster import DEADLINE_MS, Cluster, log_of

pytestmark = pytest.mark.slow


class Step:
    """A step that stays in its sync, after a node has been told to start something, until the test lets it go on."""

    def __init__(self, cluster: Cluster) -> None:
        self._requests = cluster.sockets.requests
        self._entered, self._released = threading.Event(), threading.Event()
        cluster.sockets.before_answer = self._stay

    def await_entered(self) -> None:
        assert self._entered.wait(DEADLINE_MS / 1000)

    def release(self) -> None:
        self._released.set()

    def _stay(self) -> None:
        if not any(request.desired for _, request in self._requests):
            return
        self._entered.set()
        assert self._released.wait(DEADLINE_MS / 1000)


@contextmanager
def running(controller: Controller, step: Step) -> Iterator[None]:
    """The controller as its process runs it, in a thread."""
    thread = threading.Thread(target=controller.run)
    thread.start()
    try:
        yield
    finally:
        step.release()
        controller.stop()
        thread.join(DEADLINE_MS / 1000)
        assert not thread.is_alive()


def expires_at(cluster: Cluster) -> datetime:
    return datetime.fromisoformat(str(cluster.sql("SELECT expires_at FROM scheduler_leader")[0][0]))


def await_that(is_so: Callable[[], bool]) -> None:
    never, deadline = threading.Event(), boottime_ms() + DEADLINE_MS
    while not is_so():
        assert boottime_ms() < deadline
        never.wait(0.05)


def test_a_step_may_take_longer_than_the_lease_and_leadership_stays(cluster: Cluster) -> None:
    cluster.node()
    cluster.controller.resign()
    leader = cluster.new_controller("leader", tick_ms=100, leader_lease_ms=2000)
    standby = cluster.new_controller("standby")
    job_id = cluster.submit("/bin/sh", "-c", "echo once")
    step = Step(cluster)
    with running(leader, step):
        step.await_entered()
        began = expires_at(cluster)

        def outlasted() -> bool:
            assert not standby.lead()
            return expires_at(cluster) > began + timedelta(milliseconds=2000)

        await_that(outlasted)
        step.release()
        await_that(lambda: cluster.job(job_id).state == "succeeded")
    assert cluster.sql("SELECT holder, epoch FROM scheduler_leader") == [("leader", 2)]
    assert standby.lead()  # the leader was stopped in order


@pytest.mark.parametrize("hours", [-1, 1])
def test_no_step_of_a_wall_clock_moves_the_lease(cluster: Cluster, hours: int) -> None:
    step = f"UPDATE scheduler_leader SET expires_at = now() + interval '{hours} hour'"
    cluster.controller.resign()
    leader = cluster.new_controller("leader", leader_lease_ms=500)
    standby = cluster.new_controller("standby")
    with running(leader, Step(cluster)):
        await_that(lambda: cluster.sql("SELECT holder FROM scheduler_leader") == [("leader",)])
        for _ in range(10):
            cluster.sql(step)
            assert not standby.lead()
    gone = cluster.new_controller("gone", leader_lease_ms=500)
    assert gone.lead()
    cluster.sql(step)
    assert not standby.lead()
    await_that(standby.lead)


def test_a_leader_that_is_stuck_loses_its_lease_and_writes_nothing_when_it_goes_on(cluster: Cluster) -> None:
    cluster.node()
    cluster.controller.resign()
    stuck = cluster.new_controller("stuck", tick_ms=100, leader_lease_ms=500)
    standby = cluster.new_controller("standby")
    job_id = cluster.submit("/bin/sh", "-c", "echo once")
    step = Step(cluster)
    with running(stuck, step):
        step.await_entered()
        await_that(standby.lead)
        lost = expires_at(cluster)
        step.release()
    assert [run.state for run in cluster.runs(job_id)] == ["placed"]
    assert expires_at(cluster) == lost
    cluster.controller = standby
    assert cluster.ended(job_id).state == "succeeded"
    assert log_of(cluster, job_id) == "once\n"
    assert [run.attempt for run in cluster.runs(job_id)] == [1]
