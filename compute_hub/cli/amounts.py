"""Amounts as people type them: `1000.00` is yuan, `12.5h` is card-hours, for programmes that count these."""

import re
from fractions import Fraction
from typing import Annotated, Any, Final

import typer

from kernel.errors import Invalid

_HOURS: Final = re.compile(r"(\d{1,12}(\.\d{1,9})?)h")
_MS_PER_HOUR: Final = 3_600_000
_HELP: Final = "In yuan, such as 1000.00, or in card-hours, such as 12.5h."

Amount = Annotated[str, typer.Argument(help=_HELP)]
OptionalAmount = Annotated[str | None, typer.Option("--amount", help=_HELP)]


class PartOfAMillisecond(Invalid):
    """Card-hours that are no whole number of card-milliseconds."""

    sentence = "{text!r} is no whole number of card-milliseconds."


def in_units(name: str, text: str | None) -> dict[str, Any]:
    """The fields of an amount, of which the one in the unit it was typed in is set. Raises PartOfAMillisecond."""
    hours = _HOURS.fullmatch(text or "")
    if hours is None:
        return {f"{name}_cny": text, f"{name}_card_ms": None}
    card_ms = Fraction(hours[1]) * _MS_PER_HOUR
    if card_ms.denominator > 1:
        raise PartOfAMillisecond(text=text)
    return {f"{name}_cny": None, f"{name}_card_ms": int(card_ms)}
