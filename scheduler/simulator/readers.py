"""Readers of trace formats: each line becomes a job, or a refusal with the file, the line and the field."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Final, NamedTuple

from scheduler.policy.model import WHOLE_MILLI, Job, Topology
from scheduler.simulator.errors import EmptyTrace, MalformedTrace, UnknownFormat
from scheduler.simulator.rows import Row, csv_rows, json_of, text_of
from scheduler.simulator.workload import TraceJob


class Layout(NamedTuple):
    """What a reader must know of the cluster: how many devices make a whole node."""

    devices_per_node: int


def gang_of(job: Job, devices: int, devices_per_node: int) -> Job:
    """Spread so many devices over whole nodes, and what is left over one more node that is empty."""
    if devices <= devices_per_node:
        return replace(job, devices_per_node=devices)
    nodes, rest = divmod(devices, devices_per_node)
    return replace(job, nodes=nodes, devices_per_node=devices_per_node, tail_devices=rest)


def _elasticflow(file: Path, layout: Layout) -> Iterator[TraceJob]:
    """`job_id, submission_time, duration, num_gpu`, times in seconds (microsoft/elasticflow-traces)."""
    for row in csv_rows(file):
        duration_ms = row.milliseconds("duration", least=0.001)
        job = Job(
            id=row.text("job_id"),
            queue="main",
            submitted_ms=row.milliseconds("submission_time"),
            time_limit_ms=duration_ms,
            estimate_ms=duration_ms,
        )
        yield TraceJob(gang_of(job, row.whole("num_gpu", least=1), layout.devices_per_node), duration_ms)


def _openb(file: Path, _layout: Layout) -> Iterator[TraceJob]:
    """Pods of alibaba/clusterdata `cluster-trace-gpu-v2023`; lists without times arrive at once and stay."""
    for row in csv_rows(file):
        created_ms = row.milliseconds("creation_time", 0)
        started_ms = row.milliseconds("scheduled_time", created_ms / 1000)
        duration_ms = max(1000, row.milliseconds("deletion_time", 0) - started_ms)
        milli = row.whole("gpu_milli", least=1, most=WHOLE_MILLI) if row.whole("num_gpu") else WHOLE_MILLI
        job = Job(
            id=row.text("name"),
            queue="main",
            submitted_ms=created_ms,
            time_limit_ms=duration_ms,
            estimate_ms=duration_ms,
            models=row.words("gpu_spec"),
            devices_per_node=row.whole("num_gpu"),
            slots_milli=milli,
            cpu_milli=row.whole("cpu_milli"),
            memory_mib=row.whole("memory_mib"),
        )
        yield TraceJob(job, duration_ms)


_SWF_FIELDS: Final = (
    "job", "submit", "wait", "run", "allocated", "cpu_used", "memory_used", "requested", "requested_time",
    "requested_memory", "status", "user", "group", "executable", "queue", "partition", "preceding", "think",
)  # fmt: skip


_SWF_PARTIAL: Final = frozenset({2, 3, 4})
"""Status of a line about part of a job (swapped out, checkpointed); the line before it is about the whole."""


def _swf(file: Path, layout: Layout) -> Iterator[TraceJob]:
    """The Standard Workload Format: 18 fields, `;` comments, -1 for unknown; a processor is a device.

    Comments of archived traces are in any encoding; the fields are numbers.
    """
    for number, line in enumerate(file.read_text("utf-8-sig", errors="replace").splitlines(), start=1):
        words = line.split()
        if not words or words[0].startswith(";"):
            continue
        row = Row(file, number, dict(zip(_SWF_FIELDS, words, strict=False)))
        if len(words) != len(_SWF_FIELDS):
            raise row.refuse("(line)", len(words), f"fields instead of {len(_SWF_FIELDS)}")
        run_s = row.number("run", least=-1)
        devices = max(row.whole("requested", least=-1), row.whole("allocated", least=-1))
        if row.number("status", least=-1) in _SWF_PARTIAL:
            continue
        if run_s <= 0 or devices < 1:
            continue  # cancelled before it ran: the format's own way of saying that nothing was used
        asked_s = row.number("requested_time", least=-1)
        duration_ms = round(run_s * 1000)
        job = Job(
            id=row.text("job"),
            queue="main",
            submitted_ms=row.milliseconds("submit"),
            time_limit_ms=max(duration_ms, round(asked_s * 1000)),
            estimate_ms=round(asked_s * 1000) if asked_s > 0 else None,
            user=_if_known(row, "user"),
            name=_if_known(row, "executable"),
        )
        yield TraceJob(gang_of(job, devices, layout.devices_per_node), duration_ms)


def _if_known(row: Row, field: str) -> str:
    text = row.text(field, "")
    return "" if text == "-1" else text


_HUB_FIELDS: Final = (
    "job_id", "submitted_s", "duration_s", "queue", "tenant", "user", "name", "models", "min_pflops", "nodes",
    "devices", "tail_devices", "slots_milli", "cpu_milli", "memory_mib", "time_limit_s", "estimate_s", "priority",
    "preemptible", "topology", "not_before_s", "depends_on", "array_id", "array_running_max",
)  # fmt: skip


def _hub_job(row: Row) -> TraceJob:
    row.only(_HUB_FIELDS)
    duration_ms = row.milliseconds("duration_s", least=0.001)
    estimate_s = row.number("estimate_s", 0)
    try:
        topology = Topology(row.text("topology", Topology.PACK.value))
    except ValueError:
        known = ", ".join(one.value for one in Topology)
        raise row.refuse("topology", row.text("topology"), f"is not one of {known}") from None
    job = Job(
        id=row.text("job_id"),
        queue=row.text("queue", "main"),
        submitted_ms=row.milliseconds("submitted_s"),
        time_limit_ms=row.milliseconds("time_limit_s", ceil(duration_ms / 1000), least=0.001),
        tenant=row.text("tenant", ""),
        user=row.text("user", ""),
        name=row.text("name", ""),
        models=row.words("models"),
        min_pflops_milli=round(row.number("min_pflops", 0) * 1000),
        nodes=row.whole("nodes", 1, least=1),
        devices_per_node=row.whole("devices", 1),
        tail_devices=row.whole("tail_devices", 0),
        slots_milli=row.whole("slots_milli", WHOLE_MILLI, least=1, most=WHOLE_MILLI),
        cpu_milli=row.whole("cpu_milli", 0),
        memory_mib=row.whole("memory_mib", 0),
        priority=row.whole("priority", 0, least=-(2**31)),
        preemptible=row.yes("preemptible"),
        topology=topology,
        not_before_ms=row.milliseconds("not_before_s", 0),
        depends_on=row.words("depends_on"),
        estimate_ms=round(estimate_s * 1000) or None,
        array_id=row.text("array_id", ""),
        array_running_max=row.whole("array_running_max", 0),
    )
    return TraceJob(job, duration_ms)


def _hub_csv(file: Path, _layout: Layout) -> Iterator[TraceJob]:
    """The hub's own columns, as `scheduler/README.md` lists them; lists are joined with `|`."""
    return map(_hub_job, csv_rows(file))


def _hub_json(file: Path, _layout: Layout) -> Iterator[TraceJob]:
    """The same fields, one JSON object per line."""
    for number, line in enumerate(text_of(file).split("\n"), start=1):
        if line.strip():
            yield _hub_job(Row(file, number, json_of(file, number, line, "(line)")))


Reader = Callable[[Path, Layout], Iterator[TraceJob]]

READERS: Final[dict[str, Reader]] = {
    "elasticflow": _elasticflow,
    "openb": _openb,
    "swf": _swf,
    "csv": _hub_csv,
    "json": _hub_json,
}
"""Readers by the names that `hub simulate --format` takes."""


def read_trace(file: Path, format_name: str, devices_per_node: int) -> tuple[TraceJob, ...]:
    """The jobs of a trace file.

    Args:
        file: the trace.
        format_name: one of READERS.
        devices_per_node: how formats that only know a count of devices spread them over nodes.

    Raises:
        UnknownFormat: with the formats there are.
        MalformedTrace: with file, line and field.
        EmptyTrace: a file without jobs.
    """
    reader = READERS.get(format_name)
    if reader is None:
        raise UnknownFormat(field="format", name=format_name, known=", ".join(READERS))
    jobs = tuple(reader(file, Layout(devices_per_node)))
    if not jobs:
        raise EmptyTrace(file=file, field="jobs", noun="job")
    seen: set[str] = set()
    for position, (job, _) in enumerate(jobs, start=1):
        if job.id in seen:
            raise MalformedTrace(
                file=file, line=f"of job {position}", field="job_id", value=job.id, why="occurs twice"
            )
        seen.add(job.id)
    return jobs
