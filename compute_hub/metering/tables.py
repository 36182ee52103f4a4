"""Usage records and the queue of those not yet charged.

A record is written once under the id the meter derived for it; the same id with another content is an alarm, kept
in `usage_mismatches`. The queue is the only table here from which rows leave.
"""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKeyConstraint, Index, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from kernel.database import Table


class UsageRecordRow(Table):
    """What one rank used between two cuts of its meter. `slot_ms` is the sum of slots times milliseconds.

    `started_at` is the wall clock at the run's start and `offset_ms` how long after it the stretch begins, by a clock
    that never steps: the stretch's instants follow from the two. `busy_ms` is card time with work on it, by the device
    itself or, where it says nothing, the processor time of the job. `energy_basis` says whether a sensor measured the
    energy or it was estimated from the model's declared power; both are empty where neither is known, and
    `device_memory_bytes_max` where the device does not say what its own memory holds.
    """

    __tablename__ = "usage_records"
    __table_args__ = (
        UniqueConstraint("job_id", "attempt", "rank", "k"),
        CheckConstraint("k >= 0 AND offset_ms >= 0 AND duration_ms >= 0 AND slot_ms >= 0", name="not_negative"),
        CheckConstraint("(energy_mj IS NULL) = (energy_basis IS NULL)", name="energy"),
        CheckConstraint("energy_basis IN ('measured', 'estimated')", name="energy_basis"),
        Index("ix_usage_records_received_at", "received_at", postgresql_using="brin"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    job_id: Mapped[UUID]
    run_id: Mapped[UUID]
    attempt: Mapped[int]
    rank: Mapped[int]
    k: Mapped[int]
    node: Mapped[str] = mapped_column(Text)
    boot_id: Mapped[str] = mapped_column(Text)
    model: Mapped[str] = mapped_column(Text)
    started_at: Mapped[datetime]
    offset_ms: Mapped[int]
    duration_ms: Mapped[int]
    slot_ms: Mapped[int]
    busy_ms: Mapped[int]
    memory_bytes_max: Mapped[int]
    device_memory_bytes_max: Mapped[int | None]
    energy_mj: Mapped[int | None]
    energy_basis: Mapped[str | None] = mapped_column(Text)
    final: Mapped[bool]
    content_sha256: Mapped[str] = mapped_column(Text)
    received_at: Mapped[datetime]


class UnchargedUsageRow(Table):
    """A record that the biller has still to charge."""

    __tablename__ = "uncharged_usage"
    __table_args__ = (
        ForeignKeyConstraint(
            ["job_id", "attempt", "rank", "k"],
            ["usage_records.job_id", "usage_records.attempt", "usage_records.rank", "usage_records.k"],
        ),
    )

    job_id: Mapped[UUID] = mapped_column(primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    rank: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    k: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


class UsageMismatchRow(Table):
    """A record that contradicts an earlier one, or the run it names: never billed, always an alarm."""

    __tablename__ = "usage_mismatches"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    record_id: Mapped[str] = mapped_column(Text)
    problem: Mapped[str] = mapped_column(Text)
    content: Mapped[dict[str, Any]]
    received_at: Mapped[datetime]


class GapCaseRow(Table):
    """A run whose records do not reach its end: from `first_missing_k` on nothing is billed before it is explained.

    A case is filled when that record arrives after all; the row stays, as does what was decided in the meantime.
    """

    __tablename__ = "gap_cases"
    __table_args__ = (CheckConstraint("kind IN ('missing_record', 'no_final_record')", name="kind"),)

    job_id: Mapped[UUID] = mapped_column(primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    rank: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    first_missing_k: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    kind: Mapped[str] = mapped_column(Text)
    opened_at: Mapped[datetime]


class UsageTotalRow(Table):
    """The sum of an attempt's records, kept beside them so that nobody adds up a month every second."""

    __tablename__ = "usage_totals"
    __table_args__ = (CheckConstraint("slot_ms >= 0", name="not_negative"),)

    job_id: Mapped[UUID] = mapped_column(primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    model: Mapped[str] = mapped_column(Text)
    slot_ms: Mapped[int]
