"""Readers of cluster files: the hub's JSON, and the node list of alibaba/clusterdata openb."""

from pathlib import Path
from typing import Any, Final

from scheduler.policy.model import DeviceState, Node, Queue, Quota, Reservation
from scheduler.simulator.errors import EmptyTrace, MalformedTrace
from scheduler.simulator.rows import Row, csv_rows, json_of, text_of
from scheduler.simulator.workload import Cluster, Failure

DEVICES_MAX: Final = 1024
NODES_MAX: Final = 100_000
"""As many as one entry may stand for."""


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
    nodes: dict[str, Node] = {}
    for row in csv_rows(file):
        devices = tuple(DeviceState(index) for index in range(row.whole("gpu", most=DEVICES_MAX)))
        node = Node(
            row.text("sn"), row.text("model", "CPU"), devices, row.whole("cpu_milli"), row.whole("memory_mib")
        )
        _once(row, "sn", node.name, nodes)
        nodes[node.name] = node
    return Cluster(tuple(nodes.values()))


def _once(row: Row, field: str, name: str, known: dict[str, Any]) -> None:
    if name in known:
        raise row.refuse(field, name, "occurs twice")


def _hub_cluster(file: Path) -> Cluster:
    data = json_of(file, 1, text_of(file), "(file)")
    whole = Row(file, 1, data).only(("nodes", "queues", "reservations", "failures"))
    nodes: dict[str, Node] = {}
    for place, values in enumerate(whole.rows("nodes"), start=1):
        row = Row(file, place, values)
        for node in _machines(row):
            _once(row, "nodes.name", node.name, nodes)
            nodes[node.name] = node
    queues: dict[str, Queue] = {}
    for place, values in enumerate(whole.rows("queues"), start=1):
        queue = _queue(file, place, values)
        _once(Row(file, place, values), "queues.name", queue.name, queues)
        queues[queue.name] = queue
    reservations = [
        _reservation(Row(file, place, values))
        for place, values in enumerate(whole.rows("reservations"), start=1)
    ]
    failures = [
        _failure(Row(file, place, values)) for place, values in enumerate(whole.rows("failures"), start=1)
    ]
    for place, kept in enumerate(reservations, start=1):
        _check_nodes(file, place, "reservations.nodes", kept.nodes, set(nodes))
    for place, failure in enumerate(failures, start=1):
        _check_nodes(file, place, "failures.node", (failure.node,), set(nodes))
        _check_overlap(file, place, failure, failures[: place - 1])
    return Cluster(tuple(nodes.values()), tuple(queues.values()), tuple(reservations), tuple(failures))


def _reservation(row: Row) -> Reservation:
    row.only(("id", "nodes", "from_s", "to_s", "for_jobs", "for_tenant"))
    from_ms, to_ms = row.milliseconds("from_s"), row.milliseconds("to_s")
    if to_ms <= from_ms:
        raise row.refuse("reservations.to_s", to_ms / 1000, "is not after from_s")
    for_jobs = frozenset(row.words("for_jobs"))
    return Reservation(row.text("id"), row.words("nodes"), from_ms, to_ms, for_jobs, row.text("for_tenant", ""))


def _failure(row: Row) -> Failure:
    row.only(("node", "at_s", "back_s"))
    at_ms, back_ms = row.milliseconds("at_s"), row.milliseconds("back_s", 0) or None
    if back_ms is not None and back_ms <= at_ms:
        raise row.refuse("failures.back_s", back_ms / 1000, "is not after at_s")
    return Failure(row.text("node"), at_ms, back_ms)


def _check_overlap(file: Path, place: int, failure: Failure, earlier: list[Failure]) -> None:
    for other in earlier:
        begins_in = other.at_ms <= failure.at_ms and (other.back_ms is None or failure.at_ms < other.back_ms)
        holds_its = failure.at_ms <= other.at_ms and (failure.back_ms is None or other.at_ms < failure.back_ms)
        if other.node == failure.node and (begins_in or holds_its):
            why = "is lost already then, by another failure of this file"
            raise MalformedTrace(file=file, line=place, field="failures.node", value=failure.node, why=why)


def _check_nodes(file: Path, place: int, field: str, names: tuple[str, ...], known: set[str]) -> None:
    for name in names:
        if name not in known:
            some = ", ".join(sorted(known)[:8])
            why = f"is no node of this cluster; it has {some}" + (" and others" if len(known) > 8 else "")  # noqa: PLR2004 - as many as are named
            raise MalformedTrace(file=file, line=place, field=field, value=name, why=why)


def _machines(row: Row) -> list[Node]:
    """One entry may stand for `count` equal machines, named `name-0000` and so on."""
    row.only(("name", "model", "devices", "count", "cpu_milli", "memory_mib", "pflops", "topology"))
    count = row.whole("count", 1, least=1, most=NODES_MAX)
    name = row.text("name")
    devices = tuple(DeviceState(index) for index in range(row.whole("devices", most=DEVICES_MAX)))
    topology = row.words("topology")
    return [
        Node(
            name if count == 1 else f"{name}-{number:04d}",
            row.text("model"),
            devices,
            row.whole("cpu_milli", 2**40),
            row.whole("memory_mib", 2**40),
            round(row.number("pflops", 0) * 1000),
            topology,
        )
        for number in range(count)
    ]


_QUEUE_FIELDS: Final = (
    "name", "parent", "quotas", "max_wait_s", "half_life_s", "user_running_max", "running_max",
)  # fmt: skip


def _queue(file: Path, place: int, values: dict[str, Any]) -> Queue:
    row = Row(file, place, values).only(_QUEUE_FIELDS)
    quotas = {}
    written = values.get("quotas", {})
    if not isinstance(written, dict) or not all(isinstance(quota, dict) for quota in written.values()):
        raise row.refuse("quotas", written, "is not an object of one object per accelerator model")
    for pool, quota in written.items():
        inner = Row(file, place, quota).only(("guarantee", "borrow", "lend", "weight"))
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
