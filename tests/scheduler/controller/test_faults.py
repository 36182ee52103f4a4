"""What must hold when controllers, supervisors, answers and clocks fail."""

from datetime import timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from kernel.clock import utc_now
from kernel.database import transaction
from scheduler.controller.poison import find_poison
from scheduler.node.errors import SupervisorRefused
from scheduler.refusals import LeadershipLost
from tests.scheduler.controller.cluster import FOREVER, Cluster, log_of

pytestmark = pytest.mark.slow


class Killed(Exception):
    pass


def _die() -> None:
    raise Killed


def _replace_controller(cluster: Cluster) -> None:
    """The process is gone without a word; another one takes over when the lease has lapsed."""
    cluster.sql("UPDATE scheduler_leader SET held = false")
    cluster.controller = cluster.new_controller("next")


def _lapse(cluster: Cluster) -> None:
    cluster.sql("UPDATE scheduler_leader SET held = false")


def test_the_database_refuses_to_sell_a_slice_twice(cluster: Cluster) -> None:
    cluster.node()
    cluster.until_state(cluster.submit(*FOREVER), "running")
    again = (
        "INSERT INTO allocations SELECT gen_random_uuid(), run_id, node, device_index, model, "
        "int8range(lower(slots) + 999, upper(slots)), tstzrange(now(), NULL) FROM allocations"
    )
    with (
        pytest.raises(IntegrityError, match="ex_allocations_slots_span"),
        transaction(cluster.engine) as session,
    ):
        session.execute(text(again))


def test_a_standby_takes_over_after_the_lease_and_the_old_leader_writes_nothing(cluster: Cluster) -> None:
    node = cluster.node()
    job_id = cluster.submit(*FOREVER)
    cluster.until_state(job_id, "running")
    old, standby = cluster.controller, cluster.new_controller("standby")
    assert not standby.lead()
    _lapse(cluster)
    cluster.tick(standby)
    waiting = cluster.submit("/bin/true")
    with pytest.raises(LeadershipLost):
        old.step({"n"}, ticking=True)
    assert cluster.job(waiting).state == "queued"
    with pytest.raises(SupervisorRefused) as refused, node.client() as client:
        client.sync(cluster.sockets.requests[0][1])
    assert refused.value.facts["code"] == "stale_epoch"
    cluster.tick(standby)
    assert cluster.job(job_id).state == "running"


def test_a_controller_killed_between_commit_and_sync_starts_the_job_once(cluster: Cluster) -> None:
    cluster.node()
    cluster.sockets.deaf.add("n")
    cluster.sockets.before_answer = _die
    job_id = cluster.submit("/bin/sh", "-c", "echo once")
    with pytest.raises(Killed):
        cluster.tick()
    cluster.sockets.deaf.clear()
    cluster.sockets.before_answer = lambda: None
    _replace_controller(cluster)
    assert cluster.ended(job_id).state == "succeeded"
    assert log_of(cluster, job_id) == "once\n"
    assert len(cluster.runs(job_id)) == 1


def test_a_controller_killed_between_sync_and_observation_starts_the_job_once(cluster: Cluster) -> None:
    cluster.node()
    job_id = cluster.submit("/bin/sh", "-c", "echo once")
    cluster.sockets.before_answer = _die
    with pytest.raises(Killed):
        cluster.tick()
    cluster.sockets.before_answer = lambda: None
    _replace_controller(cluster)
    assert cluster.ended(job_id).state == "succeeded"
    assert log_of(cluster, job_id) == "once\n"
    assert len(cluster.free.usage) == 1


@pytest.mark.parametrize(("max_retries", "state"), [(0, "failed"), (1, "running")])
def test_a_killed_supervisor_fails_its_jobs_or_they_are_tried_again(
    cluster: Cluster, max_retries: int, state: str
) -> None:
    node = cluster.node(heartbeat_ms=50)
    job_id = cluster.submit(*FOREVER, max_retries=max_retries)
    cluster.until_state(job_id, "running")
    node.kill()
    node.start()
    cluster.until(lambda: cluster.runs(job_id)[0].state == "ended")
    job = cluster.until_state(job_id, state)
    assert cluster.runs(job_id)[0].end_reason == "supervisor_lost"
    assert job.attempt == 1 + max_retries
    assert [r.final for r in cluster.free.usage.values() if r.attempt == 1][-1:] == [True]


def test_a_supervisor_stopped_in_order_is_the_centres_doing_not_the_jobs(cluster: Cluster) -> None:
    node = cluster.node()
    job_id = cluster.submit(*FOREVER, max_retries=1)
    cluster.until_state(job_id, "running")
    assert node.stop() == 0
    node.start()
    cluster.until(lambda: cluster.job(job_id).attempt == 2)
    assert cluster.runs(job_id)[0].end_reason == "node_stopped"


@pytest.mark.slow
def test_a_node_out_of_reach_keeps_its_devices_until_every_lease_has_lapsed(cluster: Cluster) -> None:
    cluster.controller = cluster.new_controller("brief", node_lease_ms=3000)
    cluster.node(devices=[{"index": 0, "model": "sim-a"}])
    job_id = cluster.submit(*FOREVER)
    cluster.until_state(job_id, "running")
    cluster.sockets.away.add("n")
    cluster.tick()
    assert cluster.open_allocations() == 1
    job = cluster.ended(job_id)
    assert (job.state, job.end_reason) == ("failed", "node_lost")
    assert cluster.open_allocations() == 0
    assert cluster.sql("SELECT state FROM nodes") == [("down",)]
    assert not cluster.free.usage
    cluster.sockets.away.clear()
    cluster.until(lambda: any(record.final for record in cluster.free.usage.values()))
    assert cluster.sql("SELECT state FROM nodes") == [("up",)]


def test_nobody_waits_for_usage_of_a_run_that_a_lost_node_had_not_started(cluster: Cluster) -> None:
    cluster.controller = cluster.new_controller("brief", node_lease_ms=3000)
    node = cluster.node()
    started = cluster.submit(*FOREVER)
    cluster.until_state(started, "running")
    cluster.sockets.deaf.add("n")
    asked = cluster.submit(*FOREVER)
    cluster.tick()
    assert cluster.runs(asked)[0].state == "placed"
    node.kill()
    cluster.until(lambda: cluster.job(asked).state == "failed")
    node.start()
    cluster.sockets.deaf.clear()
    cluster.until(lambda: any(record.final for record in cluster.free.usage.values()))
    assert cluster.runs(asked)[0].end_reason == "never_started"
    assert cluster.runs(started)[0].end_reason == "node_lost"


def test_a_node_that_does_not_answer_gets_no_new_job(cluster: Cluster) -> None:
    cluster.node()
    cluster.sockets.deaf.add("n")
    cluster.tick()
    job_id = cluster.submit("/bin/true")
    cluster.tick()
    assert cluster.job(job_id).state == "queued"
    cluster.sockets.deaf.clear()
    assert cluster.ended(job_id).state == "succeeded"


def test_a_device_that_becomes_unhealthy_keeps_its_job_and_gets_no_other(cluster: Cluster) -> None:
    node = cluster.node(devices=[{"index": 0, "model": "sim-a"}])
    job_id = cluster.submit(*FOREVER)
    cluster.until_state(job_id, "running")
    cluster.sql("UPDATE devices SET healthy = false")
    waiting = cluster.submit("/bin/true")
    cluster.tick()
    _replace_controller(cluster)
    cluster.tick()
    assert cluster.job(job_id).state == "running"
    assert cluster.job(waiting).state == "queued"
    assert node.process is not None


def test_a_job_the_policy_cannot_take_is_set_aside_and_stops_nobody(cluster: Cluster) -> None:
    cluster.node()
    poison = cluster.submit("/bin/true")
    cluster.sql("UPDATE jobs SET time_limit_ms = 0")
    assert cluster.ended(cluster.submit("/bin/true")).state == "succeeded"
    assert cluster.job(poison).state == "queued"
    assert cluster.job(poison).reason.startswith("set aside, because time_limit_ms: 0")
    cluster.cancel(poison)
    assert cluster.ended(poison).state == "cancelled"


def test_the_one_item_that_makes_a_whole_fail_is_found_by_halving() -> None:
    assert find_poison(range(1000), lambda some: 613 in some) == 613
    assert find_poison([1, 2], lambda _: True) is None
    assert find_poison([1, 2], lambda _: False) is None


def test_a_clock_set_back_empties_no_span_and_blocks_no_card(cluster: Cluster) -> None:
    cluster.node(devices=[{"index": 0, "model": "sim-a"}])
    job_id = cluster.submit(*FOREVER)
    cluster.until_state(job_id, "running")
    cluster.sql("UPDATE allocations SET span = tstzrange(lower(span) + interval '1 hour', NULL)")
    cluster.cancel(job_id)
    cluster.ended(job_id)
    assert cluster.ended(cluster.submit("/bin/true")).state == "succeeded"
    spans = cluster.sql("SELECT isempty(span) FROM allocations")
    assert spans == [(False,), (False,)]


def test_a_broken_database_connection_costs_one_step(cluster: Cluster) -> None:
    cluster.node()
    job_id = cluster.submit(*FOREVER)
    cluster.until_state(job_id, "running")
    killer = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"

    def cut() -> None:
        cluster.sockets.before_answer = lambda: None
        with pytest.raises(Exception, match=r"terminat|clos"):
            cluster.sql(killer)

    cluster.sockets.before_answer = cut
    cluster.controller.attempt({"n"}, ticking=True)
    cluster.cancel(job_id)
    assert cluster.ended(job_id).state == "cancelled"


def test_a_leader_that_resigns_lets_the_standby_in_at_once(cluster: Cluster) -> None:
    assert cluster.controller.lead()
    standby = cluster.new_controller("standby")
    assert not standby.lead()
    cluster.controller.resign()
    assert standby.lead()
    assert cluster.sql("SELECT epoch FROM scheduler_leader") == [(2,)]
    assert cluster.sql("SELECT expires_at FROM scheduler_leader")[0][0] > utc_now() + timedelta(seconds=1)
