"""The centre's calendar: local days, months and times of day as instants in Unix milliseconds.

A centre has one time zone; prices by time of day, statements and invoices all follow it.
"""

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo

from kernel.errors import Invalid

TIME_ZONE: Final = "Asia/Shanghai"
MINUTES_PER_DAY: Final = 1440
DAY_BEGINS_MS: Final = 8 * 3_600_000
"""How much earlier than in UTC a day begins at the centre; the zone has had no other offset since 1991."""
_ZONE: Final = ZoneInfo(TIME_ZONE)
_MS_PER_HOUR: Final = 3_600_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MONTH: Final = re.compile(r"(20\d{2}|21\d{2})-(0[1-9]|1[0-2])")


class MalformedMonth(Invalid):
    """Text that names no month."""

    sentence = "month: {value!r} is not a month; write it as 2026-03."


@dataclass(frozen=True, slots=True)
class Span:
    """From one instant up to another, which is not part of it."""

    start_ms: int
    end_ms: int

    @property
    def duration_ms(self) -> int:
        """How long it is."""
        return self.end_ms - self.start_ms


def local_date(unix_ms: int) -> date:
    """The calendar day of an instant at the centre."""
    return (_EPOCH + timedelta(milliseconds=unix_ms)).astimezone(_ZONE).date()


@lru_cache(maxsize=4096)
def instant_ms(day: date, minute: int) -> int:
    """The instant at which so many minutes of a local day have passed on the clock; 1440 is the next day's first."""
    if minute >= MINUTES_PER_DAY:
        day, minute = day + timedelta(days=1), minute - MINUTES_PER_DAY
    local = datetime(day.year, day.month, day.day, minute // 60, minute % 60, tzinfo=_ZONE)
    return int((local - _EPOCH) / timedelta(milliseconds=1))


def month_of(unix_ms: int) -> str:
    """The month of an instant at the centre, such as 2026-03."""
    return _month_of_hour(unix_ms // _MS_PER_HOUR)


@lru_cache(maxsize=4096)
def _month_of_hour(hour: int) -> str:
    """The month of a whole hour since the epoch; the centre's time differs from UTC by whole hours."""
    day = local_date(hour * _MS_PER_HOUR)
    return f"{day.year:04d}-{day.month:02d}"


def day_span(day: date) -> Span:
    """A local day as instants."""
    return Span(instant_ms(day, 0), instant_ms(day, MINUTES_PER_DAY))


def month_span(month: str) -> Span:
    """A month as instants. Raises MalformedMonth."""
    match = _MONTH.fullmatch(month)
    if match is None:
        raise MalformedMonth(value=month)
    first = date(int(match[1]), int(match[2]), 1)
    return Span(instant_ms(first, 0), instant_ms((first + timedelta(days=31)).replace(day=1), 0))


@dataclass(frozen=True, slots=True)
class Calendar:
    """On which days people work: Monday to Friday, but for what the State Council publishes each year.

    `holidays` are days off; `workdays` are days of a weekend that are worked in exchange.
    """

    holidays: frozenset[date] = frozenset()
    workdays: frozenset[date] = frozenset()

    def is_workday(self, day: date) -> bool:
        """Whether people work on a day."""
        if day in self.holidays or day in self.workdays:
            return day in self.workdays
        return day.weekday() < 5  # noqa: PLR2004 - Saturday is 5


NO_HOLIDAYS: Final = Calendar()
"""Every week alike."""
