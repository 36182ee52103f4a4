"""`hub programme …`."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from compute_hub.cli.amounts import Amount, in_units
from compute_hub.cli.output import AsJson, client, read_json, show

app = typer.Typer(help="Programmes: their rules and where their money is.", no_args_is_help=True)

_COLUMNS = {
    "programme": "programme",
    "budget": "budget",
    "pool": "to issue",
    "issued": "issued",
    "remaining": "unused",
    "held": "held",
    "captured": "captured",
    "claimed": "claimed",
    "disbursed": "paid out",
}
_VERSIONS = {
    "version": "version",
    "name": "name",
    "effective_from": "from",
    "effective_until": "until",
    "digest_sha256": "digest",
}

Programme = Annotated[str, typer.Argument(help="The programme.")]


@app.command()
def publish(
    file: Annotated[Path, typer.Argument(help="The rules' document.", exists=True, dir_okay=False)],
    *,
    as_json: AsJson = False,
) -> None:
    """Publish a version of a programme's rules; examples lie in examples/programmes."""
    document = read_json(file)
    with client() as hub:
        show([hub.post("/v1/programmes", {"document": document})], _COLUMNS, as_json=as_json)


@app.command("list")
def list_(*, as_json: AsJson = False) -> None:
    """List programmes and where their money is."""
    with client() as hub:
        show(list(hub.pages("/v1/programmes")), _COLUMNS, as_json=as_json)


@app.command("show")
def show_(
    programme: Programme,
    *,
    version: Annotated[int | None, typer.Option(help="Print this version's whole document.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show a programme with its versions, or one version's rules."""
    with client() as hub:
        if version is not None:
            found = hub.get(f"/v1/programmes/{programme}/versions/{version}")
            sys.stdout.write(json.dumps(found["document"], ensure_ascii=False, indent=2) + "\n")
            return
        whole = hub.get(f"/v1/programmes/{programme}")
        versions = list(hub.pages(f"/v1/programmes/{programme}/versions"))
    if as_json:
        show([{**whole, "versions": versions}], _COLUMNS, as_json=True)
        return
    show([whole], _COLUMNS, as_json=False)
    show(versions, _VERSIONS, as_json=False)


@app.command()
def appropriate(programme: Programme, *, as_json: AsJson = False) -> None:
    """Put the present cycle's budget into the pool; what is there already counts."""
    with client() as hub:
        answer = hub.post(f"/v1/programmes/{programme}:appropriate", {})
    show([answer], _COLUMNS, as_json=as_json)


@app.command("open-round")
def open_round(
    programme: Programme,
    name: Annotated[str, typer.Argument(help="What the round is called.")],
    opens: Annotated[str, typer.Option(help="When it opens, such as 2026-03-01T00:00:00+08:00.")],
    cut_off: Annotated[str, typer.Option(help="When it ends.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Call for applications until a cut-off."""
    body = {"name": name, "opens_at": opens, "cut_off_at": cut_off}
    with client() as hub:
        answer = hub.post(f"/v1/programmes/{programme}/rounds", body)
    columns = {"name": "round", "opens_at": "opens", "cut_off_at": "cut-off", "id": "id"}
    show([answer], columns, as_json=as_json)


@app.command("advance-reserve")
def advance_reserve(
    programme: Programme,
    amount: Amount,
    reference: Annotated[str, typer.Option(help="The bank's reference; it is booked once.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Advance money to the centre; claims use it up first."""
    body = {**in_units("amount", amount), "reference": reference}
    with client() as hub:
        answer = hub.post(f"/v1/programmes/{programme}:advance-reserve", body)
    show([answer], _COLUMNS, as_json=as_json)
