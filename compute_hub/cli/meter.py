"""`hub meter …`: what the meter could not vouch for."""

from typing import Annotated

import typer

from compute_hub.cli.output import AsJson, client, show

app = typer.Typer(help="Gaps and alarms of the meter; what became of card time.", no_args_is_help=True)


@app.command()
def gaps(*, as_json: AsJson = False) -> None:
    """List runs whose records stop before their end."""
    with client() as hub:
        found = list(hub.pages("/v1/gap-cases"))
    columns = {
        "job_id": "job",
        "attempt": "attempt",
        "rank": "rank",
        "node": "node",
        "first_missing_k": "missing",
    }
    show(found, columns | {"kind": "kind", "opened_at": "since", "filled": "filled"}, as_json=as_json)


@app.command()
def alarms(*, as_json: AsJson = False) -> None:
    """List records that contradict earlier ones, or the run they name."""
    with client() as hub:
        found = list(hub.pages("/v1/meter-alarms"))
    show(found, {"record_id": "record", "problem": "problem", "received_at": "at"}, as_json=as_json)


@app.command()
def held(job: Annotated[str, typer.Argument(help="The job's id.")], *, as_json: AsJson = False) -> None:
    """Say how much of a job's card time was busy, idle, or reserved and not used, and what energy it took."""
    with client() as hub:
        found = hub.get(f"/v1/jobs/{job}/held-time")["items"]
    columns = {"model": "model", "allocated_card_ms": "allocated", "unused_card_ms": "unused"}
    columns |= {"busy_card_ms": "busy", "idle_card_ms": "idle", "memory_bytes_max": "memory"}
    columns |= {"device_memory_bytes_max": "device memory"}
    show(found, columns | {"energy_joules": "joules", "energy_estimated": "estimated"}, as_json=as_json)


@app.command()
def records(job: Annotated[str, typer.Argument(help="The job's id.")], *, as_json: AsJson = False) -> None:
    """List a job's usage records: card time, work on the cards, energy and memory, and the charge each went into."""
    with client() as hub:
        found = list(hub.pages(f"/v1/jobs/{job}/usage"))
    columns = {"attempt": "attempt", "rank": "rank", "k": "number", "node": "node", "duration_ms": "duration"}
    columns |= {"busy_ms": "busy", "energy_mj": "millijoules", "memory_bytes_max": "memory"}
    show(found, columns | {"device_memory_bytes_max": "device memory", "charge_id": "charge"}, as_json=as_json)
