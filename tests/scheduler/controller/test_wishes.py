"""What jobs may ask for beyond devices: order, time, number, nearness and further attempts."""

import hashlib
from datetime import timedelta
from uuid import UUID

import pytest

from kernel.clock import utc_now
from kernel.database import transaction
from kernel.ids import new_id
from scheduler.controller.history import recent_use
from scheduler.controller.live_state import LiveState
from scheduler.jobs import JobRequest, array_job_id, change_dependencies, hold_job, release_job, submit_array
from scheduler.policy.settings import policy_named
from scheduler.refusals import DependencyCycle
from scheduler.secrets import put_secret
from tests.scheduler.controller.cluster import FOREVER, Cluster, log_of

pytestmark = pytest.mark.slow
ONE_CARD = [{"index": 0, "model": "sim-a"}]


def _array(cluster: Cluster, size: int, running_max: int, *argv: str) -> UUID:
    array_id = new_id()
    request = JobRequest(
        name="array", argv=argv, models=("sim-a",), environment="python", time_limit_ms=600_000, memory_mib=64
    )
    with transaction(cluster.engine) as session:
        submit_array(
            session,
            array_id,
            request,
            size=size,
            running_max=running_max,
            tenant_id=cluster.tenant,
            submitted_by=new_id(),
            environments=("python",),
            at=utc_now(),
        )
    return array_id


def test_a_job_waits_until_those_it_depends_on_have_succeeded(cluster: Cluster) -> None:
    cluster.node()
    first = cluster.submit("/bin/sh", "-c", "until [ -e go ]; do sleep 0.05; done")
    second = cluster.submit("/bin/true", depends_on=[first])
    third = cluster.submit("/bin/true", depends_on=[first, second])
    cluster.until_state(first, "running")
    assert cluster.job(second).reason == f"waiting for job {first} to succeed"
    assert cluster.job(third).reason == f"waiting for job {first} and 1 others to succeed"
    with transaction(cluster.engine) as session, pytest.raises(DependencyCycle):
        change_dependencies(session, second, [third], tenant_id=cluster.tenant)
    (cluster.store.attempt(cluster.job(first), 1) / "rank-0" / "go").touch()
    assert cluster.ended(third).state == "succeeded"
    assert cluster.job(first).ended_at <= cluster.job(second).placed_at
    assert cluster.job(second).ended_at <= cluster.job(third).placed_at
    late = cluster.submit("/bin/true", depends_on=[first])
    assert cluster.ended(late).state == "succeeded"


def test_what_depends_on_a_failed_job_ends_with_a_reason_and_so_does_what_depends_on_that(
    cluster: Cluster,
) -> None:
    cluster.node()
    first = cluster.submit("/bin/false")
    second = cluster.submit("/bin/true", depends_on=[first])
    third = cluster.submit("/bin/true", depends_on=[second])
    job = cluster.ended(third)
    assert (job.state, job.end_reason, job.attempt) == ("failed", "dependency_failed", 0)
    assert job.reason == (
        f"never started, because job {second}, which it depends on, ended without success (failed)"
    )
    assert cluster.job(second).end_reason == "dependency_failed"
    assert set(cluster.free.ended_jobs) == {first, second, third}


def test_an_array_runs_as_many_at_once_as_it_may_and_each_knows_its_index(cluster: Cluster) -> None:
    cluster.node()
    array_id = _array(
        cluster,
        3,
        2,
        "/bin/sh",
        "-c",
        "echo $HUB_ARRAY_INDEX of $HUB_ARRAY_SIZE; until [ -e go ]; do sleep 0.05; done",
    )
    ids = [array_job_id(array_id, index) for index in range(3)]
    cluster.until(lambda: [cluster.job(one).state for one in ids] == ["running", "running", "queued"])
    cluster.tick()
    assert cluster.job(ids[2]).reason == "its array runs 2 jobs, which is its limit"
    for one in ids:
        cluster.until_state(one, "running")
        cluster.until(lambda one=one: log_of(cluster, one) != "")
        (cluster.store.attempt(cluster.job(one), 1) / "rank-0" / "go").touch()
    assert [cluster.ended(one).state for one in ids] == ["succeeded"] * 3
    assert [log_of(cluster, one) for one in ids] == ["0 of 3\n", "1 of 3\n", "2 of 3\n"]


def test_a_held_job_starts_when_it_is_released_and_no_sooner_than_it_asked(cluster: Cluster) -> None:
    cluster.node()
    held = cluster.submit("/bin/true", held=True)
    later = cluster.submit("/bin/true", not_before=utc_now() + timedelta(hours=1))
    soon = cluster.submit("/bin/true")
    with transaction(cluster.engine) as session:
        hold_job(session, soon, tenant_id=cluster.tenant)
    cluster.tick()
    assert [cluster.job(one).state for one in (held, later, soon)] == ["queued"] * 3
    assert cluster.job(held).reason == "held; it starts after it is released"
    assert cluster.job(later).reason.startswith("asked not to start before 20")
    for one in (held, soon):
        with transaction(cluster.engine) as session:
            release_job(session, one, tenant_id=cluster.tenant)
        assert cluster.ended(one).state == "succeeded"
    cluster.sql("UPDATE jobs SET not_before = now(), revision = 1 WHERE id = :id", id=later)
    assert cluster.ended(later).state == "succeeded"


def test_a_job_that_fails_is_tried_again_as_often_as_it_asked_each_time_after_a_longer_pause(
    cluster: Cluster,
) -> None:
    cluster.node()
    job_id = cluster.submit("/bin/sh", "-c", "exit 3", max_retries=2, retry_on="failure")
    cluster.until(lambda: cluster.job(job_id).attempt == 1 and cluster.job(job_id).state == "queued")
    job = cluster.job(job_id)
    assert job.reason == (
        "attempt 1 failed (its program ended with exit status 3); it is tried again (1 of 2 retries)"
    )
    assert job.retry_at > utc_now() - timedelta(seconds=1)
    job = cluster.ended(job_id)
    assert (job.state, job.attempt, job.exit_code) == ("failed", 3, 3)
    pauses = cluster.sql(
        "SELECT lower(span) - lag(upper(span)) OVER (ORDER BY lower(span)) FROM allocations ORDER BY lower(span)"
    )
    assert pauses[1][0] > timedelta(milliseconds=900)
    assert pauses[2][0] > timedelta(milliseconds=1900)
    once = cluster.ended(cluster.submit("/bin/sh", "-c", "exit 3", max_retries=2))
    assert (once.state, once.attempt) == ("failed", 1)


def test_a_gang_that_no_switch_holds_says_so(cluster: Cluster) -> None:
    cluster.node("n1", labels={"switch": "s1"})
    cluster.node("n2", labels={"switch": "s2"})
    job_id = cluster.submit("/bin/true", node_count=2, topology="same-switch")
    cluster.tick()
    assert cluster.job(job_id).reason.endswith("more than this cluster has even when it is empty")
    cluster.sql('UPDATE nodes SET labels = \'{"switch": "s1"}\'')
    assert cluster.ended(job_id).state == "succeeded"


def test_a_jobs_secrets_are_files_that_only_it_can_read_and_stand_nowhere_else(cluster: Cluster) -> None:
    node = cluster.node()
    with transaction(cluster.engine) as session:
        for name, value in (("token", "swordfish 4711\n"), ("other", "of no concern")):
            put_secret(session, cluster.vault, cluster.tenant, name, value, utc_now())
    script = (
        "ls $HUB_SECRETS; stat -c '%a %u' $HUB_SECRETS/token; id -u; sha256sum < $HUB_SECRETS/token; "
        "env | grep -c 'swordfis[h] 4711'; cat /proc/[0-9]*/environ 2>/dev/null | grep -ac 'swordfis[h] 4711'; "
        "cat /proc/[0-9]*/cmdline | grep -ac 'swordfis[h] 4711'; "
        "(echo x > $HUB_SECRETS/token) 2>/dev/null || echo kept"
    )
    job_id = cluster.submit("/bin/sh", "-c", script, secrets=["token"])
    assert cluster.ended(job_id).state == "succeeded"
    digest = hashlib.sha256(b"swordfish 4711\n").hexdigest()
    assert log_of(cluster, job_id) == f"token\n400 1000\n1000\n{digest}  -\n0\n0\n0\nkept\n"
    sent = [request for _, request in cluster.sockets.requests if request.desired]
    assert next(spec.secrets for request in sent for spec in request.desired) == {"token": "swordfish 4711\n"}
    assert "swordfish 4711" not in repr(sent)
    files = [file for file in cluster.machine.folder.rglob("*") if file.is_file() and not file.is_symlink()]
    assert [file for file in files if b"swordfish 4711" in file.read_bytes()] == []
    assert node.process is not None


def test_a_new_leader_and_a_new_tenant_leave_everybodys_recent_use_as_it_was(cluster: Cluster) -> None:
    cluster.node(devices=ONE_CARD)
    job_id = cluster.submit(*FOREVER)
    cluster.until_state(job_id, "running")
    cluster.sql("UPDATE allocations SET span = tstzrange(lower(span) - interval '24 hours', NULL)")
    cluster.cancel(job_id)
    cluster.ended(job_id)
    now_ms = int(utc_now().timestamp() * 1000)
    with transaction(cluster.engine) as session:
        live = LiveState(policy_named("default"))
        live.refresh(session, now_ms, frozenset({"n"}))
        ((_, milli),) = recent_use(session, now_ms, {}).items()
    assert milli in range(490, 505)  # one card for one half-life
    tenant = str(cluster.tenant)
    assert live.policy.queues.leaf(tenant).recent_milli("sim-a", now_ms) == milli
    cluster.submit("/bin/true", tenant=new_id())
    with transaction(cluster.engine) as session:
        live.refresh(session, now_ms, frozenset({"n"}))
    assert live.policy.queues.leaf(tenant).recent_milli("sim-a", now_ms) == milli
    assert len(live.policy.queues.states) == 3
