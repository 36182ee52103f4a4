"""Submissions: what each is checked for, and how those that come together are queued in one transaction.

Checking writes nothing. So of those that come together each is refused or accepted by itself; what all of them are
checked against is read once; and what they write is written at the end. Should the database refuse that, nothing is
written, and each is submitted by itself in a transaction of its own.
Invariant: nobody waits here for a lock, which one tenant could make another one wait for.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as NoConnectionFree
from sqlalchemy.orm import Session

from compute_hub.api.call import Call
from compute_hub.api.idempotency import Keyed, KeyInUse, answer_row, first_answer
from compute_hub.api.job_submission import JobSubmission
from compute_hub.api.job_views import JobView, new_job_view
from compute_hub.api.together import Together
from compute_hub.billing.funding import check_funding, pledge_funding
from compute_hub.environments import check_use
from compute_hub.uploads import find_upload
from kernel.clock import utc_now
from kernel.database import transaction
from kernel.errors import HubError
from kernel.ids import new_id
from kernel.prepared import add_rows, asked_once
from scheduler.jobs import JobRequest, new_job, queue_jobs
from scheduler.tables import JobRow
from vouchers.domain.explanation import Coverage


class NotTogether(Exception):
    """A submission that must be made by itself."""


@dataclass(frozen=True)
class Submission:
    """Of one job, under its key; `traceparent` is the request's, which the job hands on."""

    call: Call
    body: JobSubmission
    keyed: Keyed
    traceparent: str


@dataclass(frozen=True)
class Submitted:
    """A job that is queued, and the answer to its submission as JSON."""

    job_id: UUID
    answer: str


Submissions = Together[Submission, Submitted]


@dataclass(frozen=True)
class _Accepted:
    submission: Submission
    job: JobRow
    answer: str


def submit_together(engine: Engine, submissions: Sequence[Submission]) -> list[Submitted | Exception]:
    """Submit jobs in one transaction: what became of each, or its refusal.

    `NotTogether` stands where somebody else is answering the same key, also among these; where checking takes locks;
    and everywhere when the transaction failed for another reason than that the database is away.

    Raises:
        sqlalchemy.exc.DBAPIError: the connection broke; nobody can say whether the jobs are queued.
        sqlalchemy.exc.TimeoutError: there was none.
    """
    try:
        with transaction(engine) as session:
            return _submit(session, submissions)
    except NoConnectionFree:
        raise
    except DBAPIError as error:
        if error.connection_invalidated:
            raise
    except Exception:  # noqa: BLE001, S110 - whose fault it is shows when each is submitted by itself
        pass
    return [NotTogether() for _ in submissions]


def submit_alone(submission: Submission) -> Submitted:
    """Submit one job in a transaction of its own. Raises what `checked_job` and `checked_funding` refuse."""
    body, call = submission.body, submission.call

    def action(session: Session, at: datetime) -> JobView:
        job = _checked(session, submission, at)
        queue_jobs(session, [job])
        pledge_funding(session, [job], body.voucher_ids, body.project)
        return new_job_view(job, body.project)

    view = call.once(JobView, body, action)
    return Submitted(view.id, view.model_dump_json())


def checked_job(
    session: Session, body: JobSubmission, call: Call, at: datetime, trace: str, unwritten: int = 0
) -> JobRow:
    """The job of a submission as it would be queued; nobody has looked at money yet.

    So many jobs of the tenant are `unwritten`: checked in this transaction, and not queued yet.

    Raises:
        UploadNotFound, ServiceOnly, and whatever `scheduler.jobs.new_job` refuses.
    """
    find_upload_of(body, call)
    return new_job(
        session,
        new_id(),
        request_of(body, call, trace),
        tenant_id=call.tenant_id,
        submitted_by=call.principal.id,
        environments=list(call.settings.environments),
        at=at,
        live_max=call.settings.live_jobs_per_tenant_max,
        unwritten=unwritten,
    )


def checked_funding(session: Session, job: JobRow, body: JobSubmission, call: Call, at: datetime) -> Coverage:
    """Who would pay its first stretch. Raises what `check_funding` refuses."""
    return check_funding(
        session,
        job,
        body.voucher_ids,
        project=body.project,
        centre=call.settings.centre_facts,
        horizon_ms=call.settings.hold_horizon_ms,
        at=at,
    )


def request_of(body: JobSubmission, call: Call, trace: str) -> JobRequest:
    """What is asked of the scheduler. Raises ServiceOnly."""
    request = body.request(call.settings.default_environment)
    check_use(call.settings.environments, request)
    return replace(request, traceparent=trace)


def find_upload_of(body: JobSubmission, call: Call) -> None:
    """Refuse a working directory that is not there. Raises UploadNotFound."""
    if body.upload_sha256 is not None:
        find_upload(call.settings.uploads, str(call.tenant_id), body.upload_sha256)


def _submit(session: Session, submissions: Sequence[Submission]) -> list[Submitted | Exception]:
    found = _first_answers(session, submissions)
    accepted: list[_Accepted] = []
    unwritten: Counter[UUID] = Counter()
    with asked_once(session):
        for place, submission in enumerate(submissions):
            if found[place] is None:
                try:
                    job = _checked(session, submission, utc_now(), unwritten[submission.call.tenant_id])
                except HubError as refusal:
                    found[place] = refusal
                else:
                    answer = new_job_view(job, submission.body.project).model_dump_json()
                    accepted.append(_Accepted(submission, job, answer))
                    unwritten[job.tenant_id] += 1
                    found[place] = Submitted(job.id, answer)
    queue_jobs(session, [one.job for one in accepted])
    for one in accepted:
        pledge_funding(session, [one.job], one.submission.body.voucher_ids, one.submission.body.project)
    add_rows(session, [answer_row(one.submission.keyed, one.answer) for one in accepted])
    return [one for one in found if one is not None]


def _first_answers(session: Session, submissions: Sequence[Submission]) -> list[Submitted | Exception | None]:
    """What is known of each under its key; None where this transaction is the first to answer it."""
    found: list[Submitted | Exception | None] = []
    here: set[tuple[UUID, str]] = set()
    for submission in submissions:
        if _takes_locks(submission.body):
            found.append(NotTogether())
            continue
        name = (submission.keyed.principal_id, submission.keyed.key)
        try:
            given = first_answer(session, submission.keyed, patient=False)
        except HubError as refusal:
            found.append(refusal)
        except KeyInUse:
            found.append(NotTogether())
        else:
            if given is not None:
                found.append(Submitted(JobView.model_validate_json(given).id, given))
            else:
                found.append(NotTogether() if name in here else None)
        here.add(name)
    return found


def _takes_locks(body: JobSubmission) -> bool:
    """Whether checking it locks what its tenant's other requests lock, too: `checked_dependencies`, `checked_secrets`.

    Everybody in its company would wait for them, and two companies with the same tenants for each other.
    """
    return bool(body.depends_on or body.secrets)


def _checked(session: Session, submission: Submission, at: datetime, unwritten: int = 0) -> JobRow:
    """Its job, which could run and whose first stretch could be paid."""
    body, call = submission.body, submission.call
    job = checked_job(session, body, call, at, submission.traceparent, unwritten)
    checked_funding(session, job, body, call, at)
    return job
