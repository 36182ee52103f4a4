"""Rolling holds: money for the next stretch of a job is set aside before that stretch runs.

At submission it is only asked whether the first stretch could be paid. At admission it is held, in the transaction
that gives out the devices. While the job runs the hold is extended; when an extension is refused the job is stopped
early enough that what it has used is always covered. A hold therefore also covers the grace a stopped job is given.
While a job waits to run again nothing is held for it (`waiting.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import bindparam, case, func, select, update
from sqlalchemy.orm import Session

from compute_hub.billing.ahead import (
    STEP_MS,
    Ahead,
    Funded,
    charge_facts,
    cover_ahead,
    covered_time,
    funded_jobs,
    hardware_of,
    priced_ahead,
)
from compute_hub.billing.domain.rating import hold_micros
from compute_hub.billing.rates import dearest_model
from compute_hub.billing.tables import JobFundingRow
from compute_hub.metering.energy import Draw
from compute_hub.metering.recording import NO_DRAWS, record_usage
from compute_hub.metering.tables import UsageTotalRow
from kernel.bulk import among
from kernel.errors import HubError
from kernel.prepared import Prepared, add_rows, new_row
from scheduler.controller.ports import Admission
from scheduler.node.protocol import UsageRecord
from scheduler.tables import JobRow
from vouchers.domain.explanation import Coverage
from vouchers.domain.facts import CentreFacts
from vouchers.redemption import quote

WAKE_CHANNEL: Final = "hub_biller"
"""PostgreSQL notification channel that wakes the billers."""

MARGIN_MS: Final = 15_000
"""Held beyond limit and grace: the time between a decision to stop a job and the end of its last process."""

_METERED: Final = Prepared(
    select(UsageTotalRow.job_id, UsageTotalRow.attempt, UsageTotalRow.model, UsageTotalRow.slot_ms).where(
        among(UsageTotalRow.job_id, bindparam("jobs"))
    )
)
_REQUEUED: Final = Prepared(
    update(JobFundingRow)
    .where(among(JobFundingRow.job_id, bindparam("jobs")), JobFundingRow.state == "held")
    .values(state="waiting")
    .returning(func.pg_notify(WAKE_CHANNEL, ""))
)
_ENDED: Final = Prepared(
    update(JobFundingRow)
    .where(among(JobFundingRow.job_id, bindparam("jobs")))
    .values(state=case((JobFundingRow.funded_at.is_(None), "released"), else_="ended"))
    .returning(func.pg_notify(WAKE_CHANNEL, ""))
)


def check_funding(
    session: Session,
    job: JobRow,
    voucher_ids: Sequence[UUID] | None,
    *,
    project: str | None = None,
    centre: CentreFacts,
    horizon_ms: int,
    at: datetime,
) -> Coverage:
    """Check that the first stretch of a new job could be paid. Nothing is held yet, nor written.

    Args:
        session: the submission's transaction.
        job: about to be queued.
        voucher_ids: the vouchers it may use; None for the cheapest choice, empty for none.
        project: whose parts of vouchers it uses, and whose budget limits it.
        centre: what programmes look at in the centre.
        horizon_ms: length of a stretch.
        at: now.

    Raises:
        NoRate: a model it accepts has no price.
        HubError: whatever `vouchers.redemption.quote` refuses.
    """
    stretch_ms = _stretch_ms(job, 0, horizon_ms)
    price, model = dearest_model(session, job, at, priced_ahead(at, stretch_ms))
    slot_ms = _slots(job) * stretch_ms
    facts = charge_facts(centre, job, model, hardware_of(session, [model]), slot_ms, project)
    return quote(session, job.tenant_id, hold_micros(slot_ms, price), facts, voucher_ids, at)


def pledge_funding(
    session: Session,
    jobs: Sequence[JobRow],
    voucher_ids: Sequence[UUID] | None,
    project: str | None = None,
) -> None:
    """Note how new jobs are to be paid that are like one of which that has been checked (`check_funding`)."""
    rows = [
        new_row(
            JobFundingRow,
            job_id=job.id,
            tenant_id=job.tenant_id,
            voucher_ids=None if voucher_ids is None else list(voucher_ids),
            project=project,
            state="pending",
            held_slot_ms=0,
            held_micros=0,
            rated_units=0,
            charges=0,
        )
        for job in jobs
    ]
    add_rows(session, rows)


@dataclass(frozen=True)
class Funding:
    """Implements `scheduler.controller.ports.Accounting` with vouchers and the meter's tables."""

    horizon_ms: int
    centre: CentreFacts
    draws: Mapping[str, Draw] = field(default_factory=lambda: NO_DRAWS)

    def admit(self, session: Session, admissions: Sequence[Admission], at: datetime) -> Mapping[UUID, str]:
        """Hold the first stretch of attempts, one after another; a sentence for each that cannot be paid.

        What is refused as a whole has written nothing (`place_holds`), and is asked for one by one.
        """
        try:
            refused = self._admit(session, admissions, at)
        except HubError as refusal:
            if len(admissions) == 1:
                return {admissions[0].job.id: f"waiting for funds: {refusal}"}
        else:
            return {job_id: f"waiting for funds: {refusal}" for job_id, refusal in refused.items()}
        alone = [self.admit(session, [admission], at) for admission in admissions]
        return {job_id: why for some in alone for job_id, why in some.items()}

    def _admit(
        self, session: Session, admissions: Sequence[Admission], at: datetime
    ) -> Mapping[UUID, HubError]:
        jobs = [admission.job for admission in admissions]
        funded = funded_jobs(session, [job.id for job in jobs], lock=True)
        used = _used_slot_ms(session, [job for job in jobs if job.attempt > 1])
        wanted = []
        for admission in admissions:
            job = admission.job
            ((model, slots),) = admission.slot_ms_by_model.items()
            before = used.get((job.id, model), Used(0, 0))
            ahead_ms = _stretch_ms(job, 0, self.horizon_ms)
            need = before.earlier_slot_ms + before.current_slot_ms + slots * ahead_ms
            wanted.append(Ahead(job, funded[job.id], model, need, ahead_ms))
        return cover_ahead(session, self.centre, wanted, at)

    def keep_funded(
        self, session: Session, jobs: Sequence[JobRow], elapsed_ms: Mapping[UUID, int], at: datetime
    ) -> Mapping[UUID, str]:
        """Extend holds that are half used up; the jobs that must be stopped now to stay within theirs, and why.

        What is used is the longer of what the meter said and what the stopwatch says.
        """
        found = _use(session, jobs, elapsed_ms)
        short = [
            use for use in found if use.left_ms < ahead_wanted_ms(use.job, use.elapsed_ms, self.horizon_ms)
        ]
        wanted = []
        for use in short:
            ahead_ms = _stretch_ms(use.job, use.elapsed_ms, self.horizon_ms) + min(self.horizon_ms, STEP_MS)
            need = use.gone_slot_ms + use.slots * ahead_ms
            wanted.append(Ahead(use.job, use.funded, use.model, need, ahead_ms))
        refused = cover_ahead(session, self.centre, wanted, at)
        broke: dict[UUID, str] = {}
        for use in short:
            job, refusal = use.job, refused.get(use.job.id)
            if refusal is None:
                _all_clear(job)
            elif use.left_ms < job.grace_ms + MARGIN_MS:
                broke[job.id] = str(refusal)
            else:
                _warn(job, f"its funds will not last: {refusal}")
        return broke

    def record_usage(self, session: Session, usage: Mapping[str, Sequence[UsageRecord]], at: datetime) -> None:
        """Keep usage records and wake the biller."""
        record_usage(session, usage, at, self.draws, wake=WAKE_CHANNEL)

    def requeued(self, session: Session, jobs: Sequence[JobRow], at: datetime) -> None:  # noqa: ARG002 - the port's
        """Let the biller give back what the attempts that are over did not use."""
        _REQUEUED(session, jobs=[job.id for job in jobs])

    def ended(self, session: Session, jobs: Sequence[JobRow], at: datetime) -> None:  # noqa: ARG002 - the port's
        """Let the biller release what is left once the last record is charged."""
        _ENDED(session, jobs=[job.id for job in jobs])


def _warn(job: JobRow, sentence: str) -> None:
    """Say once why a job will be stopped, to who looks at it and to the job itself."""
    if not job.notice:
        job.reason = job.notice = sentence


def _all_clear(job: JobRow) -> None:
    """Money came: what was said of its funds no longer holds."""
    if job.notice:
        job.reason, job.notice = "its funds reach further again", ""


@dataclass(frozen=True)
class Used:
    """Metered slot-milliseconds of one job on one model: of its attempts before this one, and of this one."""

    earlier_slot_ms: int
    current_slot_ms: int


def ahead_wanted_ms(job: JobRow, elapsed_ms: int, horizon_ms: int) -> int:
    """How much of a job must be covered ahead without an extension: half a stretch, and always its way out."""
    left_ms = max(0, job.time_limit_ms - elapsed_ms)
    return min(horizon_ms, left_ms) // 2 + job.grace_ms + MARGIN_MS


def _stretch_ms(job: JobRow, elapsed_ms: int, horizon_ms: int) -> int:
    """How much of a job to cover from `elapsed_ms` of its attempt on: a stretch, or all that its limit leaves."""
    left_ms = max(0, job.time_limit_ms - elapsed_ms)
    return min(horizon_ms, left_ms) + job.grace_ms + MARGIN_MS


@dataclass(frozen=True)
class _Use:
    """How far a running job has come with what it is covered for."""

    job: JobRow
    funded: Funded
    model: str
    elapsed_ms: int
    gone_slot_ms: int
    left_ms: int

    @property
    def slots(self) -> int:
        """What one millisecond of it uses."""
        return _slots(self.job)


def _use(session: Session, jobs: Sequence[JobRow], elapsed_ms: Mapping[UUID, int]) -> list[_Use]:
    ids = [job.id for job in jobs]
    funded = funded_jobs(session, ids, lock=False)
    covered = covered_time(session, ids)
    metered = _used_slot_ms(session, jobs)
    found = []
    for job in jobs:
        funding = funded.get(job.id)
        if funding is None or funding.model is None:
            continue
        slots = _slots(job)
        used = metered.get((job.id, funding.model), Used(0, 0))
        elapsed = max(elapsed_ms[job.id], -(-used.current_slot_ms // slots))
        gone = used.earlier_slot_ms + slots * elapsed
        left_ms = (covered.get((job.id, funding.model), 0) - gone) // slots
        found.append(_Use(job, funding, funding.model, elapsed, gone, left_ms))
    return found


def _slots(job: JobRow) -> int:
    return job.node_count * job.devices_per_node * job.slots_milli


def _used_slot_ms(session: Session, jobs: Sequence[JobRow]) -> dict[tuple[UUID, str], Used]:
    """By job and model, what the meter has said until now."""
    attempts = {job.id: job.attempt for job in jobs}
    found: dict[tuple[UUID, str], Used] = {}
    if not attempts:
        return found
    for job_id, attempt, model, slot_ms in _METERED(session, jobs=list(attempts)):
        before = found.get((job_id, model), Used(0, 0))
        found[job_id, model] = (
            Used(before.earlier_slot_ms, before.current_slot_ms + slot_ms)
            if attempt >= attempts[job_id]
            else Used(before.earlier_slot_ms + slot_ms, before.current_slot_ms)
        )
    return found
