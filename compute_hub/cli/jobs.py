"""`hub job …`: list, show, logs, wait, hold, cancel; submitting has a file of its own."""

import sys
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.markup import escape

from compute_hub.cli.output import AsJson, client, plain, show, yuan
from compute_hub.cli.waiting import exit_status, wait_for_end
from kernel.clock import boottime_ms
from kernel.errors import Invalid

app = typer.Typer(help="Submit jobs and follow them.", no_args_is_help=True)

_JOB: Final = "The job's id, or array.index."

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

EVERYBODY_STATES = "queued, starting, running, stopping, succeeded, failed or cancelled"


class NothingToWaitFor(Invalid):
    """--exit-code without -f."""

    sentence = "--exit-code: only with -f is the job's end waited for. Add -f, or use `hub job wait`."


@app.command("list")
def list_(
    *,
    limit: Annotated[int, typer.Option(help="At most so many.")] = 20,
    array: Annotated[str | None, typer.Option(help="Only the jobs of this array.")] = None,
    state: Annotated[str | None, typer.Option(help=f"Only jobs that are {EVERYBODY_STATES}.")] = None,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    with client() as hub:
        print_jobs(hub.get("/v1/jobs", limit=limit, array_id=array, state=state)["items"], as_json=as_json)


@app.command("show")
def show_(job: Annotated[str, typer.Argument(help=_JOB)], *, as_json: AsJson = False) -> None:
    """Show one job with everything that is known of it."""
    with client() as hub:
        found = hub.get(f"/v1/jobs/{job}")
    if as_json:
        print_jobs([found], as_json=True)
        return
    console = Console()
    for field, value in found.items():
        if field.endswith("_cny"):
            text = yuan(value)
        elif field == "devices":
            text = _where(found)
        else:
            text = "–" if value is None else str(value)
        console.print(f"[bold]{field.replace('_', ' '):>18}[/bold]  {escape(plain(text))}", highlight=False)


@app.command()
def logs(
    job: Annotated[str, typer.Argument(help=_JOB)],
    *,
    rank: Annotated[int, typer.Option(help="Which process of the job.")] = 0,
    attempt: Annotated[int | None, typer.Option(help="Which attempt; the latest, if left out.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
    exit_code: Annotated[
        bool, typer.Option("--exit-code", help="With -f: leave with the job's status, as `hub job wait` does.")
    ] = False,
) -> None:
    """Print what a job has printed. Leaves with 0 when it was printed, however the job ended, unless --exit-code."""
    if exit_code and not follow:
        raise NothingToWaitFor
    with client() as hub:
        if not follow:
            sys.stdout.buffer.write(hub.log(job, rank, attempt=attempt))
            sys.stdout.flush()
            return
        for kind, data in hub.follow(job, rank, attempt):
            if kind == "log":
                sys.stdout.buffer.write(data["text"].encode())
                sys.stdout.flush()
        status = exit_status([hub.get(f"/v1/jobs/{job}")]) if exit_code else 0
    raise typer.Exit(status)


@app.command()
def wait(
    jobs: Annotated[list[str], typer.Argument(help="Ids of jobs, or array.index.")],
    *,
    timeout: Annotated[
        float | None, typer.Option(help="Wait for so many seconds at most, then leave with 124.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Wait until jobs have ended, and leave with 0 if all succeeded.

    Otherwise with the status of the first that did not, in the order named: its program's own where it ended by itself,
    128 + the signal where one ended it, else 1.
    """
    never_ms = None if timeout is None else boottime_ms() + int(timeout * 1000)
    with client() as hub:
        ended = [wait_for_end(hub, job, seconds=_left_s(never_ms)) for job in jobs]
    print_jobs(ended, as_json=as_json)
    raise typer.Exit(exit_status(ended))


@app.command()
def artifacts(
    job: Annotated[str, typer.Argument(help=_JOB)],
    folder: Annotated[str, typer.Argument(help="A folder of the working directory.")] = "",
    *,
    rank: Annotated[int, typer.Option(help="Which process of the job.")] = 0,
    attempt: Annotated[int | None, typer.Option(help="Which attempt; the latest, if left out.")] = None,
    checkpoints: Annotated[
        bool, typer.Option("--checkpoints", help="What the job keeps for its next attempt.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the files a job left in its working directory, or keeps for its next attempt."""
    with client() as hub:
        named = {"folder": folder, "rank": rank, "attempt": attempt, "checkpoints": checkpoints or None}
        found = list(hub.pages(f"/v1/jobs/{job}/artifacts", **named))
    columns = {"path": "path", "kind": "kind", "size_bytes": "bytes", "modified_at": "modified"}
    show(found, columns, as_json=as_json)


@app.command()
def download(
    job: Annotated[str, typer.Argument(help=_JOB)],
    path: Annotated[str, typer.Argument(help="A file of the working directory.")],
    *,
    to: Annotated[
        Path | None, typer.Option(help="Where to store it; under its own name here, if left out.")
    ] = None,
    rank: Annotated[int, typer.Option(help="Which process of the job.")] = 0,
    attempt: Annotated[int | None, typer.Option(help="Which attempt; the latest, if left out.")] = None,
    checkpoints: Annotated[
        bool, typer.Option("--checkpoints", help="What the job keeps for its next attempt.")
    ] = False,
) -> None:
    """Store a file that a job left in its working directory, or keeps for its next attempt."""
    target = to or Path(Path(path).name or "artifact")
    with client() as hub:
        size = hub.download(job, path, target, rank, attempt, checkpoints=checkpoints)
    sys.stdout.write(f"{target}: {size} bytes\n")


@app.command()
def cancel(
    job: Annotated[str, typer.Argument(help=_JOB)],
    *,
    array: Annotated[bool, typer.Option("--array", help="The id is an array's: end all its jobs.")] = False,
    as_json: AsJson = False,
) -> None:
    """Ask for the end of a job, or of all jobs of an array."""
    with client() as hub:
        if array:
            print_arrays([hub.post(f"/v1/job-arrays/{job}:cancel")], as_json=as_json)
        else:
            print_jobs([hub.post(f"/v1/jobs/{job}:cancel")], as_json=as_json)


@app.command()
def hold(job: Annotated[str, typer.Argument(help=_JOB)], *, as_json: AsJson = False) -> None:
    """Let a waiting job not start before it is released."""
    with client() as hub:
        print_jobs([hub.post(f"/v1/jobs/{job}:hold")], as_json=as_json)


@app.command()
def release(job: Annotated[str, typer.Argument(help=_JOB)], *, as_json: AsJson = False) -> None:
    """Let a job that was held start."""
    with client() as hub:
        print_jobs([hub.post(f"/v1/jobs/{job}:release")], as_json=as_json)


@app.command()
def depend(
    job: Annotated[str, typer.Argument(help=_JOB)],
    after: Annotated[list[str] | None, typer.Argument(help="Jobs or arrays that must succeed first.")] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Let a waiting job wait for these jobs instead of those it named before; for none, if none is named."""
    with client() as hub:
        print_jobs([hub.post(f"/v1/jobs/{job}:depend", {"depends_on": after or []})], as_json=as_json)


@app.command()
def attempts(job: Annotated[str, typer.Argument(help=_JOB)], *, as_json: AsJson = False) -> None:
    """Show every process of every attempt of a job, and how it ended."""
    with client() as hub:
        found = list(hub.pages(f"/v1/jobs/{job}/attempts"))
    columns = {"attempt": "attempt", "rank": "rank", "node": "node", "state": "state", "started_at": "started"}
    columns |= {"ended_at": "ended", "exit_code": "status", "end_reason": "end", "detail": "reason"}
    show(found, columns, as_json=as_json)


@app.command()
def explain(job: Annotated[str, typer.Argument(help=_JOB)], *, as_json: AsJson = False) -> None:
    """Say why a job waits, and when it will probably start."""
    with client() as hub:
        found = hub.get(f"/v1/jobs/{job}/explanation")
    columns = {"state": "state", "sentence": "why", "start_estimate_at": "starts about", "code": "rule"}
    show([found], columns, as_json=as_json)


@app.command("array")
def array_(array: Annotated[str, typer.Argument(help="The array's id.")], *, as_json: AsJson = False) -> None:
    """Show an array: how many of its jobs are in which state."""
    with client() as hub:
        print_arrays([hub.get(f"/v1/job-arrays/{array}")], as_json=as_json)


@app.command()
def charges(job: Annotated[str, typer.Argument(help=_JOB)], *, as_json: AsJson = False) -> None:
    """Say who paid which part of each charge of a job, by which clause."""
    with client() as hub:
        found = list(hub.pages(f"/v1/jobs/{job}/charges"))
    columns = {"n": "n", "card_ms": "card time", "cost_cny": "cost", "voucher_cny": "vouchers"}
    columns |= {"tenant_cny": "you", "sentence": "why", "id": "charge"}
    show(found, columns, as_json=as_json)


def print_jobs(jobs: list[dict[str, Any]], *, as_json: bool) -> None:
    """Jobs as a table or as JSON."""
    rows = jobs if as_json else [{**job, "where": _where(job)} for job in jobs]
    show(rows, _COLUMNS, as_json=as_json)


def print_arrays(arrays: list[dict[str, Any]], *, as_json: bool) -> None:
    """Arrays of jobs as a table or as JSON."""
    columns = {"id": "array", "name": "name", "size": "jobs", "running_max": "at once", "states": "states"}
    show(arrays, columns, as_json=as_json)


def _left_s(until_ms: int | None) -> float | None:
    return None if until_ms is None else max(0, until_ms - boottime_ms()) / 1000


def _where(job: dict[str, Any]) -> str:
    by_node: dict[str, list[int]] = {}
    for device in job["devices"]:
        by_node.setdefault(device["node"], []).append(device["index"])
    return ", ".join(f"{node}:{'+'.join(map(str, indices))}" for node, indices in by_node.items()) or "–"
