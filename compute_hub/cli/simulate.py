"""`hub simulate`: judge policies on a trace before a single card is bought."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from kernel.errors import HubError
from scheduler.simulator.clusters import DEVICES_MAX, NODES_MAX
from scheduler.simulator.running import Options, Result, run_simulation

_NAMED_MAX = 5


def simulate(
    trace: Annotated[Path, typer.Option("--trace", exists=True, dir_okay=False, help="The trace file.")],
    out: Annotated[Path, typer.Option("--out", file_okay=False, help="Where the results go.")],
    trace_format: Annotated[
        str, typer.Option("--format", help="elasticflow, openb, swf, csv or json.")
    ] = "csv",
    nodes: Annotated[
        int | None, typer.Option("--nodes", min=1, max=NODES_MAX, help="So many equal nodes.")
    ] = None,
    devices: Annotated[int, typer.Option("--devices", min=1, max=DEVICES_MAX, help="Devices per node.")] = 8,
    cluster: Annotated[
        Path | None, typer.Option("--cluster", exists=True, dir_okay=False, help="A cluster file instead.")
    ] = None,
    policy: Annotated[
        str, typer.Option("--policy", help="Policies or placements, comma-separated.")
    ] = "default",
    limits: Annotated[str | None, typer.Option("--limits", help="factor:F draws time limits.")] = None,
    estimates: Annotated[str | None, typer.Option("--estimates", help="exact or lognormal:SIGMA.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of limits and estimates.")] = 0,
) -> None:
    """Replay a trace under one or more policies; writes schedule.csv, summary.json and report.html."""
    names = tuple(name.strip() for name in policy.split(",") if name.strip())
    options = Options(trace, trace_format, out, names, nodes, devices, cluster, limits, estimates, seed)
    errors = Console(stderr=True)
    try:
        results = _with_progress(options, errors)
    except HubError as refusal:
        errors.print(f"[red]{refusal.code}[/red]: {refusal}", soft_wrap=True)
        raise typer.Exit(2) from refusal
    except OSError as refusal:
        errors.print(f"{refusal.filename}: {refusal.strerror}", soft_wrap=True)
        raise typer.Exit(2) from refusal
    _print_table(results, out)


def _with_progress(options: Options, console: Console) -> list[Result]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        tasks = {name: bar.add_task(name, total=None) for name in options.policies}

        def advance(name: str, arrived: int, total: int) -> None:
            bar.update(tasks[name], completed=arrived, total=total)

        return run_simulation(options, advance)


def _print_table(results: list[Result], out: Path) -> None:
    table = Table("policy")
    for head in ("jobs", "completion s", "wait s", "longest s", "allocated", "jobs/s"):
        table.add_column(head, justify="right")
    for result in results:
        summary = result.summary
        table.add_row(
            result.policy,
            str(summary["jobs"]),
            f"{summary['mean_jct_s']:,.0f}",
            f"{summary['mean_queue_s']:,.0f}",
            f"{summary['max_queue_s']:,.0f}",
            f"{summary['utilisation']:.1%}",
            f"{summary['jobs_per_s']:,.0f}",
        )
    console = Console()
    console.print(table)
    for result in results:
        _print_left(console, result, "impossible_jobs", "can never run here")
        _print_left(console, result, "unstarted_jobs", "still waits in the end")
    console.print(f"Written to {out}: schedule.csv, summary.json, report.html", soft_wrap=True)


def _print_left(console: Console, result: Result, kind: str, what: str) -> None:
    """The first few jobs that did not run to their end, each with the reason, and how many more there are."""
    left: dict[str, str] = result.summary[kind]
    for job, why in list(left.items())[:_NAMED_MAX]:
        console.print(f"{result.policy}: job {job} {what}: {why}", soft_wrap=True, markup=False)
    if len(left) > _NAMED_MAX:
        console.print(
            f"{result.policy}: so do {len(left) - _NAMED_MAX:,} more; all are in summary.json", soft_wrap=True
        )
