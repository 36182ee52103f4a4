"""What telemetry keeps, so that every process and every restart knows it: audits of the ledger, start estimates."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import CheckConstraint, Index, Text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from kernel.database import Table


class LedgerAuditRow(Table):
    """One audit of the ledger: what it added up, how many differences it found, and the first of them in words."""

    __tablename__ = "ledger_audits"
    __table_args__ = (
        CheckConstraint("differences >= 0 AND duration_ms >= 0", name="not_negative"),
        Index("ix_ledger_audits_audited_at", "audited_at"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    audited_at: Mapped[datetime]
    duration_ms: Mapped[int]
    accounts: Mapped[int]
    transfers: Mapped[int]
    differences: Mapped[int]
    explanations: Mapped[list[str]] = mapped_column(ARRAY(Text))


class StartEstimateRow(Table):
    """When a waiting job was expected to start, told soon after it was submitted; and when it did, once it has."""

    __tablename__ = "start_estimates"
    __table_args__ = (
        CheckConstraint("(started_at IS NULL) = (judged_at IS NULL)", name="judged"),
        Index("ix_start_estimates_judged_at", "judged_at"),
    )

    job_id: Mapped[UUID] = mapped_column(primary_key=True)
    estimated_at: Mapped[datetime]
    start_estimate_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    judged_at: Mapped[datetime | None]
