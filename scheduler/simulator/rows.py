"""Records of trace and cluster files whose fields are read with a check and refused by file, line and name.

Invariant: whatever bytes a file holds, reading it gives records or a MalformedTrace; no field that nobody reads is
let through where the format is the hub's own, so that a misspelt one is not taken for its default.
"""

import csv
import json
from collections.abc import Collection, Iterator
from io import StringIO
from pathlib import Path
from typing import Any, Final

from scheduler.simulator.errors import MalformedTrace

NUMBER_MAX: Final = 10**12
"""Larger ones are typing errors: so many seconds are thirty thousand years."""


class Row:
    """One record of a file, whose fields are read with a check and refused by name."""

    def __init__(self, file: Path, line: int, values: dict[str, Any]) -> None:
        self._file = file
        self._line = line
        self._values = values

    def refuse(self, field: str, value: object, why: str) -> MalformedTrace:
        """The refusal of one field."""
        told = value if value is None or len(str(value)) <= 100 else f"{str(value)[:100]}…"  # noqa: PLR2004 - enough to find it
        return MalformedTrace(file=self._file, line=self._line, field=field, value=told, why=why)

    def only(self, known: Collection[str]) -> "Row":
        """The same record. Raises MalformedTrace when it has a field that is not `known`."""
        for field in self._values:
            if field not in known:
                raise self.refuse(
                    str(field), self._values[field], f"is no field here; there are {', '.join(known)}"
                )
        return self

    def text(self, field: str, default: str | None = None) -> str:
        """A field as text. Raises MalformedTrace when it is missing and has no default."""
        value = self._values.get(field)
        if value is None or value == "":
            if default is None:
                raise self.refuse(field, value, "is missing")
            return default
        if isinstance(value, dict | list):
            raise self.refuse(field, value, "is not a text")
        return str(value)

    def words(self, field: str) -> tuple[str, ...]:
        """A field as a list of texts: a JSON list, or one text joined with `|`. Raises MalformedTrace."""
        value = self._values.get(field)
        if not isinstance(value, list):
            return tuple(filter(None, self.text(field, "").split("|")))
        if not all(isinstance(one, str) for one in value):
            raise self.refuse(field, value, "is not a list of texts")
        return tuple(value)

    def yes(self, field: str) -> bool:
        """A field as yes or no; no when it is missing. Raises MalformedTrace."""
        word = self.text(field, "false").lower()
        if word not in {"true", "1", "yes", "false", "0", "no"}:
            raise self.refuse(field, self._values.get(field), "is neither true nor false")
        return word in {"true", "1", "yes"}

    def number(
        self, field: str, default: float | None = None, *, least: float = 0, most: float = NUMBER_MAX
    ) -> float:
        """A field as a number of at least `least` and at most `most`. Raises MalformedTrace."""
        value = self._values.get(field)
        if value is None or value == "":
            if default is None:
                raise self.refuse(field, value, "is missing")
            return default
        try:
            number = float(str(value))
        except ValueError:
            raise self.refuse(field, value, "is not a number") from None
        if not least <= number:
            raise self.refuse(field, value, f"must be at least {least:g}")
        if number > most:
            raise self.refuse(field, value, f"must be at most {most:g}")
        return number

    def whole(self, field: str, default: int | None = None, *, least: int = 0, most: float = NUMBER_MAX) -> int:
        """A field as a whole number from `least` to `most`. Raises MalformedTrace."""
        number = self.number(field, default, least=least, most=most)
        if number != int(number):
            raise self.refuse(field, self._values.get(field), "is not a whole number")
        return int(number)

    def milliseconds(self, field: str, default: float | None = None, *, least: float = 0) -> int:
        """A field in seconds as milliseconds. Raises MalformedTrace."""
        return round(self.number(field, default, least=least) * 1000)

    def rows(self, field: str) -> list[dict[str, Any]]:
        """A field as a list of objects, empty when it is missing. Raises MalformedTrace."""
        value = self._values.get(field, [])
        if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
            raise self.refuse(field, type(value).__name__, "is not a list of objects")
        return value


def text_of(file: Path) -> str:
    """The text of a file, with or without a byte order mark. Raises MalformedTrace."""
    data = file.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        if data[:2] == b"\x1f\x8b":
            raise Row(file, 1, {}).refuse("(file)", file.name, "is compressed: unpack it first") from None
        raise Row(file, line, {}).refuse("(file)", f"byte {error.start}", "is not UTF-8") from None


def csv_rows(file: Path) -> Iterator[Row]:
    """A record for each line below the header. Raises MalformedTrace."""
    reader = csv.DictReader(StringIO(text_of(file), newline=""))
    try:
        header = list(reader.fieldnames or ())
        for name in header:
            if header.count(name) > 1:
                raise Row(file, 1, {}).refuse(name, name, "is a column more than once")
        for values in reader:
            row = Row(file, reader.line_num, dict(values))
            if None in values:
                raise row.refuse("(line)", values[None], "has more fields than the header")
            yield row
    except csv.Error as error:
        raise Row(file, reader.line_num + 1, {}).refuse("(line)", "it", f"is not CSV: {error}") from None


def json_of(file: Path, line: int, text: str, field: str) -> dict[str, Any]:
    """The object a text writes. Raises MalformedTrace."""
    nowhere = Row(file, line, {})
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        at = Row(file, line + error.lineno - 1, {})
        raise at.refuse(field, text.strip()[:40], f"is not JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise nowhere.refuse(field, text.strip()[:40], f"is not JSON: {str(error).partition(';')[0]}") from None
    if not isinstance(value, dict):
        raise nowhere.refuse(field, text.strip()[:40], "is not a JSON object")
    return value
