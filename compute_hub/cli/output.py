"""How listings look: a table for people, JSON for programs (`--json`)."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from compute_hub.sdk import HubClient
from compute_hub.settings import ClientSettings
from kernel.errors import Invalid
from kernel.money import MICROS_PER_YUAN, parse_yuan

_PIPE_WIDTH: Final = 200
_COUNTS: Final = ("_cny", "_ms", "_milli", "_count", "_cny_per_card_hour")
_PROSE: Final = frozenset({"facts", "sentence", "reason", "resolution", "cause"})
_MS_PER_HOUR: Final = 3_600_000

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


class NotJson(Invalid):
    """A file that is no JSON object."""

    sentence = "{file} does not hold a JSON object ({reason})."


def client() -> HubClient:
    """The hub and key that HUB_URL and HUB_API_KEY name."""
    chosen = ClientSettings()
    return HubClient(chosen.url, chosen.api_key)


def show(
    rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], *, as_json: bool, title: str = ""
) -> None:
    """Print rows; `columns` maps a row's field to its heading."""
    if as_json:
        sys.stdout.write(json.dumps(list(rows), ensure_ascii=False, indent=2) + "\n")
        return
    table = Table(title=title or None, header_style="bold", title_justify="left", box=box.SIMPLE_HEAD)
    for field, heading in columns.items():
        counts = field.endswith(_COUNTS) or any(f"{field}_cny" in row for row in rows)
        # An id is there to be copied, so it is never cut; sentences and facts go on in the next line.
        table.add_column(
            heading,
            justify="right" if counts else "left",
            no_wrap=field not in _PROSE,
            overflow="fold" if field in _PROSE else "ellipsis",
            min_width=36 if field == "id" else None,
        )
    for row in rows:
        table.add_row(*(Text(plain(_cell(field, _value(field, row)))) for field in columns))
    console = Console()
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    console.print(table)


def details(found: Mapping[str, Any]) -> None:
    """Print one thing as a list of its fields; what is itself a table is left to `show`."""
    console = Console()
    for field, value in found.items():
        if not isinstance(value, list | dict):
            console.print(
                f"[bold]{field.replace('_', ' '):>24}[/bold]  {escape(plain(_cell(field, value)))}",
                highlight=False,
            )


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises NotJson."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise NotJson(file=file, reason=error) from error
    if not isinstance(content, dict):
        raise NotJson(file=file, reason="it holds another value")
    return content


def _value(field: str, row: Mapping[str, Any]) -> object:
    """A row's field; an amount without a unit in its name is whichever of its two units is set."""
    if field in row or f"{field}_cny" not in row:
        return row.get(field)
    if row[f"{field}_cny"] is not None:
        return yuan(row[f"{field}_cny"])
    card_ms = row[f"{field}_card_ms"]
    return None if card_ms is None else f"{card_ms / _MS_PER_HOUR:,.2f} card-h"


def _cell(field: str, value: object) -> str:
    if value is None:
        return "–"
    if field.endswith(("_cny", "_cny_per_card_hour")):
        return yuan(str(value))
    if field.endswith("_ms"):
        return f"{int(str(value)) / 1000:,.1f} s"
    if field.endswith("_at"):
        return str(value)[:19].replace("T", " ")
    if isinstance(value, dict):
        return ", ".join(f"{name}: {inner}" for name, inner in value.items())
    return str(value)


def plain(text: str) -> str:
    """Text without what would command a terminal: tenants name their jobs as they like, and operators list them."""
    return "".join(
        character if character.isprintable() or character == "\n" else "\N{REPLACEMENT CHARACTER}"
        for character in text
    )


def yuan(text: str) -> str:
    """An amount for people: as many places as it needs, at least two, with thousands."""
    negative = text.startswith("-")
    whole, places = divmod(parse_yuan(text.removeprefix("-")), MICROS_PER_YUAN)
    decimals = f"{places:06d}".rstrip("0").ljust(2, "0")
    return f"{'-' if negative else ''}¥{whole:,}.{decimals}"
