"""Stopping running jobs for a stronger claim, on real sandboxes, and what becomes of them."""

from dataclasses import replace

import pytest

from kernel.ids import new_id
from scheduler.policy.model import Queue, Quota
from scheduler.policy.settings import policy_named
from tests.scheduler.controller.cluster import Cluster, log_of

pytestmark = pytest.mark.slow

BORROWER = (
    "/bin/sh",
    "-c",
    (
        'stop() { echo kept > "$HUB_CHECKPOINTS/step"; echo checkpoint; '
        "until [ -e go ]; do sleep 0.05; done; exit 0; }; "
        'trap stop TERM; echo attempt $HUB_ATTEMPT $(cat "$HUB_CHECKPOINTS/step" 2>/dev/null); '
        "while :; do sleep 0.05; done"
    ),
)


@pytest.fixture
def contested(cluster: Cluster) -> Cluster:
    """One card, guaranteed to `cluster.tenant`; a job needs to have run for no time to be evicted."""
    cluster.policy = replace(policy_named("default"), min_run_ms=0)
    cluster.queues = [Queue(str(cluster.tenant), quotas={"sim-a": Quota(guarantee_milli=1000)})]
    cluster.controller = cluster.new_controller("first")
    cluster.node(devices=[{"index": 0, "model": "sim-a"}])
    return cluster


def test_a_claim_inside_its_guarantee_evicts_a_borrower_which_runs_again_afterwards(contested: Cluster) -> None:
    cluster, borrower = contested, new_id()
    victim = cluster.submit(*BORROWER, tenant=borrower, grace_ms=20_000)
    cluster.until_state(victim, "running")
    cluster.until(lambda: log_of(cluster, victim) != "")
    passer = cluster.submit("/bin/true", tenant=new_id())
    claimant = cluster.submit("/bin/sh", "-c", "echo mine")
    job = cluster.until_state(victim, "stopping")
    assert (job.stop_reason, job.evicted_for) == ("preempted", claimant)
    assert job.reason == "being stopped for another job, which reclaims its guarantee; it will be tried again"
    cluster.until(lambda: "checkpoint" in log_of(cluster, victim))
    cluster.controller.resign()
    cluster.controller = cluster.new_controller("second")  # the next leader knows for whom the room is made
    cluster.tick()
    assert [cluster.job(one).state for one in (claimant, passer)] == ["queued", "queued"]
    assert cluster.open_allocations() == 1
    (cluster.store.attempt(cluster.job(victim), 1) / "rank-0" / "go").touch()
    assert cluster.ended(claimant).state == "succeeded"
    waited = cluster.job(passer).placed_at
    assert waited is None or waited >= cluster.job(claimant).placed_at
    again = cluster.until_state(victim, "running")
    assert (again.attempt, again.evictions, again.lost_attempts, again.evicted_for) == (2, 1, [1], None)
    assert again.attained_ms > 0
    assert cluster.free.requeued_jobs == [victim]
    first, _ = cluster.runs(victim)
    assert (first.end_reason, first.exit_code) == ("preempted", 0)
    assert first.ended_at <= cluster.job(claimant).placed_at
    cluster.until(lambda: log_of(cluster, victim, attempt=2) == "attempt 2 kept\n")
    (cluster.store.attempt(again, 2) / "rank-0" / "go").touch()


def test_a_claimant_without_funds_stops_nobody(contested: Cluster) -> None:
    cluster = contested
    victim = cluster.submit(*BORROWER, tenant=new_id())
    cluster.until_state(victim, "running")
    claimant = cluster.submit("/bin/true")
    cluster.free.refusing.add(claimant)
    for _ in range(3):
        cluster.tick()
    assert cluster.job(victim).state == "running"
    (cluster.store.attempt(cluster.job(victim), 1) / "rank-0" / "go").touch()
    assert cluster.job(claimant).reason == "waiting for funds: none"


def test_a_job_that_is_cancelled_while_it_is_preempted_is_not_tried_again(contested: Cluster) -> None:
    cluster = contested
    other = cluster.tenant
    cluster.tenant = new_id()
    victim = cluster.submit(*BORROWER, grace_ms=20_000)
    cluster.until_state(victim, "running")
    cluster.until(lambda: log_of(cluster, victim) != "")
    claimant = cluster.submit("/bin/true", tenant=other)
    cluster.until_state(victim, "stopping")
    cluster.cancel(victim)
    cluster.until(lambda: "checkpoint" in log_of(cluster, victim))
    (cluster.store.attempt(cluster.job(victim), 1) / "rank-0" / "go").touch()
    assert cluster.ended(victim).state == "cancelled"
    assert cluster.ended(claimant).state == "succeeded"
