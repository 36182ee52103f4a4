"""What the tests of faults look at: the API, the database and the machine. Every wait is for a condition."""

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from signal import Signals
from typing import Any

import psutil

from benchmarks.peers.faults import victims
from benchmarks.peers.ours import Hub
from compute_hub.sdk import HubClient
from kernel.clock import boottime_ms

PATIENCE_MS = 300_000
"""Ray took a minute and a half to start on two cores that 37 processes wanted."""
PARTS = {
    "api": 1,
    "biller": 1,
    "controller": 2,
    "courier": 2,
    "supervisor": 2,
    "raylet": 2,
    "agent": 2,
    "head": 1,
}


def await_that(what: Callable[[], object], is_so: Callable[[], bool]) -> None:
    """Wait until something is so; `what` is asked for the message when it never is."""
    never, deadline = threading.Event(), boottime_ms() + PATIENCE_MS
    while not is_so():
        assert boottime_ms() < deadline, what()
        never.wait(0.1)


def until(client: HubClient, job_id: str, *states: str, attempt: int = 1) -> dict[str, Any]:
    """The job as soon as it is in one of the states, in this attempt or a later one."""
    seen: list[dict[str, Any]] = []

    def is_there() -> bool:
        seen[:] = [dict(client.get(f"/v1/jobs/{job_id}"))]
        return seen[0]["state"] in states and seen[0]["attempt"] >= attempt

    await_that(lambda: seen, is_there)
    return seen[0]


def await_whole(hub: Hub) -> None:
    """Wait until both nodes are up and every part of the hub and of Ray runs."""

    def missing() -> dict[str, object]:
        found = {part: len(victims(hub, part)) for part in PARTS}
        lacking: dict[str, object] = {part: count for part, count in found.items() if count < PARTS[part]}
        nodes = scalar(hub, "SELECT count(*) FROM nodes WHERE state = 'up'")
        return lacking if nodes == len(hub.stack.settings.nodes) else lacking | {"nodes": nodes}

    await_that(missing, lambda: not missing())


def scalar(hub: Hub, query: str, *values: object) -> Any:  # noqa: ANN401 - whatever the query returns
    with hub.database() as connection:
        row = connection.execute(query.encode(), values or None).fetchone()
    assert row is not None
    return row[0]


def now(hub: Hub) -> datetime:
    """By the database's clock."""
    return datetime.fromisoformat(str(scalar(hub, "SELECT clock_timestamp()")))


def used_ms(hub: Hub, job_id: str, attempt: int = 1) -> int:
    query = "SELECT coalesce(sum(duration_ms), 0) FROM usage_records WHERE job_id = %s AND attempt = %s"
    return int(scalar(hub, query, job_id, attempt))


def given_up_after_s(hub: Hub, job_id: str, since: datetime) -> float:
    """From an instant until the first attempt was over for the hub and its job was queued again."""
    query = "SELECT extract(epoch FROM ended_at - %s) FROM runs WHERE job_id = %s AND attempt = 1"
    return float(scalar(hub, query, since, job_id))


def node_of(hub: Hub, job_id: str, attempt: int) -> str:
    return str(scalar(hub, "SELECT node FROM runs WHERE job_id = %s AND attempt = %s", job_id, attempt))


def machine_processes(hub: Hub, node: str) -> list[psutil.Process]:
    """`hub node` and everything below it: supervisor, Ray, sandboxes and what runs in them."""
    found = []
    for process in psutil.Process(os.getpid()).children():
        with suppress(psutil.Error):
            mine = process.environ().get("HUB_STATE_DIRECTORY") == str(hub.stack.settings.state_directory)
            if mine and f" node --name {node}" in " ".join(process.cmdline()):
                found += [process, *process.children(recursive=True)]
    return found


def without(processes: Sequence[psutil.Process], roots: Sequence[psutil.Process]) -> list[psutil.Process]:
    """These processes but for some of them and what is below those."""
    below = {one.pid for root in roots for one in (root, *root.children(recursive=True))}
    return [process for process in processes if process.pid not in below]


def signal_all(processes: Sequence[psutil.Process], number: Signals) -> None:
    """Send a signal to each that is still there: some end as soon as their parent does."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)
