"""Rolling holds: money for the next stretch of a job is set aside before that stretch runs.

At submission it is only asked whether the first stretch could be paid. At admission it is held, in the transaction
that gives out the devices. While the job runs the hold is extended; when an extension is refused the job is stopped
early enough that what it has used is always covered. A hold therefore also covers the grace a stopped job is given.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import case, func, select, text, update
from sqlalchemy.orm import Session

from compute_hub.billing.domain.days import Span
from compute_hub.billing.domain.rating import hold_micros
from compute_hub.billing.rates import dearest_model, dearest_price
from compute_hub.billing.tables import FundedTimeRow, JobFundingRow
from compute_hub.metering.energy import Draw
from compute_hub.metering.recording import NO_DRAWS, record_usage
from compute_hub.metering.tables import UsageTotalRow
from kernel.clock import unix_ms
from kernel.errors import HubError
from scheduler.controller.ports import Admission
from scheduler.node.protocol import UsageRecord
from scheduler.tables import DeviceRow, JobRow
from vouchers.domain.explanation import Coverage
from vouchers.domain.facts import CentreFacts, ChargeFacts
from vouchers.redemption import extend_hold, held_facts, place_hold, quote

WAKE_CHANNEL: Final = "hub_biller"
"""PostgreSQL notification channel that wakes the billers."""

MARGIN_MS: Final = 15_000
"""Held beyond limit and grace: the time between a decision to stop a job and the end of its last process."""

_STEP_MS: Final = 60_000
"""An extension goes at least so far, so that a job that started late is not extended with every tick."""

_DOMESTIC: Final = frozenset({"cambricon", "ascend"})


def pledge_funding(
    session: Session,
    job: JobRow,
    voucher_ids: Sequence[UUID] | None,
    *,
    centre: CentreFacts,
    horizon_ms: int,
    at: datetime,
) -> Coverage:
    """Note how a new job is to be paid, and check that its first stretch could be. Nothing is held yet.

    Args:
        session: the submission's transaction.
        job: just queued.
        voucher_ids: the vouchers it may use; None for the cheapest choice, empty for none.
        centre: what programmes look at in the centre.
        horizon_ms: length of a stretch.
        at: now.

    Raises:
        NoRate: a model it accepts has no price.
        HubError: whatever `vouchers.redemption.quote` refuses.
    """
    slots = job.node_count * job.devices_per_node * job.slots_milli
    stretch_ms = _stretch_ms(job, 0, horizon_ms)
    price, model = dearest_model(session, job, at, _ahead(at, stretch_ms))
    slot_ms = slots * stretch_ms
    facts = charge_facts(session, centre, model, slot_ms)
    coverage = quote(session, job.tenant_id, hold_micros(slot_ms, price), facts, voucher_ids, at)
    pledge_alike(session, [job], voucher_ids)
    return coverage


def pledge_alike(session: Session, jobs: Sequence[JobRow], voucher_ids: Sequence[UUID] | None) -> None:
    """Note how new jobs are to be paid that are like one of which that has been checked."""
    session.add_all(
        JobFundingRow(
            job_id=job.id,
            tenant_id=job.tenant_id,
            voucher_ids=None if voucher_ids is None else list(voucher_ids),
            state="pending",
            held_slot_ms=0,
            held_micros=0,
            rated_units=0,
        )
        for job in jobs
    )
    session.flush()


@dataclass(frozen=True)
class Funding:
    """Implements `scheduler.controller.ports.Accounting` with vouchers and the meter's tables."""

    horizon_ms: int
    centre: CentreFacts
    draws: Mapping[str, Draw] = field(default_factory=lambda: NO_DRAWS)

    def admit(self, session: Session, admissions: Sequence[Admission], at: datetime) -> Mapping[UUID, str]:
        """Hold the first stretch of attempts; a sentence for each that cannot be paid."""
        try:
            with session.begin_nested():
                self._admit(session, admissions, at)
        except HubError as refusal:
            if len(admissions) == 1:
                return {admissions[0].job.id: f"waiting for funds: {refusal}"}
        else:
            return {}
        alone = [self.admit(session, [admission], at) for admission in admissions]
        return {job_id: why for refused in alone for job_id, why in refused.items()}

    def _admit(self, session: Session, admissions: Sequence[Admission], at: datetime) -> None:
        jobs = [admission.job for admission in admissions]
        query = select(JobFundingRow).where(JobFundingRow.job_id.in_([job.id for job in jobs]))
        locked = (
            query.order_by(JobFundingRow.job_id).with_for_update().execution_options(populate_existing=True)
        )
        fundings = {row.job_id: row for row in session.scalars(locked)}
        used = _used_slot_ms(session, jobs)
        for admission in admissions:
            job, funding = admission.job, fundings[admission.job.id]
            ((model, slots),) = admission.slot_ms_by_model.items()
            before = used.get((job.id, model), Used(0, 0))
            ahead_ms = _stretch_ms(job, 0, self.horizon_ms)
            funding.funded_at = funding.funded_at or at
            need = before.earlier_slot_ms + before.current_slot_ms + slots * ahead_ms
            self._hold(session, job, funding, model, need, ahead_ms, at)
            funding.state = "held"

    def keep_funded(
        self, session: Session, jobs: Sequence[JobRow], elapsed_ms: Mapping[UUID, int], at: datetime
    ) -> Mapping[UUID, str]:
        """Extend holds that are half used up; the jobs that must be stopped now to stay within theirs, and why.

        What is used is the longer of what the meter said and what the stopwatch says.
        """
        ids = [job.id for job in jobs]
        fundings = {
            row.job_id: row
            for row in session.scalars(select(JobFundingRow).where(JobFundingRow.job_id.in_(ids)))
        }
        held = _held_slot_ms(session, ids)
        metered = _used_slot_ms(session, jobs)
        broke: dict[UUID, str] = {}
        for job in jobs:
            funding = fundings.get(job.id)
            if funding is None or funding.model is None:
                continue
            slots = job.node_count * job.devices_per_node * job.slots_milli
            used = metered.get((job.id, funding.model), Used(0, 0))
            elapsed = max(elapsed_ms[job.id], -(-used.current_slot_ms // slots))
            gone = used.earlier_slot_ms + slots * elapsed
            left_ms = (held.get((job.id, funding.model), 0) - gone) // slots
            if left_ms >= ahead_wanted_ms(job, elapsed, self.horizon_ms):
                continue
            refusal = self._extend(session, job, funding, gone, elapsed, at)
            if refusal is None:
                continue
            if left_ms < job.grace_ms + MARGIN_MS:
                broke[job.id] = refusal
            elif job.reason != f"its funds will not last: {refusal}":
                job.reason = f"its funds will not last: {refusal}"
        return broke

    def _extend(
        self, session: Session, job: JobRow, funding: JobFundingRow, gone: int, elapsed_ms: int, at: datetime
    ) -> str | None:
        slots = job.node_count * job.devices_per_node * job.slots_milli
        ahead_ms = _stretch_ms(job, elapsed_ms, self.horizon_ms) + min(self.horizon_ms, _STEP_MS)
        assert funding.model is not None  # noqa: S101 - the caller has looked
        try:
            with session.begin_nested():
                self._hold(session, job, funding, funding.model, gone + slots * ahead_ms, ahead_ms, at)
        except HubError as refusal:
            return str(refusal)
        return None

    def _hold(
        self,
        session: Session,
        job: JobRow,
        funding: JobFundingRow,
        model: str,
        slot_ms: int,
        ahead_ms: int,
        at: datetime,
    ) -> None:
        """Have `slot_ms` of the model covered in all, paid by what is still valid when it will be used up.

        Raises:
            NoRate, and whatever `vouchers.redemption` refuses.
        """
        row = session.get(FundedTimeRow, (job.id, model), populate_existing=True)
        more = slot_ms - (0 if row is None else row.slot_ms)
        if more <= 0:
            funding.model = model
            return
        price = dearest_price(session, job, model, funding.funded_at or at, _ahead(at, ahead_ms))
        micros = funding.held_micros + hold_micros(more, price)
        total_slot_ms = funding.held_slot_ms + more
        facts = job_facts(session, self.centre, job.id, model, total_slot_ms)
        until = at + timedelta(milliseconds=ahead_ms)
        named = funding.voucher_ids
        if funding.held_micros == 0:
            place_hold(session, job.id, job.tenant_id, micros, facts, named, at, usage_until=until)
        else:
            extend_hold(session, job.id, micros, facts, at, voucher_ids=named, usage_until=until)
        if row is None:
            session.add(FundedTimeRow(job_id=job.id, model=model, slot_ms=slot_ms))
        else:
            row.slot_ms = slot_ms
        funding.model, funding.held_slot_ms, funding.held_micros = model, total_slot_ms, micros
        session.flush()

    def record_usage(self, session: Session, node: str, records: Sequence[UsageRecord], at: datetime) -> None:
        """Keep usage records and wake the biller."""
        record_usage(session, node, records, at, self.draws)
        if records:
            session.execute(text(f"NOTIFY {WAKE_CHANNEL}"))

    def ended(self, session: Session, job: JobRow, at: datetime) -> None:  # noqa: ARG002 - the port's signature
        """Let the biller release what is left once the last record is charged."""
        session.execute(
            update(JobFundingRow)
            .where(JobFundingRow.job_id == job.id)
            .values(state=case((JobFundingRow.held_micros == 0, "released"), else_="ended"))
            .returning(func.pg_notify(WAKE_CHANNEL, ""))
            .execution_options(synchronize_session=False)
        )


@dataclass(frozen=True)
class Used:
    """Metered slot-milliseconds of one job on one model: of its attempts before this one, and of this one."""

    earlier_slot_ms: int
    current_slot_ms: int


def ahead_wanted_ms(job: JobRow, elapsed_ms: int, horizon_ms: int) -> int:
    """How much of a job must be covered ahead without an extension: half a stretch, and always its way out."""
    left_ms = max(0, job.time_limit_ms - elapsed_ms)
    return min(horizon_ms, left_ms) // 2 + job.grace_ms + MARGIN_MS


def job_facts(session: Session, centre: CentreFacts, job_id: UUID, model: str, slot_ms: int) -> ChargeFacts:
    """What the voucher rules look at in a job's usage of a model: as it was held for first, then as it is now.

    So neither a device that left nor a centre that grew while a job runs takes its holds away from it.
    """
    held = held_facts(session, job_id, model)
    if held is None:
        return charge_facts(session, centre, model, slot_ms)
    return replace(held, card_ms=slot_ms // 1000)


def charge_facts(session: Session, centre: CentreFacts, model: str, slot_ms: int) -> ChargeFacts:
    """What the voucher rules look at in some usage of a model in this centre."""
    vendor = session.scalars(select(DeviceRow.vendor).where(DeviceRow.model == model).limit(1)).one_or_none()
    return ChargeFacts(
        model=model,
        hardware="domestic" if vendor in _DOMESTIC else "other",
        region=centre.region,
        centre_pflops=centre.pflops,
        card_ms=slot_ms // 1000,
    )


def _ahead(at: datetime, ahead_ms: int) -> Span:
    """The time that is set aside for, at whose dearest moment it is priced; a little longer, for a late start."""
    return Span(unix_ms(at), unix_ms(at) + ahead_ms + _STEP_MS)


def _stretch_ms(job: JobRow, elapsed_ms: int, horizon_ms: int) -> int:
    """How much of a job to cover from `elapsed_ms` of its attempt on: a stretch, or all that its limit leaves."""
    left_ms = max(0, job.time_limit_ms - elapsed_ms)
    return min(horizon_ms, left_ms) + job.grace_ms + MARGIN_MS


def _used_slot_ms(session: Session, jobs: Sequence[JobRow]) -> dict[tuple[UUID, str], Used]:
    """By job and model, what the meter has said until now."""
    attempts = {job.id: job.attempt for job in jobs}
    found: dict[tuple[UUID, str], Used] = {}
    rows = session.execute(
        select(UsageTotalRow.job_id, UsageTotalRow.attempt, UsageTotalRow.model, UsageTotalRow.slot_ms).where(
            UsageTotalRow.job_id.in_(list(attempts))
        )
    )
    for job_id, attempt, model, slot_ms in rows:
        before = found.get((job_id, model), Used(0, 0))
        found[job_id, model] = (
            Used(before.earlier_slot_ms, before.current_slot_ms + slot_ms)
            if attempt >= attempts[job_id]
            else Used(before.earlier_slot_ms + slot_ms, before.current_slot_ms)
        )
    return found


def _held_slot_ms(session: Session, job_ids: Sequence[UUID]) -> dict[tuple[UUID, str], int]:
    query = select(FundedTimeRow.job_id, FundedTimeRow.model, FundedTimeRow.slot_ms).where(
        FundedTimeRow.job_id.in_(job_ids)
    )
    return {(job_id, model): slot_ms for job_id, model, slot_ms in session.execute(query)}
