"""Enterprises, who controls them, and who pays for whom."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from kernel.database import Table
from vouchers.domain.facts import EnterpriseFacts


class Enterprise(Table):
    """A tenant: who it is, and what the rules want to know about it."""

    __tablename__ = "enterprises"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    credit_code: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]
    region: Mapped[str]
    industry: Mapped[str]
    size_class: Mapped[str]
    yearly_contract_micros: Mapped[int]
    clean_years: Mapped[int]
    dishonest: Mapped[bool]
    roles: Mapped[list[Any]]
    registered_at: Mapped[datetime]

    __table_args__ = (
        CheckConstraint("yearly_contract_micros >= 0", name="yearly_contract"),
        CheckConstraint("clean_years >= 0", name="clean_years"),
    )

    def facts(self, controller: str) -> EnterpriseFacts:
        """What the rules look at; `controller` is the actual controller of its group."""
        return EnterpriseFacts(
            credit_code=self.credit_code,
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
    """Who controls a party (a credit code or a person's reference); chains end at the actual controller."""

    __tablename__ = "controllers"

    controlled: Mapped[str] = mapped_column(primary_key=True)
    controller: Mapped[str] = mapped_column(index=True)
    recorded_by: Mapped[str]
    recorded_at: Mapped[datetime]

    __table_args__ = (CheckConstraint("controlled <> controller", name="not_itself"),)


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
