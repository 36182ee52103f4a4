"""`hub job submit`: everything an enterprise can ask of a job."""

import sys
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from compute_hub.cli.jobs import print_arrays, print_jobs
from compute_hub.cli.output import AsJson, client, show, yuan
from compute_hub.cli.waiting import exit_status, wait_for_end
from kernel.errors import Invalid


class MalformedVariable(Invalid):
    """An --env that is not NAME=VALUE."""

    sentence = "--env: {text!r} is not NAME=VALUE."


class NothingToWaitFor(Invalid):
    """--wait for an array, whose jobs end one by one."""

    sentence = (
        "--wait: an array cannot be waited for; follow it with `hub job array`. Leave --wait or --array out."
    )


def submit(
    context: typer.Context,
    command: Annotated[
        list[str] | None, typer.Argument(help="What to run, after --; the template's, if left out.")
    ] = None,
    accelerator: Annotated[
        list[str] | None, typer.Option(help="Model; repeat it to accept several, the best first.")
    ] = None,
    *,
    min_pflops: Annotated[
        float | None, typer.Option(help="Accept every model of at least so many PFLOPS instead.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="A name people recognise; the program's, if left out.")
    ] = None,
    workdir: Annotated[
        Path | None,
        typer.Option(help="Directory to upload as the job's working directory.", exists=True, file_okay=False),
    ] = None,
    environment: Annotated[
        str | None,
        typer.Option(
            help="Software environment (`hub cluster environments`); the centre's usual one, if left out."
        ),
    ] = None,
    kind: Annotated[
        str | None, typer.Option(help="ray: with a private Ray cluster on what is allocated.")
    ] = None,
    nodes: Annotated[int, typer.Option(help="Machines, started together.")] = 1,
    devices: Annotated[int, typer.Option(help="Cards on each machine.")] = 1,
    slots: Annotated[
        int, typer.Option(help="Thousandths of the card, for a job that needs a part of it.")
    ] = 1000,
    topology: Annotated[str, typer.Option(help="pack, same-switch or spread.")] = "pack",
    cpu: Annotated[float, typer.Option(help="Processor cores on each machine.")] = 1,
    memory: Annotated[int, typer.Option(help="Memory on each machine in MiB.")] = 1024,
    time_limit: Annotated[int, typer.Option(help="Seconds after which the job is stopped.")] = 3600,
    grace: Annotated[int, typer.Option(help="Seconds between SIGTERM and SIGKILL when it is stopped.")] = 10,
    notice_signal: Annotated[
        str | None,
        typer.Option(help="Signal for notices, such as SIGUSR1; they also stand in /job/HUB_NOTICE."),
    ] = None,
    priority: Annotated[str, typer.Option(help="Among your own jobs: low, normal or high.")] = "normal",
    preemptible: Annotated[
        bool, typer.Option("--preemptible", help="May be stopped for others and tried again.")
    ] = False,
    not_before: Annotated[
        str | None, typer.Option(help="Start no sooner, such as 2026-03-01T08:00:00Z.")
    ] = None,
    after: Annotated[
        list[str] | None, typer.Option(help="Job or array that must succeed first; may be repeated.")
    ] = None,
    hold: Annotated[bool, typer.Option("--hold", help="Do not start before `hub job release`.")] = False,
    retries: Annotated[int, typer.Option(help="Attempts after the first.")] = 0,
    retry_on: Annotated[
        str, typer.Option(help="lost: only what the centre lost; failure: failed programs too.")
    ] = "lost",
    array: Annotated[int | None, typer.Option(help="Submit so many, told apart by HUB_ARRAY_INDEX.")] = None,
    array_running: Annotated[
        int | None, typer.Option(help="Of the array, run at most so many at once.")
    ] = None,
    env: Annotated[list[str] | None, typer.Option(help="NAME=VALUE; may be repeated.")] = None,
    secret: Annotated[
        list[str] | None, typer.Option(help="Secret to find as /run/secrets/NAME; may be repeated.")
    ] = None,
    template: Annotated[
        str | None, typer.Option(help="Begin with this template; options you give replace its fields.")
    ] = None,
    voucher: Annotated[
        list[str] | None, typer.Option(help="Voucher to use; all of yours, if left out.")
    ] = None,
    project: Annotated[str | None, typer.Option(help="Use its parts of vouchers, within its budget.")] = None,
    quote: Annotated[
        bool, typer.Option(help="Only say who would pay the first stretch; upload and submit nothing.")
    ] = False,
    wait: Annotated[
        bool, typer.Option(help="Wait for the end, print the log and leave with the job's status.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Submit a job, such as: hub job submit --accelerator MLU370-X8 --workdir . -- python train.py."""
    if wait and array is not None:
        raise NothingToWaitFor
    body: dict[str, Any] = {
        "name": name or " ".join(command or ())[:120],
        "argv": command or [],
        "accelerator": accelerator or None,
        "min_pflops": min_pflops,
        "environment": environment,
        "kind": kind,
        "nodes": nodes,
        "devices_per_node": devices,
        "slots_milli": slots,
        "topology": topology,
        "cpu_milli": round(cpu * 1000),
        "memory_mib": memory,
        "time_limit_s": time_limit,
        "grace_s": grace,
        "notice_signal": notice_signal,
        "priority": priority,
        "preemptible": preemptible,
        "not_before": not_before,
        "depends_on": after or [],
        "held": hold,
        "max_retries": retries,
        "retry_on": retry_on,
        "env": dict(_variable(text) for text in env or ()),
        "secrets": secret or [],
        "voucher_ids": voucher,
        "project": project,
    }
    with client() as hub:
        if template is not None:
            body = _begun_with(hub.get(f"/v1/job-templates/{template}")["fields"], body, context)
        if quote:
            _print_quote(hub.post("/v1/jobs:quote", body), as_json=as_json)
            return
        if workdir is not None:
            body["upload_sha256"] = hub.upload(workdir)
        if array is not None:
            many = {"job": body, "size": array, "running_max": array_running}
            print_arrays([hub.post("/v1/job-arrays", many)], as_json=as_json)
            return
        job = hub.post("/v1/jobs", body)
        if wait:
            job = wait_for_end(hub, job["id"])
            sys.stdout.buffer.write(hub.log(job["id"]))
    print_jobs([job], as_json=as_json)
    if wait:
        raise typer.Exit(exit_status([job]))


_OPTIONS: Final = {
    "name": "name",
    "argv": "command",
    "nodes": "nodes",
    "devices_per_node": "devices",
    "slots_milli": "slots",
    "topology": "topology",
    "cpu_milli": "cpu",
    "memory_mib": "memory",
    "time_limit_s": "time_limit",
    "grace_s": "grace",
    "priority": "priority",
    "preemptible": "preemptible",
    "held": "hold",
    "max_retries": "retries",
    "retry_on": "retry_on",
}
"""By field of a submission, the option that sets it; those whose default is empty are not needed here."""


def _begun_with(fields: dict[str, Any], body: dict[str, Any], context: typer.Context) -> dict[str, Any]:
    """A template's fields under what was said on the command line; defaults give way to the template."""
    said = {
        field: value
        for field, value in body.items()
        if value not in (None, [], {}, "")
        and (field not in fields or field not in _OPTIONS or not _is_default(context, _OPTIONS[field]))
    }
    if "env" in said and "env" in fields:
        said["env"] = {**fields["env"], **said["env"]}
    return {**fields, **said}


def _is_default(context: typer.Context, option: str) -> bool:
    source = context.get_parameter_source(option)
    return source is not None and source.name == "DEFAULT"


def _print_quote(quote: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        show([quote], {}, as_json=True)
        return
    Console().print(
        f"First stretch {yuan(quote['cost_cny'])}: {quote['sentence']}", markup=False, soft_wrap=True
    )


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise MalformedVariable(text=text)
    return name, value
