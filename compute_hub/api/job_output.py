"""What jobs leave behind: their logs."""

from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from compute_hub.api.call import Call, Caller
from compute_hub.api.job_reference import JobId
from compute_hub.job_files import log_chunks
from scheduler.jobs import find_job
from scheduler.tables import JobRow

router = APIRouter(prefix="/v1", tags=["jobs"])


@router.get(
    "/jobs/{job_id}/logs",
    name="read_job_log",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/plain": {}}, "description": "The log's bytes."}},
)
def logs(
    job_id: JobId,
    call: Caller,
    rank: Annotated[int, Query(ge=0, le=10_000)] = 0,
    offset: Annotated[int, Query(ge=0, le=2**53)] = 0,
) -> StreamingResponse:
    """What one rank of the latest attempt printed, from a byte offset on, as plain text."""
    found = call.read(lambda session: find_job(session, job_id, tenant_id=call.scope))
    path = job_directory(call, found) / f"rank-{rank}.log"
    return StreamingResponse(log_chunks(job_id, rank, path, offset), media_type="text/plain; charset=utf-8")


def job_directory(call: Call, found: JobRow) -> Path:
    """Where the latest attempt of a job keeps its files."""
    return call.settings.workspaces / str(found.tenant_id) / str(found.id) / f"attempt-{found.attempt}"
