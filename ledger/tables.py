"""The ledger's tables as SQLAlchemy sees them; the application reads them and writes none of them.

A transfer row is both of its legs with the balances after it on each side, so a leg cannot be missing. All
writes go through the database functions `ledger_open_accounts`, `ledger_post` and `ledger_post_plain`; see `posting`.
"""

from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    Index,
    MetaData,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy import Table as CoreTable
from sqlalchemy.dialects.postgresql import DOMAIN
from sqlalchemy.orm import Mapped, mapped_column

from kernel.database import Table

_ZERO: Final = text("0")


def _number(domain: str) -> BigInteger:
    """A domain over whole numbers that is reckoned with as they are."""
    return BigInteger().with_variant(DOMAIN(domain, BigInteger(), create_type=False), "postgresql")


def _words(domain: str) -> Text:
    """A domain over text that is compared as text is."""
    return Text().with_variant(DOMAIN(domain, Text(), create_type=False), "postgresql")


_NAME: Final = _words("account_name")
_ASSET: Final = _words("asset")
_TOTAL: Final = _number("account_total")
_VERSION: Final = _number("account_version")
_SEQUENCE: Final = _number("entry_sequence")
_KIND: Final = _words("transfer_kind")
_AMOUNT: Final = _number("transfer_amount")
_MOVEMENT: Final = _words("transfer_movement")
_CAUSE: Final = _words("transfer_cause")


class AccountRow(Table):
    """One account with its four totals, a cache that `audit` recomputes."""

    __tablename__ = "accounts"
    __table_args__ = (
        CheckConstraint(
            "CASE bound WHEN 'credit' THEN debits_posted + debits_pending <= credits_posted"
            " WHEN 'debit' THEN credits_posted + credits_pending <= debits_posted ELSE bound = 'none' END",
            name="bound",
        ),
        UniqueConstraint("name"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(_NAME)
    asset: Mapped[str] = mapped_column(_ASSET)
    bound: Mapped[str] = mapped_column(Text)
    debits_posted: Mapped[int] = mapped_column(_TOTAL, server_default=_ZERO)
    credits_posted: Mapped[int] = mapped_column(_TOTAL, server_default=_ZERO)
    debits_pending: Mapped[int] = mapped_column(_TOTAL, server_default=_ZERO)
    credits_pending: Mapped[int] = mapped_column(_TOTAL, server_default=_ZERO)
    version: Mapped[int] = mapped_column(_VERSION, server_default=_ZERO)
    opened_at: Mapped[datetime]


class TransferRow(Table):
    """One transfer with both legs: on each side the account's sequence number and totals after it."""

    __tablename__ = "transfers"
    __table_args__ = (
        UniqueConstraint("debit", "debit_sequence"),
        UniqueConstraint("credit", "credit_sequence"),
        CheckConstraint("debit <> credit", name="legs"),
        CheckConstraint("amount > 0 OR kind IN ('release', 'expire')", name="amount"),
        CheckConstraint(
            "(hold_id IS NOT NULL) = (kind IN ('extend', 'capture', 'release', 'expire'))", name="hold_id"
        ),
        CheckConstraint("(reverses IS NOT NULL) = (kind = 'reversal')", name="reverses"),
        CheckConstraint(
            "CASE WHEN expires_at IS NULL THEN kind <> 'hold' ELSE kind IN ('hold', 'extend') END",
            name="expires_at",
        ),
        Index(
            "uq_transfers_reverses",
            "reverses",
            unique=True,
            postgresql_where=text("reverses IS NOT NULL"),
        ),
        Index("ix_transfers_hold_id", "hold_id", postgresql_where=text("hold_id IS NOT NULL")),
        Index(
            "uq_transfers_resolution",
            "hold_id",
            unique=True,
            postgresql_where=text("kind IN ('release', 'expire')"),
        ),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(_KIND)
    debit: Mapped[UUID]
    credit: Mapped[UUID]
    amount: Mapped[int] = mapped_column(_AMOUNT)
    hold_id: Mapped[UUID | None] = mapped_column(ForeignKey("transfers.id"))
    reverses: Mapped[UUID | None] = mapped_column(ForeignKey("transfers.id"))
    expires_at: Mapped[datetime | None]
    movement: Mapped[str] = mapped_column(_MOVEMENT)
    cause: Mapped[str] = mapped_column(_CAUSE)
    at: Mapped[datetime]
    debit_sequence: Mapped[int] = mapped_column(_SEQUENCE)
    debit_debits_posted: Mapped[int]
    debit_credits_posted: Mapped[int]
    debit_debits_pending: Mapped[int]
    debit_credits_pending: Mapped[int]
    credit_sequence: Mapped[int] = mapped_column(_SEQUENCE)
    credit_debits_posted: Mapped[int]
    credit_credits_posted: Mapped[int]
    credit_debits_pending: Mapped[int]
    credit_credits_pending: Mapped[int]


class HoldRow(Table):
    """What is left of a hold: a cache over the transfers that name it, recomputed by `audit`."""

    __tablename__ = "holds"
    __table_args__ = (
        CheckConstraint(
            "held > 0 AND captured >= 0 AND freed >= 0 AND captured + freed <= held", name="amounts"
        ),
        CheckConstraint(
            "CASE state WHEN 'open' THEN freed = 0 WHEN 'released' THEN captured + freed = held"
            " WHEN 'expired' THEN captured + freed = held ELSE false END",
            name="state",
        ),
        Index("ix_holds_due", "expires_at", "id", postgresql_where=text("state = 'open'")),
    )

    id: Mapped[UUID] = mapped_column(ForeignKey("transfers.id"), primary_key=True)
    debit: Mapped[UUID]
    credit: Mapped[UUID]
    held: Mapped[int]
    captured: Mapped[int] = mapped_column(server_default=_ZERO)
    freed: Mapped[int] = mapped_column(server_default=_ZERO)
    expires_at: Mapped[datetime]
    state: Mapped[str] = mapped_column(Text, server_default=text("'open'"))


entries = CoreTable(
    "entries",
    MetaData(),  # a view, so it is not among the tables that migrations are held against
    Column("account_id", Uuid),
    Column("sequence", BigInteger),
    Column("transfer_id", Uuid),
    Column("side", Text),
    Column("kind", Text),
    Column("amount", BigInteger),
    Column("at", DateTime(timezone=True)),
    Column("movement", Text),
    Column("cause", Text),
    Column("debits_posted", BigInteger),
    Column("credits_posted", BigInteger),
    Column("debits_pending", BigInteger),
    Column("credits_pending", BigInteger),
)
"""Each transfer from the side of each of its two accounts: the gap-free history of every account."""
