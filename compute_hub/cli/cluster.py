"""`hub cluster …` and `hub ledger …`."""

import json
import sys
from typing import Annotated

import typer
from rich.console import Console

from compute_hub.cli.output import AsJson, client, show

app = typer.Typer(help="The centre's nodes and devices.", no_args_is_help=True)
ledger_app = typer.Typer(help="The books.", no_args_is_help=True)

_ACCOUNTS = {"id": "account", "name": "name", "entries": "entries", "net": "balance", "held": "held"}
_ENTRIES = {
    "sequence": "n",
    "at": "at",
    "movement": "movement",
    "kind": "kind",
    "side": "side",
    "amount": "amount",
    "net": "balance",
    "held": "held",
    "cause": "cause",
}


@app.command("show")
def show_(*, as_json: AsJson = False) -> None:
    """Show nodes, devices and what of them is allocated."""
    with client() as hub:
        nodes = hub.get("/v1/cluster")["nodes"]
    rows = [
        {**device, "node": node["name"], "standing": node["standing"], "isolation": node["isolation"]}
        for node in nodes
        for device in node["devices"]
    ]
    columns = {
        "node": "node",
        "standing": "node is",
        "index": "card",
        "model": "model",
        "healthy": "healthy",
        "allocated_milli": "allocated ‰",
        "isolation": "isolation",
    }
    show(nodes if as_json else rows, columns, as_json=as_json)


@app.command()
def environments(*, as_json: AsJson = False) -> None:
    """List what jobs may run in, and what kind of cost their usage is, which vouchers look at."""
    with client() as hub:
        rows = hub.get("/v1/environments")["environments"]
    if not as_json:
        rows = [{**row, "command": " ".join(row["command"])} for row in rows]
    show(
        rows,
        {"name": "environment", "usual": "usual", "cost_kind": "usage is", "command": "runs"},
        as_json=as_json,
    )


@app.command()
def demand(*, as_json: AsJson = False) -> None:
    """Show by shape what waiting jobs would need; for whoever adds machines."""
    with client() as hub:
        rows = hub.get("/v1/cluster:demand")["demands"]
    if not as_json:
        rows = [{**row, "accelerator": " or ".join(row["accelerator"])} for row in rows]
    columns = {
        "jobs": "jobs",
        "accelerator": "accelerator",
        "nodes": "nodes",
        "devices_per_node": "cards on each",
        "slots_milli": "of each ‰",
        "cpu_milli": "cpu",
        "memory_mib": "MiB",
        "oldest_queued_at": "waits since",
    }
    show(rows, columns, as_json=as_json)


@ledger_app.command()
def audit(*, as_json: AsJson = False) -> None:
    """Recompute every balance from the raw transfers; exit status 1 if anything differs."""
    with client() as hub:
        report = hub.get("/v1/ledger/audit")
    if as_json:
        sys.stdout.write(json.dumps(report, ensure_ascii=False, indent=2) + "\n")
    else:
        console = Console()
        console.print(
            f"{report['transfers']} transfers, balances sum to {report['sum_micros']}: {report['audit']}"
        )
        for difference in report["differences"]:
            console.print(f"  {difference}", markup=False)
    if report["audit"] != "ok":
        raise typer.Exit(1)


@ledger_app.command()
def accounts(
    prefix: Annotated[str, typer.Argument(help="Such as programme/huangyan/.")] = "",
    *,
    as_json: AsJson = False,
) -> None:
    """List accounts whose names begin so."""
    with client() as hub:
        show(list(hub.pages("/v1/ledger/accounts", prefix=prefix)), _ACCOUNTS, as_json=as_json)


@ledger_app.command()
def history(
    account: Annotated[str, typer.Argument(help="The account's id; `hub ledger accounts` shows it.")],
    *,
    as_json: AsJson = False,
) -> None:
    """List every movement of an account with the balance after it."""
    with client() as hub:
        show(list(hub.pages(f"/v1/ledger/accounts/{account}/history")), _ENTRIES, as_json=as_json)
