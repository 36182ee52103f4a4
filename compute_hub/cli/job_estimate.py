"""`hub job estimate`: what a job would cost, who would pay it, and when it would start."""

from typing import Annotated, Any

import typer
from rich.console import Console

from compute_hub.cli.output import AsJson, client, show, yuan


def estimate(
    accelerator: Annotated[
        list[str] | None, typer.Option(help="Model; repeat it to accept several, the best first.")
    ] = None,
    *,
    min_pflops: Annotated[
        float | None, typer.Option(help="Accept every model of at least so many PFLOPS instead.")
    ] = None,
    name: Annotated[str, typer.Option(help="The name that earlier jobs had, to learn from them.")] = "estimate",
    environment: Annotated[
        str | None,
        typer.Option(
            help="Software environment (`hub cluster environments`); the centre's usual one, if left out."
        ),
    ] = None,
    nodes: Annotated[int, typer.Option(help="Machines, started together.")] = 1,
    devices: Annotated[int, typer.Option(help="Cards on each machine.")] = 1,
    slots: Annotated[
        int, typer.Option(help="Thousandths of the card, for a job that needs a part of it.")
    ] = 1000,
    cpu: Annotated[float, typer.Option(help="Processor cores on each machine.")] = 1,
    memory: Annotated[int, typer.Option(help="Memory on each machine in MiB.")] = 1024,
    time_limit: Annotated[int, typer.Option(help="Seconds after which it would be stopped.")] = 3600,
    priority: Annotated[str, typer.Option(help="Among your own jobs: low, normal or high.")] = "normal",
    voucher: Annotated[
        list[str] | None, typer.Option(help="Voucher to use; all of yours, if left out.")
    ] = None,
    project: Annotated[str | None, typer.Option(help="Use its parts of vouchers, within its budget.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a job would cost, who would pay it and when it would start; submit nothing."""
    body = {
        "name": name,
        "argv": ["true"],
        "accelerator": accelerator or None,
        "min_pflops": min_pflops,
        "environment": environment,
        "nodes": nodes,
        "devices_per_node": devices,
        "slots_milli": slots,
        "cpu_milli": round(cpu * 1000),
        "memory_mib": memory,
        "time_limit_s": time_limit,
        "priority": priority,
        "voucher_ids": voucher,
        "project": project,
    }
    with client() as hub:
        found = hub.post("/v1/jobs:estimate", body)
    if as_json:
        show([found], {}, as_json=True)
        return
    _print(found)


def _print(found: dict[str, Any]) -> None:
    lines = [
        f"{words}, {cost['duration_s']} s on {cost['model']}: {yuan(cost['cost_cny'])}; {cost['sentence']}"
        for words, cost in (
            ("the whole limit", found["limit"]),
            ("what it will probably run", found["predicted"]),
        )
    ]
    lines.append(f"start: {found['starts_at'] or 'unknown'}; {found['start_sentence']}")
    lines += [f"warning: {warning}" for warning in found["warnings"]]
    for line in lines:
        Console().print(line, markup=False, soft_wrap=True)
