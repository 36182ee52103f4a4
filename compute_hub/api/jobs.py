"""The enterprise's face: upload a working directory, submit jobs, follow, hold and cancel them."""

from collections.abc import AsyncIterator
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from sqlalchemy import select, tuple_
from sqlalchemy.orm import Session

from compute_hub.api.call import Caller
from compute_hub.api.charges import CoverageView, coverage_fields
from compute_hub.api.job_reference import ArrayId, JobId
from compute_hub.api.job_submission import ArraySubmission, DependencyChange, JobSubmission
from compute_hub.api.job_views import (
    ArrayView,
    AttemptView,
    ExplanationView,
    JobView,
    array_view,
    attempt_view,
    job_views,
)
from compute_hub.api.shapes import After, Limit, Page, View, page_of, sent, written
from compute_hub.api.submitting import (
    NotTogether,
    Submission,
    Submissions,
    checked_funding,
    checked_job,
    find_upload_of,
    request_of,
    submit_alone,
)
from compute_hub.billing.funding import pledge_funding
from compute_hub.telemetry.tracing import about, traceparent
from compute_hub.uploads import Incoming
from kernel.clock import utc_now
from kernel.ids import new_id
from scheduler.jobs import (
    cancel_array,
    cancel_job,
    change_dependencies,
    find_array,
    find_job,
    hold_job,
    list_jobs,
    needed_uploads,
    release_job,
    submit_array,
)
from scheduler.tables import RunRow

if TYPE_CHECKING:
    from scheduler.controller.forecasting import Forecaster

router = APIRouter(prefix="/v1", tags=["jobs"])

State = Literal["queued", "starting", "running", "stopping", "succeeded", "failed", "cancelled"]

_PIECE_BYTES = 2**20
"""Of an upload, handed on at once: what is held of it in memory."""

_UPLOAD = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


class UploadView(View):
    """A stored working directory."""

    sha256: str
    size_bytes: int


@router.post("/uploads", status_code=201, name="store_upload", openapi_extra=_UPLOAD)
async def upload(request: Request, call: Caller) -> UploadView:
    """Store a working directory, sent as the bytes of a .tar.gz archive."""
    chosen = call.settings
    incoming = Incoming(
        chosen.uploads,
        str(call.tenant_id),
        bytes_max=chosen.upload_bytes_max,
        kept_bytes_max=chosen.uploads_per_tenant_bytes_max,
    )
    try:
        async for piece in _bounded(request, chosen.upload_bytes_max):
            await run_in_threadpool(incoming.write, piece)
        needed = partial(call.read, partial(needed_uploads, tenant_id=call.tenant_id))
        sha256 = await run_in_threadpool(incoming.keep, needed, utc_now())
    finally:
        incoming.close()
    return UploadView(sha256=sha256, size_bytes=incoming.size)


@router.post("/jobs", status_code=201, name="submit_job", response_model=JobView)
async def submit(body: JobSubmission, call: Caller, request: Request) -> Response:
    """Queue a job. It is refused when it could never run here or its first hour cannot be paid."""
    submissions: Submissions = request.app.state.submissions
    submission = Submission(call, body, call.keyed(body), traceparent())
    try:
        submitted = await submissions.ask(submission)
    except NotTogether:
        submitted = await run_in_threadpool(submit_alone, submission)
    about(job=str(submitted.job_id))
    return sent(submitted.answer, 201)


@router.post("/jobs:quote", name="quote_job")
def quote(body: JobSubmission, call: Caller) -> CoverageView:
    """Who would pay a job's first stretch, which is set aside before it starts. Nothing is queued or set aside.

    The stretch is the first hour (or all of a shorter job) with the time a stopped job is given to end.
    """

    def action(session: Session, at: datetime) -> CoverageView:
        job = checked_job(session, body, call, at, traceparent())
        return CoverageView.model_validate(coverage_fields(checked_funding(session, job, body, call, at)))

    return call.preview(action)


@router.get("/jobs", name="list_jobs")
def jobs(
    call: Caller,
    limit: Limit = 50,
    after: After = None,
    array_id: Annotated[UUID | None, Query(description="Only the jobs of this array.")] = None,
    state: Annotated[State | None, Query(description="Only jobs in this state.")] = None,
) -> Page[JobView]:
    """Your jobs, newest first; every tenant's for operators and auditors."""

    def action(session: Session) -> Page[JobView]:
        rows = list_jobs(
            session, tenant_id=call.scope, before=after, limit=limit, array_id=array_id, state=state
        )
        return page_of(job_views(session, rows), limit, rows[-1].id if rows else "")

    return call.read(action)


@router.get("/jobs/{job_id}", name="show_job", response_model=JobView)
def job(job_id: JobId, call: Caller) -> Response:
    """One job."""
    (found,) = call.read(lambda session: job_views(session, [find_job(session, job_id, tenant_id=call.scope)]))
    return written(found)


@router.get("/jobs/{job_id}/explanation", name="explain_job")
def explanation(job_id: JobId, call: Caller, request: Request) -> ExplanationView:
    """Why a job is where it is, and when it will probably start: an estimate, never a promise."""
    forecaster: Forecaster = request.app.state.forecaster

    def action(session: Session) -> ExplanationView:
        found = find_job(session, job_id, tenant_id=call.scope)
        why = forecaster.explain(session, found, utc_now())
        return ExplanationView(
            id=found.id,
            state=found.state,
            code=why.code,
            sentence=why.sentence,
            start_estimate_at=why.start_estimate,
        )

    return call.read(action)


@router.get("/jobs/{job_id}/attempts", name="list_job_attempts")
def attempts(
    job_id: JobId,
    call: Caller,
    limit: Limit = 100,
    after: Annotated[str, Query(pattern=r"^(\d{1,9}\.\d{1,9})?$")] = "",
) -> Page[AttemptView]:
    """Every process of every attempt of a job, by attempt and rank."""

    def action(session: Session) -> Page[AttemptView]:
        found = find_job(session, job_id, tenant_id=call.scope)
        place = (RunRow.attempt, RunRow.rank)
        query = select(RunRow).where(RunRow.job_id == found.id).order_by(*place).limit(limit)
        if after:
            query = query.where(tuple_(*place) > tuple(map(int, after.split("."))))
        rows = session.scalars(query).all()
        last = rows[-1] if rows else None
        return page_of([attempt_view(row) for row in rows], limit, last and f"{last.attempt}.{last.rank}")

    return call.read(action)


@router.post("/jobs/{job_id}:cancel", name="cancel_job")
def cancel(job_id: JobId, call: Caller) -> JobView:
    """Ask for a job's end. It is over when its state says so."""

    def action(session: Session, _at: datetime) -> JobView:
        return job_views(session, [cancel_job(session, job_id, tenant_id=call.scope)])[0]

    return call.once(JobView, None, action)


@router.post("/jobs/{job_id}:hold", name="hold_job")
def hold(job_id: JobId, call: Caller) -> JobView:
    """Let a waiting job not start before it is released."""

    def action(session: Session, _at: datetime) -> JobView:
        return job_views(session, [hold_job(session, job_id, tenant_id=call.scope)])[0]

    return call.once(JobView, None, action)


@router.post("/jobs/{job_id}:release", name="release_job")
def release(job_id: JobId, call: Caller) -> JobView:
    """Take back a hold."""

    def action(session: Session, _at: datetime) -> JobView:
        return job_views(session, [release_job(session, job_id, tenant_id=call.scope)])[0]

    return call.once(JobView, None, action)


@router.post("/jobs/{job_id}:depend", name="change_job_dependencies")
def depend(job_id: JobId, body: DependencyChange, call: Caller) -> JobView:
    """Let a waiting job wait for these jobs, instead of those it named before, to succeed."""

    def action(session: Session, _at: datetime) -> JobView:
        changed = change_dependencies(session, job_id, body.depends_on, tenant_id=call.tenant_id)
        return job_views(session, [changed])[0]

    return call.once(JobView, body, action)


@router.post("/job-arrays", status_code=201, name="submit_job_array")
def submit_many(body: ArraySubmission, call: Caller) -> ArrayView:
    """Queue many jobs that differ in their index only. Its jobs are named by their ids or as `array.index`."""

    def action(session: Session, at: datetime) -> ArrayView:
        find_upload_of(body.job, call)
        array = submit_array(
            session,
            new_id(),
            request_of(body.job, call, traceparent()),
            size=body.size,
            running_max=body.running_max or 0,
            tenant_id=call.tenant_id,
            submitted_by=call.principal.id,
            environments=list(call.settings.environments),
            at=at,
            live_max=call.settings.live_jobs_per_tenant_max,
        )
        checked_funding(session, array[0], body.job, call, at)
        pledge_funding(session, array, body.job.voucher_ids, body.job.project)
        return array_view(array)

    submitted = call.once(ArrayView, body, action)
    about(array=str(submitted.id))
    return submitted


@router.get("/job-arrays/{array_id}", name="show_job_array")
def array(array_id: ArrayId, call: Caller) -> ArrayView:
    """An array and how many of its jobs are in which state; its jobs: `/v1/jobs?array_id=…`."""
    return call.read(lambda session: array_view(find_array(session, array_id, tenant_id=call.scope)))


@router.post("/job-arrays/{array_id}:cancel", name="cancel_job_array")
def cancel_many(array_id: ArrayId, call: Caller) -> ArrayView:
    """Ask for the end of every job of an array that has not ended."""

    def action(session: Session, _at: datetime) -> ArrayView:
        return array_view(cancel_array(session, array_id, tenant_id=call.scope))

    return call.once(ArrayView, None, action)


async def _bounded(request: Request, bytes_max: int) -> AsyncIterator[bytes]:
    """The body in pieces up to the one that makes it too large; as much again is read and forgotten, so it is heard."""
    seen, piece = 0, bytearray()
    async for chunk in request.stream():
        if seen <= bytes_max:
            piece += chunk
        seen += len(chunk)
        if len(piece) >= _PIECE_BYTES:
            yield bytes(piece)
            piece.clear()
        if seen > 2 * bytes_max:
            break
    if piece:
        yield bytes(piece)
