"""Days, cycles and instants in a programme's own time zone.

A last day counts in full: what lasts until a day ends at the first instant of the next one, there.
"""

import calendar as months
import re
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

from kernel.errors import Invalid
from vouchers.domain.terms import YEAR_MAX, YEAR_MIN, Terms, Validity

_MONTH = re.compile(r"(\d{4})-(0[1-9]|1[0-2])")
_QUARTER = re.compile(r"(\d{4})-Q([1-4])")


class MalformedPeriod(Invalid):
    """Text that names no claim period of the programme's cycle."""

    sentence = "period: {value!r} is not a {cycle}; write {example!r}."


def local_day(at: datetime, time_zone: str) -> date:
    """The calendar day of an instant in a time zone."""
    return at.astimezone(ZoneInfo(time_zone)).date()


def start_of_day(day: date, time_zone: str) -> datetime:
    """The first instant of a day in a time zone, in UTC."""
    return datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(time_zone)).astimezone(UTC)


def budget_cycle(cycle: str, at: datetime, time_zone: str) -> str:
    """The name of the cycle an instant falls in: the year, or `once` for a programme-long budget."""
    return "once" if cycle == "once" else str(local_day(at, time_zone).year)


def add_months(day: date, count: int) -> date:
    """The same day of a later month, or that month's last day where it has none."""
    year, month = divmod(day.year * 12 + day.month - 1 + count, 12)
    return date(year, month + 1, min(day.day, months.monthrange(year, month + 1)[1]))


def expiry(validity: Validity, issued_at: datetime, time_zone: str) -> datetime:
    """The instant at which what a voucher issued then may do ends: the end of its last day in the time zone."""
    issued = local_day(issued_at, time_zone)
    if validity.until is not None:
        end = validity.until + timedelta(days=1)
    elif validity.months:
        end = add_months(issued, validity.months)
        # The day of issue counts: the last day is the one before its number comes again, or a shorter month's last.
        end += timedelta(days=end.day < issued.day)
    else:
        end = issued + timedelta(days=validity.days)
    return start_of_day(end, time_zone)


def claim_period(terms: Terms, period: str) -> tuple[datetime, datetime]:
    """Start and end instant of a claim period such as `2026-03` or `2026-Q1`. Raises MalformedPeriod."""
    pattern, example = (_MONTH, "2026-03") if terms.settlement.cycle == "month" else (_QUARTER, "2026-Q1")
    match = pattern.fullmatch(period)
    if match is None or not YEAR_MIN <= int(match[1]) <= YEAR_MAX:
        raise MalformedPeriod(value=period, cycle=terms.settlement.cycle, example=example)
    length = 1 if terms.settlement.cycle == "month" else 3
    first = date(int(match[1]), (int(match[2]) - 1) * length + 1, 1)
    return start_of_day(first, terms.time_zone), start_of_day(add_months(first, length), terms.time_zone)
