"""`hub alert …`: who is told when a tenant's money or a project's budget runs low, or its spending high."""

from typing import Annotated

import typer

from compute_hub.cli.output import AsJson, client, show

app = typer.Typer(help="Alerts about balances, spending and budgets.", no_args_is_help=True)

_RULES = {
    "id": "id",
    "kind": "kind",
    "project": "project",
    "threshold_cny": "threshold",
    "target": "told",
    "crossed": "crossed",
}


@app.command("set")
def set_(
    tenant: Annotated[str, typer.Argument(help="The enterprise's id.")],
    kind: Annotated[
        str, typer.Argument(help="balance (below), spending (of the month, above) or budget (below).")
    ],
    threshold: Annotated[str, typer.Argument(help="In yuan.")],
    target: Annotated[str, typer.Argument(help="A webhook's address or an e-mail address.")],
    *,
    project: Annotated[str | None, typer.Option(help="Whose budget is watched.")] = None,
    as_json: AsJson = False,
) -> None:
    """Watch a tenant's balance, its month's spending or the budget of one of its projects."""
    channel = "webhook" if "://" in target else "email"
    body = {"tenant_id": tenant, "kind": kind, "threshold_cny": threshold, "channel": channel, "target": target}
    if project is not None:
        body["project"] = project
    with client() as hub:
        show([hub.post("/v1/alert-rules", body)], _RULES, as_json=as_json)


@app.command()
def rules(*, as_json: AsJson = False) -> None:
    """List what is watched."""
    with client() as hub:
        show(list(hub.pages("/v1/alert-rules")), _RULES | {"ended_at": "ended"}, as_json=as_json)


@app.command()
def end(
    rule: Annotated[str, typer.Argument(help="`hub alert rules` shows it.")], *, as_json: AsJson = False
) -> None:
    """Stop watching."""
    with client() as hub:
        show([hub.post(f"/v1/alert-rules/{rule}:end")], _RULES, as_json=as_json)


@app.command("list")
def list_(*, as_json: AsJson = False) -> None:
    """List what was told, and what could not be delivered."""
    with client() as hub:
        found = list(hub.pages("/v1/alerts"))
    columns = {
        "raised_at": "at",
        "sentence": "what",
        "sent_at": "delivered",
        "tries": "tries",
        "failure": "why not",
    }
    show(found, columns, as_json=as_json)
