"""An invoice as arithmetic: what a month comes to for a tenant, to the fen, with the tax it contains."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final
from uuid import UUID

FEN_MICROS: Final = 10_000
MILLION: Final = 1_000_000
DEFAULT_AFTER: Final = timedelta(days=30)
"""How long an invoice is overdue before its tenant is in default."""


class Standing(StrEnum):
    """What has become of an invoice: worked out from its date and what was repaid, never stored."""

    PAID = "paid"
    OPEN = "open"
    OVERDUE = "overdue"
    IN_DEFAULT = "in_default"


@dataclass(frozen=True, slots=True)
class Line:
    """Card time of one model and month at one price. What is forgone was used and is not asked for."""

    model: str
    month: str
    rate_id: UUID
    window: str
    price_micros: int
    slot_ms: int
    amount_micros: int
    forgone_micros: int


@dataclass(frozen=True, slots=True)
class Totals:
    """What an invoice comes to. `payable` is what the tenant pays, in whole fen, of which `vat` is tax."""

    gross_micros: int
    voucher_micros: int
    rounding_micros: int
    prepaid_micros: int
    credit_micros: int
    fen_micros: int
    vat_ppm: int
    vat_micros: int

    @property
    def tenant_micros(self) -> int:
        """What was taken from the tenant's own money."""
        return self.prepaid_micros + self.credit_micros

    @property
    def payable_micros(self) -> int:
        """What the tenant pays, in whole fen."""
        return self.tenant_micros + self.fen_micros

    @property
    def net_micros(self) -> int:
        """What it pays without tax."""
        return self.payable_micros - self.vat_micros


def to_fen(micros: int) -> int:
    """An amount in micro-yuan rounded half up to whole fen."""
    return (micros + FEN_MICROS // 2) // FEN_MICROS * FEN_MICROS


def add_up(
    *,
    gross_micros: int,
    voucher_micros: int,
    rounding_micros: int,
    prepaid_micros: int,
    credit_micros: int,
    vat_ppm: int,
) -> Totals:
    """The totals of what was charged; prices contain tax at `vat_ppm` millionths of the net price."""
    payable = to_fen(prepaid_micros + credit_micros)
    return Totals(
        gross_micros=gross_micros,
        voucher_micros=voucher_micros,
        rounding_micros=rounding_micros,
        prepaid_micros=prepaid_micros,
        credit_micros=credit_micros,
        fen_micros=payable - prepaid_micros - credit_micros,
        vat_ppm=vat_ppm,
        vat_micros=_contained_tax(payable, vat_ppm),
    )


def _contained_tax(payable_micros: int, vat_ppm: int) -> int:
    """The tax in a price that contains it, rounded once, half up, to whole fen."""
    parts, whole = payable_micros * vat_ppm, (MILLION + vat_ppm) * FEN_MICROS
    return (2 * parts + whole) // (2 * whole) * FEN_MICROS


def debts(on_credit: Mapping[UUID, int], fen_micros: int) -> dict[UUID, int]:
    """What each payer is to pay of an invoice's part on credit: what was taken from its line, and the fen's rounding.

    The rounding is taken from the largest part first, so that who pays what the invoice says owes nothing more.
    """
    owed = {}
    for payer in sorted(on_credit, key=lambda payer: (-on_credit[payer], payer)):
        owed[payer] = max(0, on_credit[payer] + fen_micros)
        fen_micros += on_credit[payer] - owed[payer]
    return owed


def outstanding(debts_micros: Iterable[int], repaid_micros: int) -> list[int]:
    """What is still owed of each of a payer's debts, in their order; repayments settle the oldest first."""
    owed = []
    for debt in debts_micros:
        settled = min(debt, repaid_micros)
        repaid_micros -= settled
        owed.append(debt - settled)
    return owed


def standing(outstanding_micros: int, due_at: datetime, at: datetime) -> Standing:
    """Where an invoice stands."""
    if outstanding_micros <= 0:
        return Standing.PAID
    if at <= due_at:
        return Standing.OPEN
    return Standing.OVERDUE if at <= due_at + DEFAULT_AFTER else Standing.IN_DEFAULT
