"""What is shown of jobs: their state and why, what they asked for, their devices, card time and money."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import bindparam, func, select
from sqlalchemy.orm import Session

from compute_hub.api.job_submission import PRIORITIES
from compute_hub.api.shapes import View
from compute_hub.billing.tables import ChargeCorrectionRow, ChargeRow, JobFundingRow
from compute_hub.metering.tables import UsageRecordRow
from kernel.bulk import among
from kernel.money import format_yuan
from kernel.prepared import Prepared
from scheduler.jobs import runs_of
from scheduler.tables import JobRow, RunRow

_CLASSES = {value: name.value for name, value in PRIORITIES.items()}

# Asked whenever a job is shown.
_USED: Final = Prepared(
    select(UsageRecordRow.job_id, func.sum(UsageRecordRow.slot_ms))
    .where(among(UsageRecordRow.job_id, bindparam("jobs")))
    .group_by(UsageRecordRow.job_id)
)
_CHARGED: Final = Prepared(
    select(
        ChargeRow.job_id,
        func.sum(ChargeRow.amount_micros),
        func.sum(ChargeRow.voucher_micros),
        func.sum(ChargeRow.tenant_micros),
    )
    .where(
        among(ChargeRow.job_id, bindparam("jobs")),
        ~select(ChargeCorrectionRow.charge_id).where(ChargeCorrectionRow.charge_id == ChargeRow.id).exists(),
    )
    .group_by(ChargeRow.job_id)
)
_PROJECTS: Final = Prepared(
    select(JobFundingRow.job_id, JobFundingRow.project).where(among(JobFundingRow.job_id, bindparam("jobs")))
)


class DeviceView(View):
    """One device a job ran on."""

    node: str
    index: int


class JobView(View):
    """A job and what it has used and cost so far. Amounts in yuan, time in milliseconds of one card.

    A job of an array is named by its id, or by `array_id.array_index`.
    """

    id: UUID
    tenant_id: UUID
    name: str
    kind: str
    state: str
    reason: str
    accelerator: list[str]
    environment: str
    nodes: int
    devices_per_node: int
    time_limit_s: int
    priority: str
    preemptible: bool
    topology: str
    not_before: datetime | None
    depends_on: list[UUID]
    held: bool
    secrets: list[str]
    project: str | None
    array_id: UUID | None
    array_index: int | None
    attempt: int
    max_retries: int
    retry_on: str
    retry_at: datetime | None
    preemptions: int
    queued_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    exit_code: int | None
    end_reason: str | None
    files_removed_at: datetime | None
    logs_removed_at: datetime | None
    devices: list[DeviceView]
    card_ms: int
    charge_cny: str
    voucher_cny: str
    tenant_cny: str


def job_views(session: Session, rows: Sequence[JobRow]) -> list[JobView]:
    """Several jobs with their devices, card time and money, in four queries however many they are."""
    ids = [row.id for row in rows]
    runs = runs_of(session, ids)
    used: dict[UUID, int] = dict(_USED(session, jobs=ids))
    money = {job_id: tuple(sums) for job_id, *sums in _CHARGED(session, jobs=ids)}
    projects: dict[UUID, str | None] = dict(_PROJECTS(session, jobs=ids))
    return [
        _view(row, runs[row.id], used.get(row.id, 0), money.get(row.id, (0, 0, 0)), projects.get(row.id))
        for row in rows
    ]


def new_job_view(row: JobRow, project: str | None) -> JobView:
    """A job that has just been queued, which has run nowhere and used nothing yet."""
    return _view(row, [], 0, (0, 0, 0), project)


def _view(
    row: JobRow, runs: list[RunRow], slot_ms: int, money: tuple[int, ...], project: str | None
) -> JobView:
    latest = [run for run in runs if run.attempt == row.attempt]
    return JobView(
        id=row.id,
        tenant_id=row.tenant_id,
        name=row.name,
        kind=row.kind,
        state=row.state,
        reason=row.reason,
        accelerator=row.models,
        environment=row.environment,
        nodes=row.node_count,
        devices_per_node=row.devices_per_node,
        time_limit_s=row.time_limit_ms // 1000,
        priority=_CLASSES.get(row.priority, str(row.priority)),
        preemptible=row.preemptible,
        topology=row.topology,
        not_before=row.not_before,
        depends_on=row.depends_on,
        held=row.held,
        secrets=row.secrets,
        project=project,
        array_id=row.array_id,
        array_index=row.array_index,
        attempt=row.attempt,
        max_retries=row.max_retries,
        retry_on=row.retry_on,
        retry_at=row.retry_at,
        preemptions=row.evictions,
        queued_at=row.queued_at,
        started_at=row.started_at,
        ended_at=row.ended_at,
        exit_code=row.exit_code,
        end_reason=row.end_reason,
        files_removed_at=row.files_removed_at,
        logs_removed_at=row.logs_removed_at,
        devices=[DeviceView(node=run.node, index=device[0]) for run in latest for device in run.devices],
        card_ms=slot_ms // 1000,
        charge_cny=format_yuan(money[0]),
        voucher_cny=format_yuan(money[1]),
        tenant_cny=format_yuan(money[2]),
    )


class ArrayView(View):
    """An array of jobs and how many of them are in which state."""

    id: UUID
    tenant_id: UUID
    name: str
    size: int
    running_max: int | None
    states: dict[str, int]
    queued_at: datetime
    ended_at: datetime | None


def array_view(jobs: Sequence[JobRow]) -> ArrayView:
    """All jobs of one array as one thing; it has ended when all of them have."""
    first = jobs[0]
    assert first.array_id is not None  # noqa: S101 - whoever asks has jobs of an array
    states: dict[str, int] = {}
    for job in jobs:
        states[job.state] = states.get(job.state, 0) + 1
    ends = [job.ended_at for job in jobs if job.ended_at is not None]
    return ArrayView(
        id=first.array_id,
        tenant_id=first.tenant_id,
        name=first.name,
        size=first.array_size,
        running_max=first.array_running_max or None,
        states=dict(sorted(states.items())),
        queued_at=first.queued_at,
        ended_at=max(ends) if len(ends) == len(jobs) else None,
    )


class ExplanationView(View):
    """Why a job waits: a stable `code` where a rule of the scheduler decides, and a sentence."""

    id: UUID
    state: str
    code: str | None
    sentence: str
    start_estimate_at: datetime | None


class AttemptView(View):
    """One process of one attempt of a job: where it ran and how it ended."""

    attempt: int
    rank: int
    node: str
    state: str
    started_at: datetime | None
    ended_at: datetime | None
    exit_code: int | None
    end_reason: str | None
    detail: str | None


def attempt_view(run: RunRow) -> AttemptView:
    """A run as its owner sees it."""
    return AttemptView(
        attempt=run.attempt,
        rank=run.rank,
        node=run.node,
        state=run.state,
        started_at=run.started_at,
        ended_at=run.ended_at,
        exit_code=run.exit_code,
        end_reason=run.end_reason,
        detail=run.end_detail,
    )
