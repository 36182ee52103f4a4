"""Readers of cluster files: the hub's JSON, and the node list of alibaba/clusterdata openb."""

import csv
import json
from pathlib import Path
from typing import Any

from scheduler.policy.model import DeviceState, Node, Queue, Quota, Reservation
from scheduler.simulator.errors import EmptyTrace, MalformedTrace
from scheduler.simulator.readers import Row
from scheduler.simulator.workload import Cluster, Failure


def read_cluster(file: Path) -> Cluster:
    """The cluster of a file: `.csv` is an openb node list, everything else the hub's JSON.

    Raises:
        MalformedTrace: with file, line (or place) and field. EmptyTrace: without a node.
    """
    cluster = _openb_nodes(file) if file.suffix == ".csv" else _hub_cluster(file)
    if not cluster.nodes:
        raise EmptyTrace(file=file, field="nodes", noun="node")
    return cluster


def _openb_nodes(file: Path) -> Cluster:
    nodes = []
    with file.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        for values in reader:
            row = Row(file, reader.line_num, dict(values))
            nodes.append(
                Node(
                    row.text("sn"),
                    row.text("model", "CPU"),
                    tuple(DeviceState(index) for index in range(row.whole("gpu"))),
                    row.whole("cpu_milli"),
                    row.whole("memory_mib"),
                )
            )
    return Cluster(tuple(nodes))


def _hub_cluster(file: Path) -> Cluster:
    try:
        data: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise MalformedTrace(
            file=file, line=error.lineno, field="(file)", value=error.pos, why=f"is not JSON: {error.msg}"
        ) from None
    if type(data) is not dict:
        raise MalformedTrace(file=file, line=1, field="(file)", value=data, why="is not a JSON object")
    nodes: list[Node] = []
    for place, values in enumerate(_rows(file, data, "nodes"), start=1):
        nodes += _machines(Row(file, place, values), values.get("topology", []))
    queues = [_queue(file, place, values) for place, values in enumerate(_rows(file, data, "queues"), start=1)]
    reservations = []
    for place, values in enumerate(_rows(file, data, "reservations"), start=1):
        row = Row(file, place, values)
        reservations.append(
            Reservation(
                row.text("id"),
                tuple(values.get("nodes", [])),
                row.milliseconds("from_s"),
                row.milliseconds("to_s"),
                frozenset(values.get("for_jobs", [])),
            )
        )
    failures = []
    for place, values in enumerate(_rows(file, data, "failures"), start=1):
        row = Row(file, place, values)
        back_ms = row.milliseconds("back_s", 0) or None
        failures.append(Failure(row.text("node"), row.milliseconds("at_s"), back_ms))
    known = {node.name for node in nodes}
    for place, kept in enumerate(reservations, start=1):
        _check_nodes(file, place, "reservations.nodes", kept.nodes, known)
    for place, failure in enumerate(failures, start=1):
        _check_nodes(file, place, "failures.node", (failure.node,), known)
    return Cluster(tuple(nodes), tuple(queues), tuple(reservations), tuple(failures))


def _check_nodes(file: Path, place: int, field: str, names: tuple[str, ...], known: set[str]) -> None:
    for name in names:
        if name not in known:
            some = ", ".join(sorted(known)[:8])
            why = f"is no node of this cluster; it has {some}" + (" and others" if len(known) > 8 else "")  # noqa: PLR2004 - as many as are named
            raise MalformedTrace(file=file, line=place, field=field, value=name, why=why)


def _rows(file: Path, data: dict[str, Any], field: str) -> list[dict[str, Any]]:
    rows = data.get(field, [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise MalformedTrace(
            file=file, line=1, field=field, value=type(rows).__name__, why="is not a list of objects"
        )
    return rows


def _machines(row: Row, topology: list[str]) -> list[Node]:
    """One entry may stand for `count` equal machines, named `name-0000` and so on."""
    count = row.whole("count", 1, least=1)
    name = row.text("name")
    devices = tuple(DeviceState(index) for index in range(row.whole("devices")))
    return [
        Node(
            name if count == 1 else f"{name}-{number:04d}",
            row.text("model"),
            devices,
            row.whole("cpu_milli", 2**40),
            row.whole("memory_mib", 2**40),
            round(row.number("pflops", 0) * 1000),
            tuple(topology),
        )
        for number in range(count)
    ]


def _queue(file: Path, place: int, values: dict[str, Any]) -> Queue:
    row = Row(file, place, values)
    quotas = {}
    written = values.get("quotas", {})
    if not isinstance(written, dict) or not all(isinstance(quota, dict) for quota in written.values()):
        raise row.refuse("quotas", written, "is not an object of one object per accelerator model")
    for pool, quota in written.items():
        inner = Row(file, place, quota)
        quotas[pool] = Quota(
            round(inner.number("guarantee", 0) * 1000),
            None if quota.get("borrow") is None else round(inner.number("borrow") * 1000),
            None if quota.get("lend") is None else round(inner.number("lend") * 1000),
            inner.whole("weight", 1, least=1),
        )
    return Queue(
        row.text("name"),
        row.text("parent", "") or None,
        quotas,
        max_wait_ms=row.milliseconds("max_wait_s", 0) or None,
        half_life_ms=row.milliseconds("half_life_s", 86_400, least=1),
        user_running_max=row.whole("user_running_max", 0) or None,
        running_max=row.whole("running_max", 0) or None,
    )
