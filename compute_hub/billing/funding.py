"""Rolling holds: money for the next stretch of a job is set aside before that stretch runs.

At submission it is only asked whether the first stretch could be paid. At admission it is held, in the transaction
that gives out the devices. While the job runs the hold is extended; when an extension is refused the job is stopped
early enough that what it has used is always covered. A hold therefore also covers the grace a stopped job is given.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from compute_hub.billing.rates import dearest_rate, rate_at
from compute_hub.billing.rating import hold_micros
from compute_hub.billing.tables import JobFundingRow
from compute_hub.metering.recording import record_usage
from compute_hub.metering.tables import UsageRecordRow
from kernel.errors import Unfunded
from scheduler.node.protocol import UsageRecord
from scheduler.tables import DeviceRow, JobRow
from vouchers.domain.explanation import Coverage
from vouchers.domain.facts import ChargeFacts
from vouchers.redemption import extend_hold, place_hold, quote

WAKE_CHANNEL: Final = "hub_biller"
"""PostgreSQL notification channel that wakes the billers."""

MARGIN_MS: Final = 15_000
"""Held beyond limit and grace: the time between a decision to stop a job and the end of its last process."""

_DOMESTIC: Final = frozenset({"cambricon", "ascend"})


def pledge_funding(
    session: Session, job: JobRow, voucher_ids: Sequence[UUID] | None, *, horizon_ms: int, at: datetime
) -> Coverage:
    """Note how a new job is to be paid, and check that its first stretch could be. Nothing is held yet.

    Args:
        session: the submission's transaction.
        job: just queued.
        voucher_ids: the vouchers it may use; None for the cheapest choice, empty for none.
        horizon_ms: length of a stretch.
        at: now.

    Raises:
        NoRate: a model it accepts has no price.
        HubError: whatever `vouchers.redemption.quote` refuses.
    """
    slots = job.node_count * job.devices_per_node * job.slots_milli
    rate = dearest_rate(session, job.models, at)
    slot_ms = slots * _stretch_ms(job, 0, horizon_ms)
    facts = charge_facts(session, rate.model, slot_ms)
    coverage = quote(
        session, job.tenant_id, hold_micros(slot_ms, rate.micros_per_card_hour), facts, voucher_ids, at
    )
    session.add(
        JobFundingRow(
            job_id=job.id,
            tenant_id=job.tenant_id,
            voucher_ids=None if voucher_ids is None else list(voucher_ids),
            state="pending",
            held_slot_ms=0,
            held_micros=0,
        )
    )
    session.flush()
    return coverage


@dataclass(frozen=True)
class Funding:
    """Implements `scheduler.controller.ports.Accounting` with vouchers and the meter's tables."""

    horizon_ms: int

    def admit(
        self, session: Session, job: JobRow, slot_ms_by_model: Mapping[str, int], at: datetime
    ) -> str | None:
        """Hold the first stretch of an attempt; a sentence when it cannot be paid."""
        funding = session.get_one(JobFundingRow, job.id, with_for_update=True)
        ((model, slots),) = slot_ms_by_model.items()
        if funding.funded_at is None:
            funding.funded_at = at
        try:
            with session.begin_nested():
                self._hold(session, job, funding, model, slots, used_ms=_used_ms(session, job.id, slots), at=at)
        except Unfunded as refusal:
            return f"waiting for funds: {refusal}"
        funding.state = "held"
        return None

    def keep_funded(self, session: Session, jobs: Sequence[JobRow], at: datetime) -> Sequence[UUID]:
        """Extend holds that are half used up; returns jobs that must be stopped now to stay within theirs."""
        broke = []
        for job in jobs:
            funding = session.get(JobFundingRow, job.id)
            slots = job.node_count * job.devices_per_node * job.slots_milli
            if funding is None or funding.model is None or job.placed_at is None:
                continue
            earlier_ms = _used_ms(session, job.id, slots, before_attempt=job.attempt)
            used_ms = earlier_ms + (at - job.placed_at) // timedelta(milliseconds=1)
            left_ms = funding.held_slot_ms // slots - used_ms
            if left_ms >= _stretch_ms(job, used_ms - earlier_ms, self.horizon_ms) // 2:
                continue
            try:
                with session.begin_nested():
                    self._hold(session, job, funding, funding.model, slots, used_ms=used_ms, at=at)
            except Unfunded:
                if left_ms < job.grace_ms + MARGIN_MS:
                    broke.append(job.id)
        return broke

    def record_usage(self, session: Session, node: str, records: Sequence[UsageRecord], at: datetime) -> None:
        """Keep usage records and wake the biller."""
        record_usage(session, node, records, at)
        if records:
            session.execute(text(f"NOTIFY {WAKE_CHANNEL}"))

    def ended(self, session: Session, job: JobRow, at: datetime) -> None:  # noqa: ARG002 - the port's signature
        """Let the biller release what is left once the last record is charged."""
        funding = session.get(JobFundingRow, job.id, with_for_update=True)
        if funding is not None:
            funding.state = "released" if funding.held_micros == 0 else "ended"
        session.execute(text(f"NOTIFY {WAKE_CHANNEL}"))

    def _hold(
        self,
        session: Session,
        job: JobRow,
        funding: JobFundingRow,
        model: str,
        slots: int,
        *,
        used_ms: int,
        at: datetime,
    ) -> None:
        elapsed_ms = 0 if job.placed_at is None else (at - job.placed_at) // timedelta(milliseconds=1)
        slot_ms = slots * (used_ms + _stretch_ms(job, elapsed_ms, self.horizon_ms))
        if slot_ms <= funding.held_slot_ms:
            return
        rate = rate_at(session, model, funding.funded_at or at)
        micros = funding.held_micros + hold_micros(slot_ms - funding.held_slot_ms, rate.micros_per_card_hour)
        facts = charge_facts(session, model, slot_ms)
        if funding.held_micros == 0:
            place_hold(session, job.id, job.tenant_id, micros, facts, funding.voucher_ids, at)
        else:
            extend_hold(session, job.id, micros, facts, at, voucher_ids=funding.voucher_ids)
        funding.model, funding.held_slot_ms, funding.held_micros = model, slot_ms, micros
        session.flush()


def charge_facts(session: Session, model: str, slot_ms: int) -> ChargeFacts:
    """What the voucher rules look at in some usage of a model."""
    vendor = session.scalars(select(DeviceRow.vendor).where(DeviceRow.model == model).limit(1)).one_or_none()
    hardware = "domestic" if vendor in _DOMESTIC else "other"
    return ChargeFacts(model=model, hardware=hardware, card_ms=slot_ms // 1000)


def _stretch_ms(job: JobRow, elapsed_ms: int, horizon_ms: int) -> int:
    """How much of a job to cover from `elapsed_ms` of its attempt on: a stretch, or all that its limit leaves."""
    left_ms = max(0, job.time_limit_ms - elapsed_ms)
    return min(horizon_ms, left_ms) + job.grace_ms + MARGIN_MS


def _used_ms(session: Session, job_id: UUID, slots: int, *, before_attempt: int | None = None) -> int:
    """The metered time of a job's attempts, in milliseconds of the whole allocation."""
    query = select(func.coalesce(func.sum(UsageRecordRow.slot_ms), 0)).where(UsageRecordRow.job_id == job_id)
    if before_attempt is not None:
        query = query.where(UsageRecordRow.attempt < before_attempt)
    return -(-int(session.scalars(query).one()) // slots)
