"""What jobs leave behind: their logs, read or followed, and the files of their working directories."""

from datetime import datetime
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import StreamingResponse

from compute_hub.api.call import Call, Caller
from compute_hub.api.job_reference import JobId
from compute_hub.api.shapes import Limit, Page, View
from compute_hub.identity.keys import authenticate
from compute_hub.job_files import NoLongerKept, list_artifacts, log_chunks, open_download
from compute_hub.job_following import Followed, Followers, follow_log
from scheduler.jobs import find_job
from scheduler.store import Store
from scheduler.tables import JobRow

router = APIRouter(prefix="/v1", tags=["jobs"])

Rank = Annotated[int, Query(ge=0, le=10_000, description="Which process of the job.")]
Attempt = Annotated[
    int | None, Query(ge=1, le=1_000_000, description="Which attempt; the latest, if left out.")
]
Kept = Annotated[
    bool,
    Query(description="What the job keeps for its next attempt, instead of an attempt's working directory."),
]
_FOLLOWERS = Followers()


@router.get(
    "/jobs/{job_id}/logs",
    name="read_job_log",
    response_class=StreamingResponse,
    responses={
        200: {
            "content": {"text/plain": {}, "text/event-stream": {}},
            "description": "The log's bytes, or with `follow` events `log`, `state` and `end`.",
        }
    },
)
def logs(
    job_id: JobId,
    call: Caller,
    request: Request,
    *,
    rank: Rank = 0,
    attempt: Attempt = None,
    offset: Annotated[int, Query(ge=0, le=2**53)] = 0,
    follow: Annotated[
        bool, Query(description="Go on, as Server-Sent Events, until the job has ended.")
    ] = False,
    last_event_id: Annotated[
        str | None, Header(pattern=r"^\d{1,9}\.\d{1,16}$", description="Go on after this event.")
    ] = None,
) -> StreamingResponse:
    """What one rank printed, from a byte offset on. With `follow` all attempts from that one on are followed."""
    found = _find(call, job_id)
    _check_kept("the logs", found, found.logs_removed_at)
    if not follow:
        path = job_directory(call, found, attempt) / f"rank-{rank}.log"
        chunks = log_chunks(job_id, rank, path, offset)
        return StreamingResponse(chunks, media_type="text/plain; charset=utf-8")
    begin = found.attempt if attempt is None else attempt
    if last_event_id is not None:
        begin, offset = map(int, last_event_id.split("."))
    _FOLLOWERS.check(call.scope)
    events = follow_log(
        lambda: _stands(_still(call, request, job_id)),
        lambda one: job_directory(call, found, one) / f"rank-{rank}.log",
        job=job_id,
        rank=rank,
        attempt=begin,
        offset=offset,
    )
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(
        _FOLLOWERS.counted(call.scope, events), media_type="text/event-stream", headers=headers
    )


class ArtifactView(View):
    """Something a job left: a `file`, a `directory`, or `other` (links, pipes), which cannot be downloaded."""

    path: str
    kind: str
    size_bytes: int
    modified_at: datetime


@router.get("/jobs/{job_id}/artifacts", name="list_job_artifacts")
def artifacts(
    job_id: JobId,
    call: Caller,
    folder: Annotated[str, Query(max_length=4096, description="A folder of the working directory.")] = "",
    rank: Rank = 0,
    attempt: Attempt = None,
    *,
    checkpoints: Kept = False,
    limit: Limit = 100,
    after: Annotated[str, Query(max_length=4096, description="Continue after this path.")] = "",
) -> Page[ArtifactView]:
    """What lies in one folder of the working directory of one rank, by name, however many entries it has."""
    found = _find(call, job_id)
    directory = _directory(call, found, attempt, rank, checkpoints=checkpoints)
    listed, more = list_artifacts(job_id, directory, folder, after, limit)
    views = [
        ArtifactView(path=one.path, kind=one.kind, size_bytes=one.size_bytes, modified_at=one.modified_at)
        for one in listed
    ]
    return Page(items=views, next=more)


@router.get(
    "/jobs/{job_id}/artifacts:download",
    name="read_job_artifact",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/octet-stream": {}}, "description": "The file's bytes."}},
)
def download(
    job_id: JobId,
    call: Caller,
    path: Annotated[str, Query(min_length=1, max_length=4096, description="A file of the working directory.")],
    rank: Rank = 0,
    attempt: Attempt = None,
    *,
    checkpoints: Kept = False,
) -> StreamingResponse:
    """A plain file that a job left in its working directory; links are never followed."""
    found = _find(call, job_id)
    size, chunks = open_download(job_id, _directory(call, found, attempt, rank, checkpoints=checkpoints), path)
    name = quote(path.rsplit("/", 1)[-1], safe="")
    headers = {
        "Content-Length": str(size),
        "Content-Disposition": f"attachment; filename*=UTF-8''{name}",
        "X-Content-Type-Options": "nosniff",
    }
    return StreamingResponse(chunks, media_type="application/octet-stream", headers=headers)


def job_directory(call: Call, found: JobRow, attempt: int | None) -> Path:
    """Where an attempt of a job keeps its files; the latest one, when none is named."""
    return _store(call).attempt(found, found.attempt if attempt is None else attempt)


def _directory(call: Call, found: JobRow, attempt: int | None, rank: int, *, checkpoints: bool) -> Path:
    _check_kept("the files", found, found.files_removed_at)
    if checkpoints:
        return _store(call).checkpoints(found, rank)
    return job_directory(call, found, attempt) / f"rank-{rank}"


def _check_kept(what: str, found: JobRow, removed_at: datetime | None) -> None:
    if removed_at is not None:
        raise NoLongerKept(
            what=what.capitalize(), job=found.id, removed_at=removed_at.isoformat(timespec="seconds")
        )


def _store(call: Call) -> Store:
    return Store(call.settings.uploads, call.settings.workspaces)


def _find(call: Call, job_id: JobId) -> JobRow:
    return call.read(lambda session: find_job(session, job_id, tenant_id=call.scope))


def _still(call: Call, request: Request, job_id: JobId) -> JobRow:
    """The job, as long as the key that began to follow it is one."""
    authenticate(call.engine, request.headers.get("authorization"))
    return _find(call, job_id)


def _stands(job: JobRow) -> Followed:
    return Followed(job.state, job.reason, job.attempt)
