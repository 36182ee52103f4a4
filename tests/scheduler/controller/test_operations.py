"""What an operator's orders and failing devices do to jobs on real sandboxes."""

from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest

from kernel.clock import utc_now
from kernel.database import transaction
from kernel.ids import new_id
from scheduler.operations import cordon_device, cordon_node, drain_node, resume_node
from scheduler.reservations import ReservationRequest, cancel_reservation, reserve
from tests.scheduler.controller.cluster import FOREVER, Cluster

pytestmark = pytest.mark.slow
ONE_CARD = [{"index": 0, "model": "sim-a"}]
WHY = {"reason": "fan 3 rattles", "by": UUID(int=1)}


def _reserve(cluster: Cluster, tenant: UUID | None, begins_s: int, *nodes: str) -> UUID:
    now, reservation_id = utc_now(), new_id()
    span = (now + timedelta(seconds=begins_s), now + timedelta(hours=9))
    request = ReservationRequest(dict.fromkeys(nodes, ()), *span, tenant, "disks")
    with transaction(cluster.engine) as session:
        reserve(session, reservation_id, request, by=UUID(int=1), at=now)
    return reservation_id


def _kinds(cluster: Cluster) -> list[str]:
    return [kind for (kind,) in cluster.sql("SELECT kind FROM node_events ORDER BY number")]


def test_a_drained_node_lets_its_job_finish_and_takes_no_other_until_it_is_resumed(cluster: Cluster) -> None:
    cluster.node(devices=ONE_CARD * 1)
    running = cluster.submit("/bin/sh", "-c", "until [ -e go ]; do sleep 0.05; done")
    cluster.until_state(running, "running")
    with transaction(cluster.engine) as session:
        drain_node(session, "n", deadline=None, at=utc_now(), **WHY)
    waiting = cluster.submit("/bin/true")
    (cluster.store.attempt(cluster.job(running), 1) / "rank-0" / "go").touch()
    assert cluster.ended(running).state == "succeeded"
    cluster.tick()
    assert cluster.job(waiting).state == "queued"
    assert "1 installed on nodes that take no new jobs" in cluster.job(waiting).reason
    with transaction(cluster.engine) as session:
        resume_node(session, "n", at=utc_now(), **WHY)
    assert cluster.ended(waiting).state == "succeeded"
    assert _kinds(cluster) == ["joined", "draining", "resumed"]


def test_what_still_runs_at_a_drains_deadline_is_tried_again_elsewhere_at_the_centres_cost(
    cluster: Cluster,
) -> None:
    cluster.node("a", devices=ONE_CARD)
    job_id = cluster.submit(*FOREVER)
    cluster.until_state(job_id, "running")
    cluster.node("b", devices=ONE_CARD)
    with transaction(cluster.engine) as session:
        drain_node(session, "a", deadline=utc_now(), at=utc_now(), **WHY)
    cluster.until(lambda: len(cluster.runs(job_id)) > 1)
    job = cluster.until_state(job_id, "running")
    first, second = cluster.runs(job_id)
    assert (first.node, first.end_reason, second.node) == ("a", "node_drained", "b")
    assert (job.attempt, job.lost_attempts, job.max_retries) == (2, [1], 0)
    cluster.cancel(job_id)
    assert cluster.ended(job_id).state == "cancelled"


def test_a_cordon_outlives_the_loss_and_return_of_the_node(cluster: Cluster) -> None:
    node = cluster.node(devices=ONE_CARD)
    with transaction(cluster.engine) as session:
        cordon_node(session, "n", at=utc_now(), **WHY)
        session.connection().exec_driver_sql("UPDATE nodes SET state = 'down'")
    node.kill()
    node.start()
    cluster.tick()
    job_id = cluster.submit("/bin/true")
    cluster.tick()
    cluster.tick()
    assert cluster.sql("SELECT state, admits FROM nodes") == [("up", "cordoned")]
    assert cluster.job(job_id).state == "queued"
    cluster.cancel(job_id)
    cluster.ended(job_id)


def test_a_cordoned_device_takes_no_job_and_the_others_do(cluster: Cluster) -> None:
    cluster.node(devices=[{"index": index, "model": "sim-a"} for index in range(2)])
    with transaction(cluster.engine) as session:
        cordon_device(session, "n", 0, at=utc_now(), **WHY)
    job_id = cluster.submit("/bin/true")
    cluster.ended(job_id)
    assert cluster.runs(job_id)[0].devices == [[1, 0, 1000]]


def test_a_tenants_reservation_takes_that_tenants_jobs_only(cluster: Cluster) -> None:
    cluster.node(devices=ONE_CARD)
    guest = new_id()
    reservation_id = _reserve(cluster, guest, 0, "n")
    mine = cluster.submit("/bin/true")
    cluster.tick()
    cluster.tick()
    assert "what is free is reserved or about to be drained" in cluster.job(mine).reason
    guests = cluster.submit("/bin/true", tenant=guest)
    assert cluster.ended(guests).state == "succeeded"
    assert cluster.job(mine).state == "queued"
    with transaction(cluster.engine) as session:
        cancel_reservation(session, reservation_id, by=UUID(int=1), at=utc_now())
    assert cluster.ended(mine).state == "succeeded"


def test_before_a_maintenance_window_only_short_jobs_start_and_in_it_what_still_runs_is_stopped(
    cluster: Cluster,
) -> None:
    cluster.node(devices=[{"index": index, "model": "sim-a"} for index in range(3)])
    before = cluster.submit(*FOREVER)
    cluster.until_state(before, "running")
    announced = _reserve(cluster, None, 3600, "n")
    long = cluster.submit("/bin/true", time_limit_ms=7_200_000)
    short = cluster.submit("/bin/true", time_limit_ms=600_000)
    assert cluster.ended(short).state == "succeeded"
    assert cluster.job(long).state == "queued"
    with transaction(cluster.engine) as session:
        cancel_reservation(session, announced, by=UUID(int=1), at=utc_now())
    assert cluster.ended(long).state == "succeeded"
    _reserve(cluster, None, 0, "n")
    job = cluster.until_state(before, "queued")
    assert (job.attempt, job.lost_attempts, cluster.runs(before)[0].end_reason) == (1, [1], "node_drained")
    cluster.cancel(before)
    cluster.ended(before)


def test_an_unhealthy_device_drains_by_itself_and_a_failed_one_gives_its_job_back(
    cluster: Cluster, tmp_path: Path
) -> None:
    health = tmp_path / "health"
    cards = [{"index": index, "model": "sim-a", "health_file": str(health)} for index in (0,)]
    cluster.node(devices=cards)
    running = cluster.submit(*FOREVER)
    cluster.until_state(running, "running")
    health.write_text("unhealthy 3 pages wait to be retired")
    cluster.until(lambda: "device_unhealthy" in _kinds(cluster))
    assert cluster.job(running).state == "running"
    health.write_text("failed it has fallen off the bus (XID 79)")
    job = cluster.until_state(running, "queued")
    assert (job.lost_attempts, cluster.runs(running)[0].end_reason) == ([1], "device_failed")
    assert cluster.sql("SELECT healthy, failed, health_reason FROM devices") == [
        (False, True, "it has fallen off the bus (XID 79)")
    ]
    health.unlink()
    again = cluster.until_state(running, "running")
    assert again.attempt == 2
    assert _kinds(cluster) == ["joined", "device_unhealthy", "device_failed", "device_recovered"]
    cluster.cancel(running)
    cluster.ended(running)
