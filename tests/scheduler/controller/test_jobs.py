"""The life of jobs: from submission to every kind of end, on real sandboxes."""

import pytest

from kernel.database import transaction
from scheduler.jobs import cancel_job
from scheduler.refusals import JobAlreadyEnded
from tests.scheduler.controller.cluster import FOREVER, Cluster, log_of

pytestmark = pytest.mark.slow


def test_a_job_starts_runs_and_succeeds_and_gives_its_card_back(cluster: Cluster) -> None:
    cluster.node()
    job_id = cluster.submit("/bin/sh", "-c", "echo hello")
    job = cluster.ended(job_id)
    assert (job.state, job.exit_code, job.end_reason, job.attempt) == ("succeeded", 0, "exited", 1)
    assert job.queued_at <= job.placed_at <= job.ended_at
    assert log_of(cluster, job_id) == "hello\n"
    assert cluster.open_allocations() == 0
    assert cluster.free.ended_jobs == [job_id]
    assert [record.final for record in cluster.free.usage.values()] == [True]


def test_a_job_that_fails_says_with_which_status(cluster: Cluster) -> None:
    cluster.node()
    job = cluster.ended(cluster.submit("/bin/sh", "-c", "exit 3"))
    assert (job.state, job.exit_code, job.end_reason) == ("failed", 3, "exited")


def test_a_job_beyond_its_limit_is_stopped_as_timed_out(cluster: Cluster) -> None:
    cluster.node()
    job = cluster.ended(cluster.submit(*FOREVER, time_limit_ms=200))
    assert (job.state, job.end_reason) == ("failed", "timed_out")
    assert "limit of 200 ms" in job.reason


def test_a_running_job_can_be_cancelled_twice_and_ends_once(cluster: Cluster) -> None:
    cluster.node()
    job_id = cluster.submit(*FOREVER)
    cluster.until_state(job_id, "running")
    cluster.cancel(job_id)
    cluster.cancel(job_id)
    job = cluster.ended(job_id)
    assert (job.state, job.end_reason) == ("cancelled", "cancelled")
    assert cluster.free.ended_jobs == [job_id]
    with transaction(cluster.engine) as session, pytest.raises(JobAlreadyEnded):
        cancel_job(session, job_id, tenant_id=cluster.tenant)


def test_a_queued_job_waits_with_a_reason_and_runs_when_a_card_is_free(cluster: Cluster) -> None:
    cluster.node(devices=[{"index": 0, "model": "sim-a"}])
    first = cluster.submit(*FOREVER)
    cluster.until_state(first, "running")
    second = cluster.submit("/bin/true")
    cluster.tick()
    waiting = cluster.job(second)
    assert waiting.state == "queued"
    assert waiting.reason.startswith("waiting for 1 ")
    cluster.cancel(first)
    assert cluster.ended(second).state == "succeeded"


def test_a_cancelled_queued_job_never_starts(cluster: Cluster) -> None:
    cluster.node()
    job_id = cluster.submit("/bin/true")
    cluster.cancel(job_id)
    job = cluster.ended(job_id)
    assert (job.state, job.reason, job.attempt) == ("cancelled", "cancelled while it waited", 0)
    assert not cluster.runs(job_id)


def test_a_job_cancelled_between_commit_and_sync_ends_without_having_started(cluster: Cluster) -> None:
    cluster.node()
    cluster.sockets.deaf.add("n")
    job_id = cluster.submit("/bin/true")
    cluster.tick()
    assert cluster.job(job_id).state == "starting"
    cluster.cancel(job_id)
    cluster.sockets.deaf.clear()
    cluster.controller.resign()
    cluster.controller = cluster.new_controller("second")
    job = cluster.ended(job_id)
    assert job.state == "cancelled"
    assert [run.end_reason for run in cluster.runs(job_id)] == ["never_started"]
    assert cluster.open_allocations() == 0


def test_a_gang_runs_on_two_nodes_or_not_at_all(cluster: Cluster) -> None:
    cluster.node("n1")
    cluster.node("n2")
    blocker = cluster.submit(*FOREVER, devices_per_node=4)
    cluster.until_state(blocker, "running")
    gang = cluster.submit("/bin/sh", "-c", "echo $RANK of $WORLD_SIZE", node_count=2, devices_per_node=2)
    cluster.tick()
    assert (cluster.job(gang).state, cluster.runs(gang)) == ("queued", [])
    cluster.cancel(blocker)
    assert cluster.ended(gang).state == "succeeded"
    assert {run.node for run in cluster.runs(gang)} == {"n1", "n2"}
    assert [log_of(cluster, gang, rank) for rank in (0, 1)] == ["0 of 2\n", "1 of 2\n"]


def test_one_failing_rank_stops_the_others_and_says_so(cluster: Cluster) -> None:
    cluster.node("n1")
    cluster.node("n2")
    script = '[ "$RANK" = 1 ] && exit 9; trap "exit 7" TERM; while :; do sleep 0.05; done'
    job = cluster.ended(cluster.submit("/bin/sh", "-c", script, node_count=2))
    assert (job.state, job.exit_code) == ("failed", 9)
    assert job.reason.startswith("rank 1")
    assert cluster.open_allocations() == 0


def test_a_job_whose_upload_is_not_on_a_node_says_so_is_tried_again_and_keeps_no_other_from_it(
    cluster: Cluster,
) -> None:
    cluster.node()
    job_id = cluster.submit("/bin/true", upload_sha256="0" * 64)
    cluster.until(lambda: cluster.job(job_id).evictions > 0)
    assert "it is tried elsewhere" in cluster.job(job_id).reason
    assert "is not in the store as this node sees it" in cluster.runs(job_id)[0].end_detail
    assert cluster.ended(cluster.submit("/bin/true")).state == "succeeded"
    cluster.cancel(job_id)
    assert cluster.ended(job_id).state == "cancelled"


def test_a_program_that_is_missing_or_cannot_be_run_says_so_and_garbage_is_kept_as_it_is(
    cluster: Cluster,
) -> None:
    cluster.node()
    missing = cluster.submit("/job/train")
    forbidden = cluster.submit("/etc/passwd")
    garbage = cluster.submit("/bin/sh", "-c", "printf '\\377\\376\\033]0;x'")
    job = cluster.ended(missing)
    assert (job.state, job.exit_code) == ("failed", 127)
    assert job.reason == "Status 127: most likely /job/train is not in the sandbox."
    job = cluster.ended(forbidden)
    assert (job.state, job.exit_code) == ("failed", 126)
    assert job.reason == "Status 126: most likely /etc/passwd is not executable."
    job = cluster.ended(garbage)
    assert job.state == "succeeded"
    log = cluster.store.attempt(job, 1) / "rank-0.log"
    assert log.read_bytes() == b"\xff\xfe\x1b]0;x"


def test_a_job_whose_funds_are_missing_blocks_nobody(cluster: Cluster) -> None:
    cluster.node(devices=[{"index": 0, "model": "sim-a"}])
    poor = cluster.submit("/bin/true")
    cluster.free.refusing.add(poor)
    rich = cluster.submit("/bin/true")
    assert cluster.ended(rich).state == "succeeded"
    assert (cluster.job(poor).state, cluster.job(poor).reason) == ("queued", "waiting for funds: none")


def test_a_node_with_two_models_gives_each_job_its_own(cluster: Cluster) -> None:
    cluster.node(devices=[{"index": 0, "model": "sim-a"}, {"index": 1, "model": "sim-b"}])
    jobs = [cluster.submit(*FOREVER, models=(model,)) for model in ("sim-a", "sim-b")]
    for job_id in jobs:
        cluster.until_state(job_id, "running")
    assert [cluster.runs(job_id)[0].devices for job_id in jobs] == [[[0, 0, 1000]], [[1, 0, 1000]]]


def test_two_halves_share_a_card_and_a_third_waits(cluster: Cluster) -> None:
    cluster.node(devices=[{"index": 0, "model": "sim-a"}])
    jobs = [cluster.submit(*FOREVER, slots_milli=500) for _ in range(3)]
    cluster.until(lambda: sum(cluster.job(job_id).state == "running" for job_id in jobs) == 2)
    assert sorted(cluster.job(job_id).state for job_id in jobs) == ["queued", "running", "running"]
