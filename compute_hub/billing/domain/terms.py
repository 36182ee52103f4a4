"""What the law and the centre's contract say of an invoice: its tax by kind and date, and when it must be paid.

All of it is data from the settings; an invoice keeps the rate and the day it was written with.
"""

from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final

from compute_hub.billing.domain.days import MINUTES_PER_DAY, Calendar, instant_ms
from kernel.errors import Invalid

GENERAL: Final = "general"
_ONE_DAY: Final = timedelta(days=1)
_LOOK_DAYS_MAX: Final = 60


class NoTaxRate(Invalid):
    """The settings name no rate for that day."""

    sentence = (
        "billing.vat: no rate of kind {kind} is in force on {day}; name one in the settings before that day is "
        "invoiced."
    )


class NoWorkday(Invalid):
    """A calendar without a day on which anybody works."""

    sentence = (
        "billing.holidays: no workday follows {day} within {looked} days; check the holidays in the settings."
    )


@dataclass(frozen=True, slots=True)
class Seller:
    """The centre as it stands on an invoice; what is empty is left out."""

    name: str
    credit_code: str = ""
    bank: str = ""


@dataclass(frozen=True, slots=True)
class TaxRate:
    """A rate of value-added tax of a kind of taxpayer from a day on, in millionths of the net price."""

    kind: str
    effective_from: date
    ppm: int


@dataclass(frozen=True, slots=True)
class Terms:
    """How the centre invoices.

    Args:
        tax_kind: which kind of taxpayer the centre is.
        rates: all there ever were; a later one of a kind replaces the earlier.
        due_days: days after its issue on which an invoice is due, or on the next workday.
        holidays: public holidays on weekdays.
        workdays: days of a weekend that are worked in exchange.
    """

    tax_kind: str = GENERAL
    rates: tuple[TaxRate, ...] = (TaxRate(GENERAL, date(2016, 5, 1), 60_000),)
    due_days: int = 30
    holidays: frozenset[date] = frozenset()
    workdays: frozenset[date] = frozenset()

    def vat_ppm(self, day: date) -> int:
        """The rate in force on a day. Raises NoTaxRate."""
        own = [rate for rate in self.rates if rate.kind == self.tax_kind and rate.effective_from <= day]
        if not own:
            raise NoTaxRate(kind=self.tax_kind, day=day.isoformat())
        return max(own, key=lambda rate: rate.effective_from).ppm

    def due_ms(self, issued: date) -> int:
        """The last millisecond of the day on which an invoice of that day is due. Raises NoWorkday."""
        first = issued + timedelta(days=self.due_days)
        calendar = Calendar(self.holidays, self.workdays)
        for later in range(_LOOK_DAYS_MAX):
            day = first + later * _ONE_DAY
            if calendar.is_workday(day):
                return instant_ms(day, MINUTES_PER_DAY) - 1
        raise NoWorkday(day=first.isoformat(), looked=_LOOK_DAYS_MAX)


STANDARD: Final = Terms()
"""A general taxpayer that serves information technology: 6 % since May 2016, contained in all prices."""
