"""Rates, charges and the funding of jobs. Rates and charges are only ever added."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, Index, Text, UniqueConstraint, Uuid
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from kernel.database import Table


class RateRow(Table):
    """The price of a card-hour of one model from an instant on, until a later rate of the same model."""

    __tablename__ = "rates"
    __table_args__ = (
        UniqueConstraint("model", "effective_from"),
        CheckConstraint("micros_per_card_hour > 0", name="price"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(Text)
    micros_per_card_hour: Mapped[int]
    effective_from: Mapped[datetime]
    set_by: Mapped[UUID]
    set_at: Mapped[datetime]


class JobFundingRow(Table):
    """How a job is paid: which vouchers it may use, and how much card time its holds have covered so far."""

    __tablename__ = "job_funding"
    __table_args__ = (
        CheckConstraint("held_micros >= 0 AND held_slot_ms >= 0", name="not_negative"),
        CheckConstraint("state IN ('pending', 'held', 'ended', 'released')", name="state"),
        Index("ix_job_funding_state", "state"),
    )

    job_id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant_id: Mapped[UUID]
    voucher_ids: Mapped[list[UUID] | None] = mapped_column(ARRAY(Uuid))
    state: Mapped[str] = mapped_column(Text)
    model: Mapped[str | None] = mapped_column(Text)
    held_micros: Mapped[int]
    held_slot_ms: Mapped[int]
    funded_at: Mapped[datetime | None]


class FundedTimeRow(Table):
    """How much card time of one model a job's holds have covered so far; attempts may run on different models."""

    __tablename__ = "job_funded_time"
    __table_args__ = (CheckConstraint("slot_ms >= 0", name="not_negative"),)

    job_id: Mapped[UUID] = mapped_column(ForeignKey("job_funding.job_id"), primary_key=True)
    model: Mapped[str] = mapped_column(Text, primary_key=True)
    slot_ms: Mapped[int]


class ChargeRow(Table):
    """The rated cost of one stretch of one attempt's usage, the n-th charge of its job, and who paid it.

    `rounding_micros` is what the centre bears (or takes back) when several vouchers' shares are each rounded down.
    `forgone_micros` is what the usage would have cost beyond `amount_micros`, which the centre bears as well: usage
    beyond what was held, after a gap in the records, reported after what was held was given back, or of an attempt
    that the centre lost.
    """

    __tablename__ = "charges"
    __table_args__ = (
        UniqueConstraint("job_id", "n"),
        CheckConstraint("amount_micros >= 0 AND forgone_micros >= 0 AND slot_ms > 0", name="amount"),
        CheckConstraint("amount_micros = voucher_micros + tenant_micros + rounding_micros", name="parts"),
        Index("ix_charges_charged_at", "charged_at", postgresql_using="brin"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    job_id: Mapped[UUID]
    tenant_id: Mapped[UUID]
    n: Mapped[int]
    attempt: Mapped[int]
    rate_id: Mapped[UUID] = mapped_column(ForeignKey("rates.id"))
    slot_ms: Mapped[int]
    amount_micros: Mapped[int]
    voucher_micros: Mapped[int]
    tenant_micros: Mapped[int]
    rounding_micros: Mapped[int]
    forgone_micros: Mapped[int]
    charged_at: Mapped[datetime]


class LostAttemptRow(Table):
    """An attempt that the centre lost and what was given back for it; `refused` says what stood in the way."""

    __tablename__ = "lost_attempts"
    __table_args__ = (CheckConstraint("restored_micros >= 0", name="restored"),)

    job_id: Mapped[UUID] = mapped_column(primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    reason: Mapped[str] = mapped_column(Text)
    restored_micros: Mapped[int]
    refused: Mapped[str] = mapped_column(Text)
    restored_at: Mapped[datetime]


class ChargedUsageRow(Table):
    """Which charge a usage record went into; a record goes into exactly one."""

    __tablename__ = "charged_usage"

    record_id: Mapped[UUID] = mapped_column(ForeignKey("usage_records.id"), primary_key=True)
    charge_id: Mapped[UUID] = mapped_column(ForeignKey("charges.id"))
