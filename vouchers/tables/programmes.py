"""Programmes, their dated versions, applications with what was decided about them, and vouchers."""

from datetime import date, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, Identity, Index, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from kernel.database import Table


class Programme(Table):
    """A programme's name and the row that serialises what is issued under it."""

    __tablename__ = "programmes"

    slug: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(Identity(always=True), unique=True)
    asset: Mapped[str]
    first_published_at: Mapped[datetime]


class ProgrammeVersion(Table):
    """One dated version of a programme's rules; versions of a programme never overlap."""

    __tablename__ = "programme_versions"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    slug: Mapped[str] = mapped_column(ForeignKey("programmes.slug"))
    programme_number: Mapped[int]
    version: Mapped[int]
    effective_from: Mapped[date]
    effective_until: Mapped[date | None]
    document: Mapped[dict[str, Any]]
    digest: Mapped[str]
    published_by: Mapped[str]
    published_at: Mapped[datetime]

    __table_args__ = (
        UniqueConstraint("slug", "version"),
        CheckConstraint("effective_until IS NULL OR effective_until >= effective_from", name="effective"),
    )


class Appropriation(Table):
    """Money put into a programme's pool for a cycle, and by which version."""

    __tablename__ = "appropriations"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    slug: Mapped[str] = mapped_column(ForeignKey("programmes.slug"), index=True)
    cycle: Mapped[str]
    version_id: Mapped[UUID] = mapped_column(ForeignKey("programme_versions.id"))
    amount: Mapped[int]
    appropriated_by: Mapped[str]
    appropriated_at: Mapped[datetime]

    __table_args__ = (
        UniqueConstraint("slug", "cycle", "version_id"),
        CheckConstraint("amount > 0", name="amount"),
    )


class CycleClosing(Table):
    """What was left in the pool of a cycle that was over, and where it went: on to a cycle, or back."""

    __tablename__ = "cycle_closings"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    slug: Mapped[str] = mapped_column(ForeignKey("programmes.slug"))
    cycle: Mapped[str]
    number: Mapped[int]
    amount: Mapped[int]
    carried_to: Mapped[str | None]
    closed_at: Mapped[datetime]

    __table_args__ = (
        UniqueConstraint("slug", "cycle", "number"),
        CheckConstraint("amount > 0", name="amount"),
        CheckConstraint("carried_to <> cycle", name="carried"),
    )


class Round(Table):
    """A call for applications with its cut-off."""

    __tablename__ = "rounds"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    slug: Mapped[str] = mapped_column(ForeignKey("programmes.slug"), index=True)
    name: Mapped[str]
    opens_at: Mapped[datetime]
    cut_off_at: Mapped[datetime]
    opened_by: Mapped[str]

    __table_args__ = (UniqueConstraint("slug", "name"), CheckConstraint("cut_off_at > opens_at", name="dates"))


class Application(Table):
    """An enterprise's request for a voucher under one programme version."""

    __tablename__ = "applications"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    version_id: Mapped[UUID] = mapped_column(ForeignKey("programme_versions.id"), index=True)
    enterprise_id: Mapped[UUID] = mapped_column(ForeignKey("enterprises.id"), index=True)
    round_id: Mapped[UUID | None] = mapped_column(ForeignKey("rounds.id"))
    requested: Mapped[int]
    contract: Mapped[dict[str, Any]]
    state: Mapped[str]
    revision: Mapped[int]
    created_by: Mapped[str]
    created_at: Mapped[datetime]
    submitted_at: Mapped[datetime | None]
    first_reviewer: Mapped[str | None]
    approver: Mapped[str | None]
    granted: Mapped[int | None]
    notice_ends_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint(
            "state IN ('draft','submitted','revision','reviewed','approved','issued','rejected','withdrawn')",
            name="state",
        ),
        CheckConstraint("requested > 0", name="requested"),
        CheckConstraint("granted > 0 AND granted <= requested", name="granted"),
        CheckConstraint("first_reviewer <> approver", name="two_people"),
        CheckConstraint("approver IS NULL OR first_reviewer IS NOT NULL", name="review_order"),
        CheckConstraint("state NOT IN ('approved','issued') OR approver IS NOT NULL", name="approved"),
    )


class ApplicationCheck(Table):
    """What one automatic rule found on one revision of an application, and the facts it saw."""

    __tablename__ = "application_checks"

    application_id: Mapped[UUID] = mapped_column(ForeignKey("applications.id"), primary_key=True)
    revision: Mapped[int] = mapped_column(primary_key=True)
    rule: Mapped[str] = mapped_column(primary_key=True)
    verdict: Mapped[str]
    clause: Mapped[str]
    facts: Mapped[dict[str, Any]]
    checked_at: Mapped[datetime]

    __table_args__ = (CheckConstraint("verdict IN ('pass','fail','look')", name="verdict"),)


class ApplicationStep(Table):
    """Who decided what about an application, in order."""

    __tablename__ = "application_steps"

    application_id: Mapped[UUID] = mapped_column(ForeignKey("applications.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    step: Mapped[str]
    actor: Mapped[str]
    reason: Mapped[str]
    at: Mapped[datetime]


class Objection(Table):
    """What somebody said against an approved application during its public notice."""

    __tablename__ = "objections"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    application_id: Mapped[UUID] = mapped_column(ForeignKey("applications.id"), index=True)
    raised_by: Mapped[str]
    reason: Mapped[str]
    raised_at: Mapped[datetime]
    state: Mapped[str]
    resolved_by: Mapped[str | None]
    resolution: Mapped[str | None]

    __table_args__ = (
        CheckConstraint("state IN ('open','dismissed','upheld')", name="state"),
        CheckConstraint("(state = 'open') = (resolved_by IS NULL)", name="resolved"),
    )


class Voucher(Table):
    """A right to have part of a compute bill paid; what remains on it is its account in the ledger."""

    __tablename__ = "vouchers"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    number: Mapped[str] = mapped_column(unique=True)
    version_id: Mapped[UUID] = mapped_column(ForeignKey("programme_versions.id"), index=True)
    slug: Mapped[str] = mapped_column(ForeignKey("programmes.slug"))
    enterprise_id: Mapped[UUID] = mapped_column(ForeignKey("enterprises.id"), index=True)
    application_id: Mapped[UUID] = mapped_column(ForeignKey("applications.id"))
    tranche: Mapped[int]
    asset: Mapped[str]
    face: Mapped[int]
    cycle: Mapped[str]
    cap_year: Mapped[int]
    controller: Mapped[str]
    holder: Mapped[dict[str, Any]]
    issued_on: Mapped[str]
    issued_by: Mapped[str]
    issued_at: Mapped[datetime]
    use_by_at: Mapped[datetime]
    expires_at: Mapped[datetime]
    state: Mapped[str]
    ended_at: Mapped[datetime | None]
    ended_by: Mapped[str | None]
    ended_reason: Mapped[str | None]

    __table_args__ = (
        UniqueConstraint("application_id", "tranche"),
        Index("ix_vouchers_slug_cycle", "slug", "cycle"),
        Index("ix_vouchers_due", "expires_at", "id", postgresql_where=text("state = 'active'")),
        CheckConstraint("face > 0", name="face"),
        CheckConstraint("issued_at < use_by_at AND use_by_at <= expires_at", name="validity"),
        CheckConstraint("state IN ('active','expired','recalled')", name="state"),
        CheckConstraint("(state = 'active') = (ended_at IS NULL)", name="ended"),
    )


class VoucherPart(Table):
    """A part of a voucher kept for one project; its money is its own account."""

    __tablename__ = "voucher_parts"

    voucher_id: Mapped[UUID] = mapped_column(ForeignKey("vouchers.id"), primary_key=True)
    project: Mapped[str] = mapped_column(primary_key=True)
    opened_by: Mapped[str]
    opened_at: Mapped[datetime]


class ProjectBudget(Table):
    """What an enterprise itself may spend on a project from one day up to another."""

    __tablename__ = "project_budgets"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    enterprise_id: Mapped[UUID] = mapped_column(ForeignKey("enterprises.id"))
    project: Mapped[str]
    starts_at: Mapped[datetime]
    ends_at: Mapped[datetime]
    set_by: Mapped[str]

    __table_args__ = (
        UniqueConstraint("enterprise_id", "project", "starts_at"),
        CheckConstraint("ends_at > starts_at", name="dates"),
    )
