"""Claims, their lines and what was decided about them."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, Index, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from kernel.database import Table


class Claim(Table):
    """What the centre, or a buyer, asks a programme to pay for one period."""

    __tablename__ = "claims"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    slug: Mapped[str] = mapped_column(ForeignKey("programmes.slug"))
    period: Mapped[str]
    sequence: Mapped[int]
    claimant_id: Mapped[UUID | None] = mapped_column(ForeignKey("enterprises.id"))
    asset: Mapped[str]
    amount: Mapped[int]
    state: Mapped[str]
    made_by: Mapped[str]
    made_at: Mapped[datetime]
    first_reviewer: Mapped[str | None]
    approver: Mapped[str | None]
    approved: Mapped[int | None]
    disbursed: Mapped[int | None]
    from_reserve: Mapped[int | None]
    bank_reference: Mapped[str | None] = mapped_column(unique=True)
    sample_seed: Mapped[str | None]
    evidence: Mapped[dict[str, Any]]

    __table_args__ = (
        Index(
            "uq_claims_sequence",
            "slug",
            "period",
            "claimant_id",
            "sequence",
            unique=True,
            postgresql_nulls_not_distinct=True,
        ),
        CheckConstraint(
            "state IN ('submitted','checked','reviewed','approved','rejected','disbursed','reconciled')",
            name="state",
        ),
        CheckConstraint("amount > 0", name="amount"),
        CheckConstraint("approved BETWEEN 0 AND amount", name="approved"),
        CheckConstraint("disbursed BETWEEN 0 AND approved", name="disbursed"),
        CheckConstraint("from_reserve BETWEEN 0 AND disbursed", name="from_reserve"),
        CheckConstraint("first_reviewer <> approver", name="two_people"),
        CheckConstraint("approver IS NULL OR first_reviewer IS NOT NULL", name="review_order"),
        CheckConstraint(
            "state NOT IN ('approved','disbursed','reconciled') OR approver IS NOT NULL", name="approval"
        ),
    )


class ClaimLine(Table):
    """One captured coverage in a claim; a coverage is in at most one claim that still stands."""

    __tablename__ = "claim_lines"

    claim_id: Mapped[UUID] = mapped_column(ForeignKey("claims.id"), primary_key=True)
    line: Mapped[int] = mapped_column(primary_key=True)
    coverage_line_id: Mapped[UUID] = mapped_column(ForeignKey("coverage_lines.id"))
    amount: Mapped[int]
    sampled: Mapped[bool]
    state: Mapped[str]
    reason: Mapped[str]
    from_reserve: Mapped[int | None]

    __table_args__ = (
        Index(
            "uq_claim_lines_coverage_line_id",
            "coverage_line_id",
            unique=True,
            postgresql_where=text("state NOT IN ('disputed','restored')"),
        ),
        CheckConstraint(
            "state IN ('claimed','disputed','rejected','approved','clawed_back','restored')", name="state"
        ),
        CheckConstraint("from_reserve BETWEEN 0 AND amount", name="from_reserve"),
        CheckConstraint("amount > 0", name="amount"),
    )


class ClaimStep(Table):
    """Who did what to a claim, in order, with the facts of automatic checks."""

    __tablename__ = "claim_steps"

    claim_id: Mapped[UUID] = mapped_column(ForeignKey("claims.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    step: Mapped[str]
    actor: Mapped[str]
    facts: Mapped[dict[str, Any]]
    at: Mapped[datetime]


class ReserveAdvance(Table):
    """Money advanced to the centre for a programme."""

    __tablename__ = "reserve_advances"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    slug: Mapped[str] = mapped_column(ForeignKey("programmes.slug"))
    reference: Mapped[str]
    amount: Mapped[int]
    advanced_by: Mapped[str]
    advanced_at: Mapped[datetime]

    __table_args__ = (UniqueConstraint("slug", "reference"), CheckConstraint("amount > 0", name="amount"))
