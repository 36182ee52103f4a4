"""Enterprises and their dated facts, who controls them, and who pays for whom."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, ForeignKeyConstraint, Index, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from kernel.database import Table
from vouchers.domain.facts import EnterpriseFacts


class Enterprise(Table):
    """A tenant, and which version of its facts is in force; its row serialises what happens to its money."""

    __tablename__ = "enterprises"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    credit_code: Mapped[str] = mapped_column(unique=True)
    version: Mapped[int]
    registered_at: Mapped[datetime]

    __table_args__ = (
        ForeignKeyConstraint(
            ["id", "version"],
            ["enterprise_versions.enterprise_id", "enterprise_versions.version"],
            name="fk_enterprises_version",
            deferrable=True,
            initially="DEFERRED",
            use_alter=True,
        ),
    )


class EnterpriseVersion(Table):
    """What the rules want to know about an enterprise, from when it was recorded until the next version was."""

    __tablename__ = "enterprise_versions"

    enterprise_id: Mapped[UUID] = mapped_column(ForeignKey("enterprises.id"), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    region: Mapped[str]
    industry: Mapped[str]
    size_class: Mapped[str]
    yearly_contract_micros: Mapped[int]
    clean_years: Mapped[int]
    dishonest: Mapped[bool]
    roles: Mapped[list[Any]]
    reason: Mapped[str]
    recorded_by: Mapped[str]
    recorded_at: Mapped[datetime]

    __table_args__ = (
        CheckConstraint("version > 0", name="version"),
        CheckConstraint("yearly_contract_micros >= 0", name="yearly_contract"),
        CheckConstraint("clean_years >= 0", name="clean_years"),
    )

    def facts(self, credit_code: str, controller: str) -> EnterpriseFacts:
        """What the rules look at; `controller` is the actual controller of its group."""
        return EnterpriseFacts(
            credit_code=credit_code,
            version=self.version,
            region=self.region,
            industry=self.industry,
            size_class=self.size_class,
            yearly_contract_micros=self.yearly_contract_micros,
            controller=controller,
            dishonest=self.dishonest,
            clean_years=self.clean_years,
            roles=tuple(self.roles),
        )


class Controller(Table):
    """Who controlled a party (a credit code or a person's reference) from when to when; chains end at the actual one.

    What has no end is in force: at most one per party.
    """

    __tablename__ = "controllers"

    controlled: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)
    controller: Mapped[str] = mapped_column(index=True)
    reason: Mapped[str]
    recorded_by: Mapped[str]
    recorded_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint("controlled <> controller", name="not_itself"),
        CheckConstraint("version > 0", name="version"),
        Index("uq_controllers_in_force", "controlled", unique=True, postgresql_where=text("ended_at IS NULL")),
    )


class RelatedParty(Table):
    """Two parties that are related in another way than by control, as a pair in order."""

    __tablename__ = "related_parties"

    one: Mapped[str] = mapped_column(primary_key=True)
    other: Mapped[str] = mapped_column(primary_key=True, index=True)
    reason: Mapped[str]
    recorded_by: Mapped[str]
    recorded_at: Mapped[datetime]

    __table_args__ = (CheckConstraint("one < other", name="in_order"),)


class GroupMember(Table):
    """An affiliate bound to the one enterprise that pays for it; six places per payer."""

    __tablename__ = "group_members"

    affiliate_id: Mapped[UUID] = mapped_column(ForeignKey("enterprises.id"), primary_key=True)
    payer_id: Mapped[UUID] = mapped_column(ForeignKey("enterprises.id"))
    place: Mapped[int]
    bound_by: Mapped[str]
    bound_at: Mapped[datetime]

    __table_args__ = (
        UniqueConstraint("payer_id", "place"),
        CheckConstraint("place BETWEEN 1 AND 6", name="place"),
        CheckConstraint("affiliate_id <> payer_id", name="not_itself"),
    )
