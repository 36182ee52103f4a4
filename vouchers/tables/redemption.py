"""What is set aside for jobs and who paid which part of a charge.

Amounts never change; `captured_*` are cursors that the ledger can recompute.
"""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, Index, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from kernel.database import Table


class JobHold(Table):
    """That a job has money set aside; its row serialises all that happens to it.

    What of the segments below `given_back` was not captured went back where it came from while the job waits again.
    """

    __tablename__ = "job_holds"

    job_id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("enterprises.id"), index=True)
    opened_at: Mapped[datetime]
    state: Mapped[str]
    given_back: Mapped[int]

    __table_args__ = (
        CheckConstraint("state IN ('open','released')", name="state"),
        CheckConstraint("given_back >= 0", name="given_back"),
    )


class HoldSegment(Table):
    """One stretch of a job's cost that is set aside: the first hold, then one per extension.

    `plan` holds the candidates with their terms, from which every share can be computed again.
    """

    __tablename__ = "hold_segments"

    job_id: Mapped[UUID] = mapped_column(ForeignKey("job_holds.job_id"), primary_key=True)
    segment: Mapped[int] = mapped_column(primary_key=True)
    cost_micros: Mapped[int]
    card_ms: Mapped[int]
    facts: Mapped[dict[str, Any]]
    asked_vouchers: Mapped[list[Any] | None]
    plan: Mapped[list[Any]]
    serves_until: Mapped[datetime | None]
    placed_at: Mapped[datetime]
    captured_micros: Mapped[int]
    captured_ms: Mapped[int]

    __table_args__ = (
        CheckConstraint("cost_micros > 0 AND card_ms >= 0", name="cost"),
        CheckConstraint("captured_micros BETWEEN 0 AND cost_micros", name="captured"),
    )


class HoldLine(Table):
    """What one source set aside for a segment, and the ledger's hold that keeps it."""

    __tablename__ = "hold_lines"

    job_id: Mapped[UUID] = mapped_column(primary_key=True)
    segment: Mapped[int] = mapped_column(primary_key=True)
    line: Mapped[int] = mapped_column(primary_key=True)
    source: Mapped[str]
    voucher_id: Mapped[UUID | None] = mapped_column(ForeignKey("vouchers.id"), index=True)
    payer_id: Mapped[UUID | None] = mapped_column(ForeignKey("enterprises.id"))
    account_id: Mapped[UUID]
    held: Mapped[int]
    captured: Mapped[int]
    transfer_id: Mapped[UUID] = mapped_column(unique=True)

    __table_args__ = (
        CheckConstraint("source IN ('voucher','prepaid','credit','budget')", name="source"),
        CheckConstraint("captured BETWEEN 0 AND held", name="captured"),
        CheckConstraint("(source = 'voucher') = (voucher_id IS NOT NULL)", name="voucher"),
    )


class CoveredCharge(Table):
    """A charge that was captured, once, under its id."""

    __tablename__ = "covered_charges"

    charge_id: Mapped[UUID] = mapped_column(primary_key=True)
    job_id: Mapped[UUID] = mapped_column(ForeignKey("job_holds.job_id"), index=True)
    tenant_id: Mapped[UUID]
    cost_micros: Mapped[int]
    card_ms: Mapped[int]
    facts: Mapped[dict[str, Any]]
    used_until: Mapped[datetime]
    captured_at: Mapped[datetime]
    restored_micros: Mapped[int]
    restored_ms: Mapped[int]

    __table_args__ = (
        CheckConstraint("restored_micros BETWEEN 0 AND cost_micros", name="restored"),
        CheckConstraint("restored_ms BETWEEN 0 AND card_ms", name="restored_time"),
    )


class ChargeStretch(Table):
    """Which part of a segment a charge took: from where to where of its cumulative cost and card time."""

    __tablename__ = "charge_stretches"

    charge_id: Mapped[UUID] = mapped_column(ForeignKey("covered_charges.charge_id"), primary_key=True)
    segment: Mapped[int] = mapped_column(primary_key=True)
    from_micros: Mapped[int]
    until_micros: Mapped[int]
    from_ms: Mapped[int]
    until_ms: Mapped[int]

    __table_args__ = (
        CheckConstraint("0 <= from_micros AND from_micros < until_micros", name="cost"),
        CheckConstraint("0 <= from_ms AND from_ms <= until_ms", name="time"),
    )


class CoverageLine(Table):
    """Who paid which part of a charge, by which clause; voucher lines are what a claim gathers."""

    __tablename__ = "coverage_lines"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    charge_id: Mapped[UUID] = mapped_column(ForeignKey("covered_charges.charge_id"))
    line: Mapped[int]
    segment: Mapped[int]
    source: Mapped[str]
    voucher_id: Mapped[UUID | None] = mapped_column(ForeignKey("vouchers.id"), index=True)
    version_id: Mapped[UUID | None] = mapped_column(ForeignKey("programme_versions.id"))
    slug: Mapped[str | None]
    payer_id: Mapped[UUID | None]
    direction: Mapped[str]
    clause: Mapped[str]
    sentence: Mapped[str]
    amount_micros: Mapped[int]
    quantity: Mapped[int]
    asset: Mapped[str]
    transfer_id: Mapped[UUID | None]
    used_until: Mapped[datetime]

    __table_args__ = (
        UniqueConstraint("charge_id", "line"),
        Index("ix_coverage_lines_claim", "slug", "used_until", postgresql_where=text("voucher_id IS NOT NULL")),
        CheckConstraint("source IN ('voucher','prepaid','credit','rounding')", name="source"),
        CheckConstraint("amount_micros >= 0 OR source = 'rounding'", name="amount"),
        CheckConstraint("quantity >= 0", name="quantity"),
    )


class Restoration(Table):
    """What of a coverage line was given back to the very lot it came from, or clawed back to the pool.

    A line may be given back in parts, one row each; `captured` less all of them is what still stands.
    """

    __tablename__ = "restorations"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    line_id: Mapped[UUID] = mapped_column(ForeignKey("coverage_lines.id"))
    number: Mapped[int]
    reason: Mapped[str]
    kind: Mapped[str]
    amount_micros: Mapped[int]
    quantity: Mapped[int]
    transfer_id: Mapped[UUID | None] = mapped_column(unique=True)
    restored_by: Mapped[str]
    restored_at: Mapped[datetime]

    __table_args__ = (
        UniqueConstraint("line_id", "number"),
        CheckConstraint("kind IN ('restored','clawed_back')", name="kind"),
        CheckConstraint("amount_micros >= 0 AND quantity >= 0", name="amount"),
        CheckConstraint("(quantity > 0) = (transfer_id IS NOT NULL)", name="moved"),
    )
