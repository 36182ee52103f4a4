"""What one tenant may have at once, so that nobody else pays for it."""

from datetime import timedelta

import pytest

from kernel.clock import utc_now
from kernel.database import transaction
from kernel.ids import new_id
from scheduler import jobs, secrets
from scheduler.jobs import JobRequest, cancel_job, needed_uploads, submit_array
from scheduler.refusals import ArrayOfLargeJobs, SecretTooLargeForJob, TooManyLiveJobs, TooManySecrets
from scheduler.secrets import Vault, new_vault_key, opened_secrets, put_secret
from scheduler.tables import JobRow
from tests.scheduler.controller.counted import Centre
from tests.scheduler.submitted import submit_job

REQUEST = JobRequest(name="job", argv=("true",), models=("sim-a",), environment="python", time_limit_ms=1000)


def test_a_tenant_has_so_many_live_jobs_and_no_more(centre: Centre) -> None:
    about = {"tenant_id": centre.tenant, "submitted_by": new_id(), "environments": ("python",), "at": utc_now()}
    with transaction(centre.engine) as session:
        first = submit_job(session, new_id(), REQUEST, live_max=3, **about)
        with pytest.raises(TooManyLiveJobs, match="3 more jobs would be more than the 3"):
            submit_array(session, new_id(), REQUEST, size=3, running_max=0, live_max=3, **about)
        submit_array(session, new_id(), REQUEST, size=2, running_max=0, live_max=3, **about)
        with pytest.raises(TooManyLiveJobs):
            submit_job(session, new_id(), REQUEST, live_max=3, **about)
        submit_job(session, new_id(), REQUEST, live_max=3, **(about | {"tenant_id": new_id()}))
        cancel_job(session, first.id, tenant_id=centre.tenant)
    centre.tick()
    with transaction(centre.engine) as session:
        submit_job(session, new_id(), REQUEST, live_max=3, **about)


def test_jobs_submitted_elsewhere_count_after_a_second_or_near_the_bound_at_once(
    centre: Centre, monkeypatch: pytest.MonkeyPatch
) -> None:
    at, tenant = utc_now(), new_id()
    about = {"tenant_id": tenant, "submitted_by": new_id(), "environments": ("python",), "live_max": 8}
    with transaction(centre.engine) as session:
        submit_job(session, new_id(), REQUEST, at=at, **about)
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(jobs, "_COUNTED", {})
            submit_array(session, new_id(), REQUEST, size=7, running_max=0, at=at, **about)
        submit_job(session, new_id(), REQUEST, at=at, **about)
        with pytest.raises(TooManyLiveJobs):
            submit_array(session, new_id(), REQUEST, size=5, running_max=0, at=at, **about)
        with pytest.raises(TooManyLiveJobs):
            submit_job(session, new_id(), REQUEST, at=at + timedelta(seconds=1), **about)


def test_an_array_of_jobs_with_much_to_store_is_refused(centre: Centre) -> None:
    large = JobRequest(
        name="job", argv=("true", "x" * 30_000), models=("sim-a",), environment="python", time_limit_ms=1000
    )
    about = {"tenant_id": centre.tenant, "submitted_by": new_id(), "environments": ("python",), "at": utc_now()}
    with (
        transaction(centre.engine) as session,
        pytest.raises(ArrayOfLargeJobs, match="into a file of the upload"),
    ):
        submit_array(session, new_id(), large, size=1000, running_max=0, **about)


def test_uploads_that_live_jobs_name_are_needed(centre: Centre) -> None:
    centre.submit(upload_sha256="a")
    centre.submit(upload_sha256="a")
    centre.submit()
    with transaction(centre.engine) as session:
        assert needed_uploads(session, tenant_id=centre.tenant) == {"a"}
        assert needed_uploads(session, tenant_id=new_id()) == frozenset()


def test_a_tenant_keeps_so_many_secrets_and_only_those_a_job_names_are_opened(
    centre: Centre, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secrets, "SECRETS_MAX", 2)
    vault, at = Vault([new_vault_key()]), utc_now()
    with transaction(centre.engine) as session:
        put_secret(session, vault, centre.tenant, "one", "1", at)
        put_secret(session, Vault([new_vault_key()]), centre.tenant, "unreadable", "2", at)
        put_secret(session, vault, centre.tenant, "one", "3", at)
        with pytest.raises(TooManySecrets):
            put_secret(session, vault, centre.tenant, "third", "3", at)
    job_id = centre.submit(secrets=("one",))
    with transaction(centre.engine) as session:
        assert opened_secrets(session, vault, [session.get_one(JobRow, job_id)]) == {job_id: {"one": "3"}}


def test_secrets_that_a_waiting_job_names_grow_no_further_than_its_node_takes(centre: Centre) -> None:
    vault, at = Vault([new_vault_key()]), utc_now()
    half = "x" * (secrets.TOTAL_BYTES_MAX // 2)
    with transaction(centre.engine) as session:
        for name in ("one", "two"):
            put_secret(session, vault, centre.tenant, name, "small", at)
    job_id = centre.submit(secrets=("one", "two"), held=True)
    with transaction(centre.engine) as session:
        put_secret(session, vault, centre.tenant, "one", half, at)
        with pytest.raises(
            SecretTooLargeForJob, match=f"job {job_id}, .* would have 65537 bytes; at most 65536"
        ):
            put_secret(session, vault, centre.tenant, "two", f"{half}x", at)
        put_secret(session, vault, centre.tenant, "two", half, at)
        put_secret(session, vault, new_id(), "two", f"{half}x", at)
        cancel_job(session, job_id, tenant_id=centre.tenant)
    centre.tick()
    with transaction(centre.engine) as session:
        put_secret(session, vault, centre.tenant, "two", f"{half}x", at)
