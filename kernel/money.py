"""Money is an integer count of micro-yuan (10⁻⁶ CNY); floats never touch it.

Amounts cross the boundary of the system as decimal strings with six places.
"""

import re
from typing import Final

from kernel.errors import Invalid

MICROS_PER_YUAN: Final = 1_000_000
MICROS_MAX: Final = 2**53
"""Above this a JavaScript reader would silently lose digits, so no amount may exceed it."""

_DECIMAL = re.compile(r"(0|[1-9]\d*)(?:\.(\d{1,6}))?")


class MalformedAmount(Invalid):
    """Text that is not an amount of yuan."""

    sentence = (
        "{field}: {value!r} is not an amount; write yuan as a decimal string without sign and with at most "
        "six places, at most 9007199254.740992, such as '1250.00'."
    )


def parse_yuan(text: str, *, field: str = "amount") -> int:
    """Micro-yuan of a decimal string of yuan. Raises MalformedAmount."""
    match = _DECIMAL.fullmatch(text)
    if match is None:
        raise MalformedAmount(field=field, value=text)
    micros = int(match[1]) * MICROS_PER_YUAN + int((match[2] or "").ljust(6, "0"))
    if micros > MICROS_MAX:
        raise MalformedAmount(field=field, value=text)
    return micros


def format_yuan(micros: int) -> str:
    """The decimal string of an amount in micro-yuan, always with six places."""
    sign = "-" if micros < 0 else ""
    yuan, rest = divmod(abs(micros), MICROS_PER_YUAN)
    return f"{sign}{yuan}.{rest:06d}"
