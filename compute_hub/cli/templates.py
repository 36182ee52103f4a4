"""`hub template …`: named beginnings of submissions; an operator's are for everybody."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from compute_hub.cli.output import AsJson, client, read_json, show

app = typer.Typer(help="Keep beginnings of submissions under names.", no_args_is_help=True)

_Name = Annotated[str, typer.Argument(help="The template's name.")]


@app.command()
def save(
    name: _Name,
    file: Annotated[Path, typer.Argument(help="A JSON object with fields of a submission.", exists=True)],
    *,
    description: Annotated[str, typer.Option(help="What it is good for.")] = "",
    as_json: AsJson = False,
) -> None:
    """Keep a template, in place of the one of that name; use it with hub job submit --template."""
    body = {"description": description, "fields": read_json(file)}
    with client() as hub:
        _print([hub.put(f"/v1/job-templates/{name}", body)], as_json=as_json)


@app.command("list")
def list_(*, as_json: AsJson = False) -> None:
    """List the templates you can use."""
    with client() as hub:
        _print(hub.get("/v1/job-templates")["items"], as_json=as_json)


@app.command("show")
def show_(name: _Name, *, as_json: AsJson = False) -> None:
    """Show one template."""
    with client() as hub:
        _print([hub.get(f"/v1/job-templates/{name}")], as_json=as_json)


@app.command()
def delete(name: _Name, *, as_json: AsJson = False) -> None:
    """Forget a template of yours."""
    with client() as hub:
        _print([hub.delete(f"/v1/job-templates/{name}")], as_json=as_json)


def _print(templates: list[dict[str, Any]], *, as_json: bool) -> None:
    rows = templates
    if not as_json:
        rows = [{**one, "facts": json.dumps(one["fields"], ensure_ascii=False)} for one in templates]
    columns = {"name": "name", "shared": "everybody's", "facts": "fields", "description": "what for"}
    show(rows, columns, as_json=as_json)
