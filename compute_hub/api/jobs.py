"""The enterprise's face: upload a working directory, submit jobs, follow and cancel them."""

from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from pydantic import Field, StringConstraints
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from compute_hub.api.call import Call, Caller
from compute_hub.api.charges import CoverageView, coverage_fields
from compute_hub.api.shapes import After, Body, Id, Limit, Page, View, page_of
from compute_hub.billing.funding import pledge_funding
from compute_hub.billing.tables import ChargeRow
from compute_hub.job_files import log_chunks
from compute_hub.metering.tables import UsageRecordRow
from compute_hub.uploads import find_upload, keep_upload
from kernel.ids import new_id
from kernel.money import format_yuan
from scheduler.jobs import JobRequest, cancel_job, find_job, list_jobs, runs_of, submit_job
from scheduler.tables import JobRow, RunRow
from vouchers.domain.explanation import Coverage

router = APIRouter(prefix="/v1", tags=["jobs"])

ModelName = Annotated[str, StringConstraints(min_length=1, max_length=63)]
VariableName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")]
VariableValue = Annotated[str, StringConstraints(max_length=8192)]


_UPLOAD = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


class JobSubmission(Body):
    """What an enterprise wants run. Counts are per node; limits are enforced."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=120)]
    argv: Annotated[
        list[Annotated[str, StringConstraints(max_length=4096)]], Field(min_length=1, max_length=256)
    ]
    accelerator: Annotated[list[ModelName], Field(min_length=1, max_length=16)] | ModelName
    environment: Annotated[str, StringConstraints(min_length=1, max_length=63)]
    nodes: Annotated[int, Field(ge=1, le=10_000)] = 1
    devices_per_node: Annotated[int, Field(ge=1, le=64)] = 1
    slots_milli: Annotated[int, Field(ge=1, le=1000)] = 1000
    cpu_milli: Annotated[int, Field(ge=1, le=1_000_000)] = 1000
    memory_mib: Annotated[int, Field(ge=1, le=16_777_216)] = 1024
    time_limit_s: Annotated[int, Field(ge=1, le=31 * 86_400)]
    grace_s: Annotated[int, Field(ge=0, le=600)] = 10
    max_retries: Annotated[int, Field(ge=0, le=100)] = 0
    network: Literal["none", "job"] | None = None
    upload_sha256: str | None = None
    env: dict[VariableName, VariableValue] = Field(default_factory=dict, max_length=128)
    voucher_ids: Annotated[list[Id], Field(max_length=32)] | None = None

    def request(self) -> JobRequest:
        """The same in the scheduler's words."""
        models = [self.accelerator] if isinstance(self.accelerator, str) else self.accelerator
        return JobRequest(
            name=self.name,
            argv=self.argv,
            models=models,
            environment=self.environment,
            node_count=self.nodes,
            devices_per_node=self.devices_per_node,
            slots_milli=self.slots_milli,
            cpu_milli=self.cpu_milli,
            memory_mib=self.memory_mib,
            time_limit_ms=self.time_limit_s * 1000,
            grace_ms=self.grace_s * 1000,
            max_retries=self.max_retries,
            network=self.network or ("job" if self.nodes > 1 else "none"),
            upload_sha256=self.upload_sha256,
            env=self.env,
        )


class DeviceView(View):
    """One device a job ran on."""

    node: str
    index: int


class JobView(View):
    """A job and what it has used and cost so far. Amounts in yuan, time in milliseconds of one card."""

    id: UUID
    tenant_id: UUID
    name: str
    state: str
    reason: str
    accelerator: list[str]
    nodes: int
    devices_per_node: int
    attempt: int
    queued_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    exit_code: int | None
    end_reason: str | None
    devices: list[DeviceView]
    card_ms: int
    charge_cny: str
    voucher_cny: str
    tenant_cny: str


class UploadView(View):
    """A stored working directory."""

    sha256: str
    size_bytes: int


@router.post("/uploads", status_code=201, name="store_upload", openapi_extra=_UPLOAD)
async def upload(request: Request, call: Caller) -> UploadView:
    """Store a working directory, sent as the bytes of a .tar.gz archive."""
    body = [chunk async for chunk in _bounded(request, call.settings.upload_bytes_max)]
    sha256, size = await run_in_threadpool(
        keep_upload,
        call.settings.uploads,
        str(call.tenant_id),
        body,
        bytes_max=call.settings.upload_bytes_max,
    )
    return UploadView(sha256=sha256, size_bytes=size)


@router.post("/jobs", status_code=201, name="submit_job")
def submit(body: JobSubmission, call: Caller) -> JobView:
    """Queue a job. It is refused when it could never run here or its first hour cannot be paid."""

    def action(session: Session, at: datetime) -> JobView:
        job, _ = _submit(session, body, call, at)
        return _views(session, [job])[0]

    return call.once(JobView, body, action)


@router.post("/jobs:quote", name="quote_job")
def quote(body: JobSubmission, call: Caller) -> CoverageView:
    """Who would pay a job's first stretch, which is set aside before it starts. Nothing is queued or set aside.

    The stretch is the first hour (or all of a shorter job) with the time a stopped job is given to end.
    """

    def action(session: Session, at: datetime) -> CoverageView:
        _, coverage = _submit(session, body, call, at)
        return CoverageView.model_validate(coverage_fields(coverage))

    return call.preview(action)


@router.get("/jobs", name="list_jobs")
def jobs(call: Caller, limit: Limit = 50, after: After = None) -> Page[JobView]:
    """Your jobs, newest first; every tenant's for operators and auditors."""

    def action(session: Session) -> Page[JobView]:
        rows = list_jobs(session, tenant_id=call.scope, before=after, limit=limit)
        return page_of(_views(session, list(rows)), limit, rows[-1].id if rows else "")

    return call.read(action)


@router.get("/jobs/{job_id}", name="show_job")
def job(job_id: UUID, call: Caller) -> JobView:
    """One job."""
    return call.read(lambda session: _views(session, [find_job(session, job_id, tenant_id=call.scope)])[0])


@router.post("/jobs/{job_id}:cancel", name="cancel_job")
def cancel(job_id: UUID, call: Caller) -> JobView:
    """Ask for a job's end. It is over when its state says so."""

    def action(session: Session, _at: datetime) -> JobView:
        return _views(session, [cancel_job(session, job_id, tenant_id=call.scope)])[0]

    return call.once(JobView, None, action)


@router.get(
    "/jobs/{job_id}/logs",
    name="read_job_log",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/plain": {}}, "description": "The log's bytes."}},
)
def logs(
    job_id: UUID,
    call: Caller,
    rank: Annotated[int, Query(ge=0, le=10_000)] = 0,
    offset: Annotated[int, Query(ge=0, le=2**53)] = 0,
) -> StreamingResponse:
    """What one rank of the latest attempt printed, from a byte offset on, as plain text."""
    found = call.read(lambda session: find_job(session, job_id, tenant_id=call.scope))
    path = job_directory(call, found) / f"rank-{rank}.log"
    return StreamingResponse(log_chunks(job_id, rank, path, offset), media_type="text/plain; charset=utf-8")


def _submit(session: Session, body: JobSubmission, call: Call, at: datetime) -> tuple[JobRow, Coverage]:
    if body.upload_sha256 is not None:
        find_upload(call.settings.uploads, str(call.tenant_id), body.upload_sha256)
    job = queue_job(session, body, call, at)
    return job, pledge_funding(session, job, body.voucher_ids, horizon_ms=call.settings.hold_horizon_ms, at=at)


def queue_job(session: Session, body: JobSubmission, call: Call, at: datetime) -> JobRow:
    """Queue the job of a submission; nobody has looked at money yet."""
    return submit_job(
        session,
        new_id(),
        body.request(),
        tenant_id=call.tenant_id,
        submitted_by=call.principal.id,
        environments=list(call.settings.environments),
        at=at,
    )


def job_directory(call: Call, found: JobRow) -> Path:
    """Where the latest attempt of a job keeps its files."""
    return call.settings.workspaces / str(found.tenant_id) / str(found.id) / f"attempt-{found.attempt}"


async def _bounded(request: Request, bytes_max: int) -> AsyncIterator[bytes]:
    """The body up to the chunk that makes it too large; as much again is read and forgotten, so it is heard."""
    seen = 0
    async for chunk in request.stream():
        if seen <= bytes_max:
            yield chunk
        seen += len(chunk)
        if seen > 2 * bytes_max:
            return


def _views(session: Session, rows: list[JobRow]) -> list[JobView]:
    """Several jobs with their devices, card time and money, in three queries however many they are."""
    ids = [row.id for row in rows]
    runs = runs_of(session, ids)
    used = {
        job_id: int(slot_ms)
        for job_id, slot_ms in session.execute(
            select(UsageRecordRow.job_id, func.sum(UsageRecordRow.slot_ms))
            .where(UsageRecordRow.job_id.in_(ids))
            .group_by(UsageRecordRow.job_id)
        )
    }
    money = {
        job_id: (int(charged), int(vouchers), int(tenant))
        for job_id, charged, vouchers, tenant in session.execute(
            select(
                ChargeRow.job_id,
                func.sum(ChargeRow.amount_micros),
                func.sum(ChargeRow.voucher_micros),
                func.sum(ChargeRow.tenant_micros),
            )
            .where(ChargeRow.job_id.in_(ids))
            .group_by(ChargeRow.job_id)
        )
    }
    return [_view(row, runs[row.id], used.get(row.id, 0), money.get(row.id, (0, 0, 0))) for row in rows]


def _view(row: JobRow, runs: list[RunRow], slot_ms: int, money: tuple[int, int, int]) -> JobView:
    latest = [run for run in runs if run.attempt == row.attempt]
    return JobView(
        id=row.id,
        tenant_id=row.tenant_id,
        name=row.name,
        state=row.state,
        reason=row.reason,
        accelerator=row.models,
        nodes=row.node_count,
        devices_per_node=row.devices_per_node,
        attempt=row.attempt,
        queued_at=row.queued_at,
        started_at=row.started_at,
        ended_at=row.ended_at,
        exit_code=row.exit_code,
        end_reason=row.end_reason,
        devices=[DeviceView(node=run.node, index=device[0]) for run in latest for device in run.devices],
        card_ms=slot_ms // 1000,
        charge_cny=format_yuan(money[0]),
        voucher_cny=format_yuan(money[1]),
        tenant_cny=format_yuan(money[2]),
    )
