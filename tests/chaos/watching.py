"""What the tests of faults look at: the API, the database and the machine. Every wait is for a condition."""

import threading
from collections.abc import Callable
from typing import Any

from benchmarks.peers.faults import victims
from benchmarks.peers.losses import scalar
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


def used_ms(hub: Hub, job_id: str, attempt: int = 1) -> int:
    query = "SELECT coalesce(sum(duration_ms), 0) FROM usage_records WHERE job_id = %s AND attempt = %s"
    return int(scalar(hub, query, job_id, attempt))
