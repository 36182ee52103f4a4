"""How listings look: a table for people, JSON for programs (`--json`)."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from compute_hub.sdk import HubClient
from compute_hub.settings import ClientSettings
from kernel.money import MICROS_PER_YUAN, parse_yuan

_PIPE_WIDTH: Final = 200

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


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
        counts = field.endswith(("_cny", "_ms", "_milli"))
        # An id is there to be copied, so it is never cut; a sentence may be.
        table.add_column(
            heading,
            justify="right" if counts else "left",
            no_wrap=True,
            overflow="ellipsis",
            min_width=36 if field == "id" else None,
        )
    for row in rows:
        table.add_row(*(_cell(field, row.get(field)) for field in columns))
    console = Console()
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    console.print(table)


def _cell(field: str, value: object) -> str:
    if value is None:
        return "–"
    if field.endswith("_cny"):
        return yuan(str(value))
    if field.endswith("_ms"):
        return f"{int(str(value)) / 1000:,.1f} s"
    if field.endswith("_at"):
        return str(value)[:19].replace("T", " ")
    return str(value)


def yuan(text: str) -> str:
    """An amount for people: as many places as it needs, at least two, with thousands."""
    negative = text.startswith("-")
    whole, places = divmod(parse_yuan(text.removeprefix("-")), MICROS_PER_YUAN)
    decimals = f"{places:06d}".rstrip("0").ljust(2, "0")
    return f"{'-' if negative else ''}¥{whole:,}.{decimals}"
