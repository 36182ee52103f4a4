"""A rate card: what card time of one model costs, as a document that can be checked before anybody is charged by it.

The price of a card-hour is the card's base price times the factors that hold for the job (kind, priority, fraction),
for the moment (time of day) and for the tenant's month so far (volume), rounded half up to a micro-yuan. So every
line of an invoice has a price of its own that people can multiply with.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Final, Self

from compute_hub.billing.domain.days import MINUTES_PER_DAY, NO_HOLIDAYS, Calendar
from kernel.errors import Invalid
from kernel.money import MICROS_PER_YUAN, format_yuan, parse_yuan

WHOLE_MILLI: Final = 1000
SLOT_MS_PER_CARD_HOUR: Final = 1000 * 3_600_000
FACTOR_MILLI_MAX: Final = 100_000
PRICE_MICROS_MAX: Final = 10**12
"""A million yuan for a card-hour: beyond that it is a slip of the finger."""

PRECISIONS: Final = ("fp64", "fp32", "tf32", "bf16", "fp16", "fp8", "int8", "int4")
DAYS: Final = ("all", "workdays", "weekends")
"""Of a window; on holidays of the card's calendar the weekend's holds, on days worked in exchange the workday's."""

CALENDAR_DAYS_MAX: Final = 1_000
_FACTOR: Final = re.compile(r"(0|[1-9]\d{0,2})(?:\.(\d{1,3}))?")
_CLOCK: Final = re.compile(r"([01]\d|2[0-3]):([0-5]\d)|24:00")
_DATE: Final = re.compile(r"20\d{2}-\d{2}-\d{2}")
_FIELDS: Final = frozenset(
    {"price_cny_per_card_hour", "kinds", "time_of_day", "calendar", "priority", "fraction", "volume", "pflops"}
)


class RateCardRefused(Invalid):
    """A card that contradicts itself or leaves something open; `field` says where."""

    sentence = "{field}: {reason}."


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a local day, in minutes, and its factor."""

    days: str
    from_minute: int
    until_minute: int
    factor_milli: int

    def holds_on(self, day: date, calendar: Calendar) -> bool:
        """Whether the window is meant for this day."""
        return self.days == "all" or (self.days == "workdays") == calendar.is_workday(day)

    @property
    def label(self) -> str:
        """The window for people, such as `workdays 08:00-22:00`."""
        return f"{self.days} {_clock(self.from_minute)}-{_clock(self.until_minute)}"


@dataclass(frozen=True, slots=True)
class Step:
    """From a threshold on, a factor."""

    threshold: int
    factor_milli: int


@dataclass(frozen=True, slots=True)
class Traits:
    """What of a job decides about its price."""

    kind: str = "batch"
    priority: int = 0
    slots_milli: int = WHOLE_MILLI


@dataclass(frozen=True, slots=True)
class RateCard:
    """The terms of one card.

    `fraction` steps are ceilings of the slots of one device; `priority` and `volume` steps are floors, of the job's
    priority and of the slot-milliseconds that the tenant has used of the model in the month.
    """

    base_micros: int
    kinds: tuple[tuple[str, int], ...] = ()
    windows: tuple[Window, ...] = ()
    calendar: Calendar = NO_HOLIDAYS
    priority: tuple[Step, ...] = ()
    fraction: tuple[Step, ...] = ()
    volume: tuple[Step, ...] = ()
    precision: str = ""
    pflops_micro: int = 0

    def price_micros(
        self, traits: Traits, window_milli: int = WHOLE_MILLI, volume_milli: int = WHOLE_MILLI
    ) -> int:
        """The price of a card-hour in micro-yuan, rounded half up."""
        factors = (
            dict(self.kinds).get(traits.kind, WHOLE_MILLI),
            _floor(self.priority, traits.priority),
            _ceiling(self.fraction, traits.slots_milli),
            window_milli,
            volume_milli,
        )
        amount, scale = self.base_micros, 1
        for factor in factors:
            if factor != WHOLE_MILLI:
                amount, scale = amount * factor, scale * WHOLE_MILLI
        return (2 * amount + scale) // (2 * scale)

    def extremes_micros(self) -> tuple[int, int]:
        """A price below and one above all that its factors can make of the base price."""
        low = high = self.base_micros
        scale = 1
        for factors in (
            [factor for _, factor in self.kinds],
            [window.factor_milli for window in self.windows],
            [step.factor_milli for step in self.priority],
            [step.factor_milli for step in self.fraction],
            [step.factor_milli for step in self.volume],
        ):
            low *= min([*factors, WHOLE_MILLI])
            high *= max([*factors, WHOLE_MILLI])
            scale *= WHOLE_MILLI
        return low // scale, -(-high // scale)

    def dearest_volume_milli(self) -> int:
        """The highest factor any volume may have, for what is set aside before the volume is known."""
        return max((step.factor_milli for step in self.volume), default=WHOLE_MILLI)

    def pflops_hours_micro(self, slot_ms: int) -> int:
        """Card time as millionths of PFLOPS-hours at the card's precision, rounded down; 0 without a weight."""
        return slot_ms * self.pflops_micro // SLOT_MS_PER_CARD_HOUR

    def to_json(self) -> dict[str, Any]:
        """As the document it was read from, in one spelling."""
        document: dict[str, Any] = {"price_cny_per_card_hour": format_yuan(self.base_micros)}
        if self.kinds:
            document["kinds"] = {kind: _decimal(factor) for kind, factor in self.kinds}
        if self.windows:
            document["time_of_day"] = [
                {
                    "days": window.days,
                    "from": _clock(window.from_minute),
                    "until": _clock(window.until_minute),
                    "factor": _decimal(window.factor_milli),
                }
                for window in self.windows
            ]
        listed = {"holidays": self.calendar.holidays, "workdays": self.calendar.workdays}
        if any(listed.values()):
            document["calendar"] = {
                name: [day.isoformat() for day in sorted(days)] for name, days in listed.items() if days
            }
        for name, key, steps, unit in (
            ("priority", "at_least", self.priority, 1),
            ("fraction", "up_to_slots_milli", self.fraction, 1),
            ("volume", "from_card_hours", self.volume, SLOT_MS_PER_CARD_HOUR),
        ):
            if steps:
                document[name] = [
                    {key: step.threshold // unit, "factor": _decimal(step.factor_milli)} for step in steps
                ]
        if self.precision:
            document["pflops"] = {"precision": self.precision, "per_card": format_yuan(self.pflops_micro)}
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any], *, at: str = "") -> Self:
        """A checked card.

        Args:
            document: as `to_json` writes it.
            at: where the document stands in what was sent, for the field names of refusals.

        Raises:
            RateCardRefused: a field is missing, unknown, negative, overlaps or leaves a gap.
            MalformedAmount: the price is no amount.
        """
        for name in document:
            if name not in _FIELDS:
                raise RateCardRefused(field=f"{at}{name}", reason="a rate card has no such field")
        field = f"{at}price_cny_per_card_hour"
        price = document.get("price_cny_per_card_hour")
        if not isinstance(price, str):
            raise RateCardRefused(field=field, reason="write the price as a decimal string of yuan")
        base = parse_yuan(price, field=field)
        if not 0 < base <= PRICE_MICROS_MAX:
            raise RateCardRefused(field=field, reason="a price must be above zero and at most ¥1,000,000")
        precision, pflops = _pflops(document.get("pflops"), f"{at}pflops")
        card = cls(
            base_micros=base,
            kinds=_kinds(document.get("kinds"), f"{at}kinds"),
            windows=_windows(document.get("time_of_day"), f"{at}time_of_day"),
            calendar=_calendar(document.get("calendar"), f"{at}calendar"),
            priority=_steps(document.get("priority"), f"{at}priority", "at_least"),
            fraction=_fractions(document.get("fraction"), f"{at}fraction"),
            volume=_volume(document.get("volume"), f"{at}volume"),
            precision=precision,
            pflops_micro=pflops,
        )
        lowest, highest = card.extremes_micros()
        if lowest < 1 or highest > PRICE_MICROS_MAX:
            raise RateCardRefused(
                field=field, reason="with all its factors a price must stay above zero and at most ¥1,000,000"
            )
        return card


def _floor(steps: Sequence[Step], value: int) -> int:
    fitting = [step.factor_milli for step in steps if step.threshold <= value]
    return fitting[-1] if fitting else WHOLE_MILLI


def _ceiling(steps: Sequence[Step], value: int) -> int:
    return next((step.factor_milli for step in steps if value <= step.threshold), WHOLE_MILLI)


def _kinds(stored: object, field: str) -> tuple[tuple[str, int], ...]:
    if stored is None:
        return ()
    if not isinstance(stored, Mapping):
        raise RateCardRefused(field=field, reason="write an object of kinds of jobs and their factors")
    return tuple(sorted((str(kind), _factor(text, f"{field}.{kind}")) for kind, text in stored.items()))


def _windows(stored: object, field: str) -> tuple[Window, ...]:
    windows = []
    for number, entry in enumerate(_list(stored, field)):
        place = f"{field}[{number}]"
        _only(entry, place, {"days", "from", "until", "factor"})
        days = entry.get("days", "all")
        if days not in DAYS:
            raise RateCardRefused(field=f"{place}.days", reason=f"write one of {', '.join(DAYS)}")
        window = Window(
            str(days),
            _minute(entry.get("from"), f"{place}.from"),
            _minute(entry.get("until"), f"{place}.until"),
            _factor(entry.get("factor"), f"{place}.factor"),
        )
        if window.until_minute <= window.from_minute:
            raise RateCardRefused(
                field=f"{place}.until",
                reason="a window ends after it begins; one that passes midnight is two, up to 24:00 and from 00:00",
            )
        windows.append((number, window))
    if windows:
        _check_tiled(windows, field)
    return tuple(window for _, window in sorted(windows, key=lambda pair: (pair[1].from_minute, pair[1].days)))


def _check_tiled(windows: Sequence[tuple[int, Window]], field: str) -> None:
    """Every minute of every day has exactly one window."""
    for kind in ("workdays", "weekends"):
        of_kind = sorted(
            ((number, window) for number, window in windows if window.days in {"all", kind}),
            key=lambda pair: (pair[1].from_minute, pair[0]),
        )
        reached = 0
        for number, window in of_kind:
            if window.from_minute < reached:
                raise RateCardRefused(
                    field=f"{field}[{number}].from",
                    reason=f"it overlaps another window on {kind}, which lasts until {_clock(reached)}",
                )
            if window.from_minute > reached:
                raise RateCardRefused(
                    field=f"{field}[{number}].from",
                    reason=f"on {kind} nothing holds from {_clock(reached)} until {_clock(window.from_minute)}",
                )
            reached = window.until_minute
        if reached < MINUTES_PER_DAY:
            raise RateCardRefused(field=field, reason=f"on {kind} nothing holds from {_clock(reached)} on")


def _calendar(stored: object, field: str) -> Calendar:
    if stored is None:
        return NO_HOLIDAYS
    if not isinstance(stored, Mapping):
        raise RateCardRefused(field=field, reason="write the holidays and the days worked in exchange")
    _only(stored, field, {"holidays", "workdays"})
    holidays = _days(stored.get("holidays"), f"{field}.holidays")
    workdays = _days(stored.get("workdays"), f"{field}.workdays")
    for day in sorted(holidays & workdays):
        raise RateCardRefused(field=f"{field}.workdays", reason=f"{day} is a holiday of the same calendar")
    return Calendar(holidays, workdays)


def _days(stored: object, field: str) -> frozenset[date]:
    if stored is None:
        return frozenset()
    if not isinstance(stored, list | tuple) or not 0 < len(stored) <= CALENDAR_DAYS_MAX:
        raise RateCardRefused(field=field, reason=f"write a list of at most {CALENDAR_DAYS_MAX} days")
    days = set()
    for number, text in enumerate(stored):
        if not isinstance(text, str) or _DATE.fullmatch(text) is None:
            raise RateCardRefused(field=f"{field}[{number}]", reason="write a day as '2026-10-01'")
        try:
            day = date.fromisoformat(text)
        except ValueError:
            raise RateCardRefused(field=f"{field}[{number}]", reason=f"there is no day {text}") from None
        if day in days:
            raise RateCardRefused(field=f"{field}[{number}]", reason=f"{text} is there twice")
        days.add(day)
    return frozenset(days)


def _steps(stored: object, field: str, key: str, unit: int = 1) -> tuple[Step, ...]:
    steps: list[Step] = []
    for number, entry in enumerate(_list(stored, field)):
        place = f"{field}[{number}]"
        _only(entry, place, {key, "factor"})
        threshold = entry.get(key)
        if type(threshold) is not int:
            raise RateCardRefused(field=f"{place}.{key}", reason="write a whole number")
        if steps and threshold * unit <= steps[-1].threshold:
            raise RateCardRefused(field=f"{place}.{key}", reason="it overlaps the step before; steps ascend")
        steps.append(Step(threshold * unit, _factor(entry.get("factor"), f"{place}.factor")))
    return tuple(steps)


def _fractions(stored: object, field: str) -> tuple[Step, ...]:
    steps = _steps(stored, field, "up_to_slots_milli")
    if steps and steps[0].threshold <= 0:
        raise RateCardRefused(field=f"{field}[0].up_to_slots_milli", reason="a fraction is above zero")
    if steps and steps[-1].threshold != WHOLE_MILLI:
        raise RateCardRefused(
            field=field, reason="the last step must be up to 1000, a whole card, or a gap is left"
        )
    return steps


def _volume(stored: object, field: str) -> tuple[Step, ...]:
    steps = _steps(stored, field, "from_card_hours", SLOT_MS_PER_CARD_HOUR)
    if steps and steps[0].threshold != 0:
        raise RateCardRefused(
            field=f"{field}[0].from_card_hours",
            reason="the first step must be from 0, or a gap is left before it",
        )
    return steps


def _pflops(stored: object, field: str) -> tuple[str, int]:
    if stored is None:
        return "", 0
    if not isinstance(stored, Mapping):
        raise RateCardRefused(field=field, reason="write the precision and what one card has")
    _only(stored, field, {"precision", "per_card"})
    if stored.get("precision") not in PRECISIONS:
        raise RateCardRefused(field=f"{field}.precision", reason=f"write one of {', '.join(PRECISIONS)}")
    per_card = stored.get("per_card")
    micro = parse_yuan(per_card, field=f"{field}.per_card") if isinstance(per_card, str) else 0
    if not 0 < micro <= 1000 * MICROS_PER_YUAN:
        raise RateCardRefused(
            field=f"{field}.per_card", reason="write PFLOPS as a decimal string above zero, at most 1000"
        )
    return str(stored["precision"]), micro


def _list(stored: object, field: str) -> Sequence[Mapping[str, Any]]:
    if stored is None:
        return ()
    if (
        not isinstance(stored, list | tuple)
        or not stored
        or not all(isinstance(one, Mapping) for one in stored)
    ):
        raise RateCardRefused(field=field, reason="write a list of objects, or leave it out")
    return stored


def _only(entry: Mapping[str, Any], field: str, known: set[str]) -> None:
    for name in entry:
        if name not in known:
            raise RateCardRefused(field=f"{field}.{name}", reason="there is no such field here")


def _factor(text: object, field: str) -> int:
    match = _FACTOR.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise RateCardRefused(
            field=field, reason="write a factor as a decimal string with at most three places, such as '0.6'"
        )
    milli = int(match[1]) * WHOLE_MILLI + int((match[2] or "").ljust(3, "0"))
    if not 0 < milli <= FACTOR_MILLI_MAX:
        raise RateCardRefused(field=field, reason="a factor must be above zero and at most 100")
    return milli


def _minute(text: object, field: str) -> int:
    match = _CLOCK.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise RateCardRefused(field=field, reason="write a time of day as '08:00', at most '24:00'")
    return MINUTES_PER_DAY if match[1] is None else int(match[1]) * 60 + int(match[2])


def _clock(minute: int) -> str:
    return f"{minute // 60:02d}:{minute % 60:02d}"


def _decimal(milli: int) -> str:
    return f"{milli // WHOLE_MILLI}.{milli % WHOLE_MILLI:03d}".rstrip("0").rstrip(".")
