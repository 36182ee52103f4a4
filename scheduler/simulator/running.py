"""One call from files to files: what `hub simulate` and the benchmarks use."""

import csv
import gc
import json
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from scheduler.policy.errors import UnknownPolicy
from scheduler.policy.model import WHOLE_MILLI, Queue
from scheduler.policy.queues import QueueTree
from scheduler.policy.settings import (
    POLICIES,
    PlacementRule,
    PolicySettings,
    placement_named,
    policy_named,
)
from scheduler.simulator.clusters import read_cluster
from scheduler.simulator.engine import Outcome, Simulation
from scheduler.simulator.errors import MalformedOption, MalformedTrace
from scheduler.simulator.readers import read_trace
from scheduler.simulator.report import write_report
from scheduler.simulator.summary import summarise
from scheduler.simulator.workload import Cluster, TraceJob, uniform_cluster, with_estimates, with_limits

_NUMBER: Final = r"(\d{1,9}(?:\.\d{1,9})?)"
_FACTOR_MAX: Final = 1_000_000
_SIGMA_MAX: Final = 10
_NAMED_MAX: Final = 20
_GARBAGE_LET_BE: Final = 1_000_000
"""Objects that may come before the collector looks for circles among them: a run makes few, and all of them small."""
_COLUMNS: Final = [
    "job_id",
    "attempt",
    "node",
    "device",
    "slot_lo",
    "slot_hi",
    "start_s",
    "end_s",
    "end_reason",
]

Progress = Callable[[str, int, int], None]
"""Told the policy, the jobs arrived so far, and all jobs."""


@dataclass(frozen=True, slots=True)
class Options:
    """What to simulate. Either `cluster` or `nodes` with `devices` says on what."""

    trace: Path
    format: str
    out: Path
    policies: tuple[str, ...] = ("default",)
    nodes: int | None = None
    devices: int = 8
    cluster: Path | None = None
    limits: str | None = None
    estimates: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class Result:
    """One policy's run."""

    policy: str
    outcome: Outcome
    summary: dict[str, Any]


def resolve_policy(name: str) -> PolicySettings:
    """A policy, a placement (all else as in `default`), or `policy+placement`. Raises UnknownPolicy."""
    order, _, placement = name.partition("+")
    if placement:
        return replace(policy_named(order), name=name, placement=placement_named(placement))
    if name not in POLICIES and name in {rule.value for rule in PlacementRule}:
        return replace(POLICIES["default"], name=name, placement=placement_named(name))
    if name not in POLICIES:
        known = ", ".join(dict.fromkeys([*POLICIES, *(rule.value for rule in PlacementRule)]))
        raise UnknownPolicy(field="policy", kind="policy or placement", name=name, known=known)
    return POLICIES[name]


def prepare(
    jobs: tuple[TraceJob, ...], limits: str | None, estimates: str | None, seed: int
) -> tuple[TraceJob, ...]:
    """Give the jobs limits and estimates as `--limits` and `--estimates` say. Raises MalformedOption."""
    if limits is not None:
        match = re.fullmatch(f"factor:{_NUMBER}", limits)
        if match is None or not 1 <= float(match[1]) <= _FACTOR_MAX:
            why = f"write factor:F with F at least 1 and at most {_FACTOR_MAX}"
            raise MalformedOption(field="limits", value=limits, why=why)
        jobs = with_limits(jobs, float(match[1]), seed)
    if estimates is not None:
        match = re.fullmatch(f"exact|lognormal:{_NUMBER}", estimates)
        if match is None or float(match[1] or 0) > _SIGMA_MAX:
            why = f"write exact or lognormal:SIGMA with SIGMA at most {_SIGMA_MAX}"
            raise MalformedOption(field="estimates", value=estimates, why=why)
        jobs = with_estimates(jobs, float(match[1] or 0), seed)
    return jobs


def load(options: Options) -> tuple[Cluster, tuple[TraceJob, ...], tuple[Queue, ...]]:
    """Cluster, jobs and queues of the options; refuses what cannot be meant, before anything is simulated."""
    if (options.cluster is None) == (options.nodes is None):
        raise MalformedOption(field="cluster", value=options.cluster, why="give either --cluster or --nodes")
    if options.nodes is not None and (options.nodes < 1 or options.devices < 1):
        raise MalformedOption(field="nodes", value=options.nodes, why="at least one node with one device")
    cluster = (
        read_cluster(options.cluster)
        if options.cluster
        else uniform_cluster(options.nodes or 1, options.devices)
    )
    widest = max(len(node.devices) for node in cluster.nodes)
    jobs = read_trace(options.trace, options.format, max(1, widest))
    jobs = prepare(jobs, options.limits, options.estimates, options.seed)
    queues = cluster.queues or tuple(Queue(name) for name in sorted({one.job.queue for one in jobs}))
    _check_names(options.trace, cluster, jobs, queues)
    return cluster, jobs, queues


def _check_names(trace: Path, cluster: Cluster, jobs: tuple[TraceJob, ...], queues: tuple[Queue, ...]) -> None:
    """Refuse queues that are no tree, models no node has and queues nobody can wait in, with those there are."""
    capacities: Counter[str] = Counter()
    for node in cluster.nodes:
        capacities[node.model] += len(node.devices) * WHOLE_MILLI
    tree = QueueTree(queues)
    tree.check_guarantees(capacities)
    models = set(capacities)
    leaves = {name for name, state in tree.states.items() if name and not state.children}
    for position, (job, _) in enumerate(jobs, start=1):
        asked = [("models", model, models) for model in job.models] + [("queue", job.queue, leaves)]
        for field, name, known in asked:
            if name not in known:
                some = ", ".join(sorted(known)[:_NAMED_MAX]) + (
                    " and others" if len(known) > _NAMED_MAX else ""
                )
                why = f"is not known to this cluster, where jobs may name {some}"
                raise MalformedTrace(file=trace, line=f"of job {position}", field=field, value=name, why=why)


def run_simulation(options: Options, progress: Progress | None = None) -> list[Result]:
    """Run every policy and write `schedule.csv`, `summary.json` and `report.html` into the output folder.

    With several policies the files are of the first one; the others' schedules are `schedule-NAME.csv` and
    their summaries stand under `policies` in `summary.json`.
    """
    if not options.policies:
        raise MalformedOption(field="policy", value="", why="name at least one policy or placement")
    settings = [resolve_policy(name) for name in dict.fromkeys(options.policies)]
    cluster, jobs, queues = load(options)
    options.out.mkdir(parents=True, exist_ok=True)
    results = [simulate_policy(setting, cluster, jobs, queues, progress) for setting in settings]
    _publish(options.out, _files(cluster, results))
    return results


Writer = Callable[[Path], None]


def _files(cluster: Cluster, results: list[Result]) -> dict[str, Writer]:
    """Every file of a run and what writes it."""
    summary = dict(results[0].summary)
    if len(results) > 1:
        summary["policies"] = {result.policy: result.summary for result in results}
    text = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
    rows = [(one.policy, one.outcome, one.summary) for one in results]
    return {
        "schedule.csv": lambda file: write_schedule(file, results[0].outcome),
        **{f"schedule-{one.policy}.csv": _schedule_of(one) for one in results[1:]},
        "summary.json": lambda file: _write(file, text),
        "report.html": lambda file: write_report(file, cluster, rows),
    }


def _schedule_of(result: Result) -> Writer:
    return lambda file: write_schedule(file, result.outcome)


def _write(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")


def _publish(out: Path, files: dict[str, Writer]) -> None:
    """Write all files beside their places and then put them there: whoever is stopped leaves nothing half-written."""
    parts = {name: out / f".{name}.part" for name in files}
    try:
        for name, write in files.items():
            write(parts[name])
        for name, part in parts.items():
            part.replace(out / name)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


def simulate_policy(
    settings: PolicySettings,
    cluster: Cluster,
    jobs: tuple[TraceJob, ...],
    queues: tuple[Queue, ...],
    progress: Progress | None = None,
) -> Result:
    """One policy over prepared jobs."""
    name, total = settings.name, len(jobs)
    told = None if progress is None else lambda arrived: progress(name, arrived, total)
    simulation = Simulation(cluster, jobs, queues, settings, told)
    gc.freeze()  # the trace is not garbage: spare the collector from looking through it again and again
    often = gc.get_threshold()
    gc.set_threshold(_GARBAGE_LET_BE, *often[1:])
    began, began_processor = time.perf_counter(), time.process_time()
    outcome = simulation.run()
    wall_s, processor_s = time.perf_counter() - began, time.process_time() - began_processor
    gc.set_threshold(*often)
    gc.unfreeze()
    return Result(name, outcome, summarise(name, outcome, cluster, wall_s, processor_s))


def seconds(ms: int) -> str:
    """Milliseconds as seconds, exactly."""
    whole, rest = divmod(ms, 1000)
    return f"{whole}.{rest:03d}" if rest else str(whole)


def write_schedule(file: Path, outcome: Outcome) -> None:
    """One line per device of every allocation; an allocation without devices has one line with device -1."""
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(_COLUMNS)
        for run in outcome.runs:
            tail = (seconds(run.start_ms), seconds(run.end_ms), run.end_reason)
            for node, devices in run.placements:
                for device, lo, hi in devices or ((-1, 0, 0),):
                    writer.writerow((run.job.id, run.job.attempt, node, device, lo, hi, *tail))
