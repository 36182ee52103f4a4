"""`hub job …`: estimate, submit, list, show, logs, cancel."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from compute_hub.cli.output import AsJson, client, show, yuan
from compute_hub.cli.waiting import wait_for_end
from compute_hub.sdk import ENDED
from kernel.errors import Invalid

app = typer.Typer(help="Submit jobs and follow them.", no_args_is_help=True)

_COLUMNS = {
    "id": "job",
    "name": "name",
    "state": "state",
    "card_ms": "card time",
    "charge_cny": "cost",
    "tenant_cny": "you pay",
    "where": "devices",
    "reason": "why",
}


class MalformedVariable(Invalid):
    """An --env that is not NAME=VALUE."""

    sentence = "--env: {text!r} is not NAME=VALUE."


@app.command()
def submit(
    command: Annotated[list[str], typer.Argument(help="What to run, after --.")],
    accelerator: Annotated[list[str], typer.Option(help="Model; repeat it to accept several.")],
    *,
    name: Annotated[
        str | None, typer.Option(help="A name people recognise; the program's, if left out.")
    ] = None,
    workdir: Annotated[
        Path | None, typer.Option(help="Directory to upload as the job's working directory.", exists=True)
    ] = None,
    environment: Annotated[str, typer.Option(help="Software environment of the centre.")] = "digits",
    nodes: Annotated[int, typer.Option(help="Machines, started together.")] = 1,
    devices: Annotated[int, typer.Option(help="Cards on each machine.")] = 1,
    cpu: Annotated[float, typer.Option(help="Processor cores on each machine.")] = 1,
    memory: Annotated[int, typer.Option(help="Memory on each machine in MiB.")] = 1024,
    time_limit: Annotated[int, typer.Option(help="Seconds after which the job is stopped.")] = 3600,
    env: Annotated[list[str] | None, typer.Option(help="NAME=VALUE; may be repeated.")] = None,
    voucher: Annotated[
        list[str] | None, typer.Option(help="Voucher to use; all of yours, if left out.")
    ] = None,
    quote: Annotated[
        bool, typer.Option(help="Only say who would pay the first stretch; upload and submit nothing.")
    ] = False,
    wait: Annotated[bool, typer.Option(help="Wait for the end and print the log.")] = False,
    as_json: AsJson = False,
) -> None:
    """Submit a job, such as: hub job submit --accelerator MLU370-X8 --workdir . -- python train.py."""
    with client() as hub:
        body = submission(
            command,
            accelerator,
            name=name,
            environment=environment,
            nodes=nodes,
            devices_per_node=devices,
            cpu=cpu,
            memory_mib=memory,
            time_limit_s=time_limit,
            voucher_ids=voucher,
            env=env,
        )
        if quote:
            _print_quote(hub.post("/v1/jobs:quote", body), as_json=as_json)
            return
        if workdir is not None:
            body["upload_sha256"] = hub.upload(workdir)
        job = hub.post("/v1/jobs", body)
        if wait:
            job = wait_for_end(hub, job["id"])
            sys.stdout.buffer.write(hub.log(job["id"]))
    _print([job], as_json=as_json)
    if wait and job["state"] != "succeeded":
        raise typer.Exit(1)


@app.command()
def estimate(
    accelerator: Annotated[list[str], typer.Option(help="Model; repeat it to accept several.")],
    command: Annotated[list[str] | None, typer.Argument(help="What would run, after --.")] = None,
    *,
    name: Annotated[str | None, typer.Option(help="A name that earlier jobs had, to learn from them.")] = None,
    environment: Annotated[str, typer.Option(help="Software environment of the centre.")] = "digits",
    nodes: Annotated[int, typer.Option(help="Machines, started together.")] = 1,
    devices: Annotated[int, typer.Option(help="Cards on each machine.")] = 1,
    cpu: Annotated[float, typer.Option(help="Processor cores on each machine.")] = 1,
    memory: Annotated[int, typer.Option(help="Memory on each machine in MiB.")] = 1024,
    time_limit: Annotated[int, typer.Option(help="Seconds after which it would be stopped.")] = 3600,
    voucher: Annotated[
        list[str] | None, typer.Option(help="Voucher to use; all of yours, if left out.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a job would cost, who would pay it and when it would start; submit nothing."""
    body = submission(
        command or ["true"],
        accelerator,
        name=name,
        environment=environment,
        nodes=nodes,
        devices_per_node=devices,
        cpu=cpu,
        memory_mib=memory,
        time_limit_s=time_limit,
        voucher_ids=voucher,
    )
    with client() as hub:
        found = hub.post("/v1/jobs:estimate", body)
    if as_json:
        show([found], {}, as_json=True)
        return
    console = Console()
    for words, cost in (("the whole limit", found["limit"]), ("what it will probably run", found["predicted"])):
        text = (
            f"{words}, {cost['duration_s']} s on {cost['model']}: {yuan(cost['cost_cny'])}; {cost['sentence']}"
        )
        console.print(text, markup=False, soft_wrap=True)
    console.print(
        f"start: {found['starts_at'] or 'unknown'}; {found['start_sentence']}", markup=False, soft_wrap=True
    )
    for warning in found["warnings"]:
        console.print(f"warning: {warning}", markup=False, soft_wrap=True)


@app.command("list")
def list_(
    *, limit: Annotated[int, typer.Option(help="At most so many.")] = 20, as_json: AsJson = False
) -> None:
    """List jobs, newest first."""
    with client() as hub:
        _print(hub.get("/v1/jobs", limit=limit)["items"], as_json=as_json)


@app.command("show")
def show_(job: Annotated[str, typer.Argument(help="The job's id.")], *, as_json: AsJson = False) -> None:
    """Show one job with everything that is known of it."""
    with client() as hub:
        found = hub.get(f"/v1/jobs/{job}")
    if as_json:
        _print([found], as_json=True)
        return
    console = Console()
    for field, value in found.items():
        if field.endswith("_cny"):
            text = yuan(value)
        elif field == "devices":
            text = _where(found)
        else:
            text = "–" if value is None else str(value)
        console.print(f"[bold]{field.replace('_', ' '):>18}[/bold]  {text}", highlight=False)


@app.command()
def logs(
    job: Annotated[str, typer.Argument(help="The job's id.")],
    *,
    rank: Annotated[int, typer.Option(help="Which process of the job.")] = 0,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
) -> None:
    """Print what a job has printed."""
    with client() as hub:
        seen = 0
        while True:
            over = hub.get(f"/v1/jobs/{job}")["state"] in ENDED
            text = hub.log(job, rank, seen)
            seen += len(text)
            sys.stdout.buffer.write(text)
            sys.stdout.flush()
            if over or not follow:
                return
            wait_for_end(hub, job, seconds=1)


@app.command()
def cancel(job: Annotated[str, typer.Argument(help="The job's id.")], *, as_json: AsJson = False) -> None:
    """Ask for a job's end."""
    with client() as hub:
        _print([hub.post(f"/v1/jobs/{job}:cancel")], as_json=as_json)


@app.command()
def charges(job: Annotated[str, typer.Argument(help="The job's id.")], *, as_json: AsJson = False) -> None:
    """Say who paid which part of each charge of a job, by which clause."""
    with client() as hub:
        found = list(hub.pages(f"/v1/jobs/{job}/charges"))
    columns = {"n": "n", "card_ms": "card time", "cost_cny": "cost", "voucher_cny": "vouchers"}
    columns |= {"tenant_cny": "you", "sentence": "why", "id": "charge"}
    show(found, columns, as_json=as_json)


def submission(
    command: list[str],
    accelerator: list[str],
    *,
    name: str | None,
    cpu: float,
    env: list[str] | None = None,
    **asked: object,
) -> dict[str, Any]:
    """The body of a submission, a quote or an estimate."""
    return {
        **asked,
        "name": name or " ".join(command)[:120],
        "argv": command,
        "accelerator": accelerator,
        "cpu_milli": round(cpu * 1000),
        "env": dict(_variable(text) for text in env or ()),
    }


def _print(jobs: list[dict[str, Any]], *, as_json: bool) -> None:
    rows = jobs if as_json else [{**job, "where": _where(job)} for job in jobs]
    show(rows, _COLUMNS, as_json=as_json)


def _print_quote(quote: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        show([quote], {}, as_json=True)
        return
    Console().print(
        f"First stretch {yuan(quote['cost_cny'])}: {quote['sentence']}", markup=False, soft_wrap=True
    )


def _where(job: dict[str, Any]) -> str:
    by_node: dict[str, list[int]] = {}
    for device in job["devices"]:
        by_node.setdefault(device["node"], []).append(device["index"])
    return ", ".join(f"{node}:{'+'.join(map(str, indices))}" for node, indices in by_node.items()) or "–"


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise MalformedVariable(text=text)
    return name, value
