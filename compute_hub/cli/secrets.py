"""`hub secret …`: values entrusted to jobs. They come from a file or standard input, not the command line."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from compute_hub.cli.output import AsJson, client, show

app = typer.Typer(help="Entrust values to your jobs; nobody can read them back.", no_args_is_help=True)

_Name = Annotated[str, typer.Argument(help="The secret's name; jobs find it as /run/secrets/NAME.")]


@app.command()
def put(
    name: _Name,
    *,
    file: Annotated[
        Path | None, typer.Option(help="What it holds; standard input, if left out.", exists=True)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Store a secret or replace it; a line's end at its end is left out."""
    text = (sys.stdin.read() if file is None else file.read_text(encoding="utf-8")).removesuffix("\n")
    with client() as hub:
        _print([hub.put(f"/v1/secrets/{name}", {"value": text})], as_json=as_json)


@app.command("list")
def list_(*, as_json: AsJson = False) -> None:
    """List the names of your secrets."""
    with client() as hub:
        _print(hub.get("/v1/secrets")["items"], as_json=as_json)


@app.command()
def delete(name: _Name, *, as_json: AsJson = False) -> None:
    """Forget a secret that no job still needs."""
    with client() as hub:
        _print([hub.delete(f"/v1/secrets/{name}")], as_json=as_json)


def _print(secrets: list[dict[str, Any]], *, as_json: bool) -> None:
    show(secrets, {"name": "name", "size_bytes": "bytes", "updated_at": "stored"}, as_json=as_json)
