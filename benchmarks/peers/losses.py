"""How long the hub takes to notice that a node is lost or its leader stands still, on instants the database recorded.

A node is killed (every process), cut off (its supervisor and jobs go on, nobody reaches them) or frozen (its jobs go
on, nothing else). Slow machines are slow: the bounds are judged by `benchmarks.chaos`, the tests judge what happens.
"""

import json
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any, Final

import psutil

from benchmarks.peers.faults import own_processes, send_signal, victims
from benchmarks.peers.mending import Mender
from benchmarks.peers.ours import Hub, NotDone
from compute_hub.sdk import HubClient
from kernel.clock import boottime_ms

LOSSES: Final = ("killed", "cut off", "frozen")
REQUEUED_WITHIN_S: Final = 10.0
TAKEN_OVER_WITHIN_S: Final = 1.0
"""After the lapse of the leader's lease."""
_PATIENCE_S: Final = 300
_LOOK_S: Final = 0.1


def noticed(hub: Hub, mender: Mender) -> dict[str, float]:
    """Each loss once and a leader that stands still: `requeue_s`, the longest, and `takeover_s`. Raises NotDone."""
    return {"requeue_s": max(requeue_s(hub, mender, how) for how in LOSSES), "takeover_s": takeover_s(hub)}


def requeue_s(hub: Hub, mender: Mender, how: str) -> float:
    """From the loss of a node until its job was queued again. Raises NotDone."""
    with hub.client() as client:
        job_id = hub.submit(client, "/usr/bin/sleep", "600", max_retries=3, time_limit_s=700)
        _await(hub, "no job ran", lambda: _runs(client, job_id, 1))
        with losing(hub, mender, node_of(hub, job_id, 1), how):
            since = now(hub)
            _await(hub, f"the job of a node that was {how} did not run again", lambda: _runs(client, job_id, 2))
        client.post(f"/v1/jobs/{job_id}:cancel")
    query = "SELECT extract(epoch FROM ended_at - %s) FROM runs WHERE job_id = %s AND attempt = 1"
    return round(float(scalar(hub, query, since, job_id)), 2)


def takeover_s(hub: Hub) -> float:
    """From the moment a leader stood still until another led. Raises NotDone."""
    process, epoch = leader(hub)
    since = now(hub)
    with stopped([process]):
        _await(hub, "nobody else led", lambda: epochs(hub, epoch))
    return round((datetime.fromisoformat(epochs(hub, epoch)[0]["timestamp"]) - since).total_seconds(), 2)


@contextmanager
def losing(hub: Hub, mender: Mender, node: str, how: str) -> Iterator[None]:
    """While the block runs the node is lost, in one of the ways of `LOSSES`; nothing is started again meanwhile."""
    if how == "killed":
        with mender.held_off():
            send_signal(struck(hub, node, how), signal.SIGKILL)
            yield
        return
    with stopped(struck(hub, node, how)):
        yield


def struck(hub: Hub, node: str, how: str) -> list[psutil.Process]:
    """The processes that are killed or stand still when a node is lost in such a way."""
    found = machine_processes(hub, node)
    if how == "killed":
        return found
    supervisors = [one for one in victims(hub, "supervisor") if node in one.cmdline()[-1]]
    spared = supervisors if how == "cut off" else [child for one in supervisors for child in one.children()]
    return _without(found, spared)


@contextmanager
def stopped(processes: Sequence[psutil.Process]) -> Iterator[None]:
    """SIGSTOP while the block runs."""
    send_signal(processes, signal.SIGSTOP)
    try:
        yield
    finally:
        send_signal(processes, signal.SIGCONT)


def leader(hub: Hub) -> tuple[psutil.Process, int]:
    """The process of the controller that leads, and its epoch."""
    holder = str(scalar(hub, "SELECT holder FROM scheduler_leader"))
    epoch = int(scalar(hub, "SELECT epoch FROM scheduler_leader"))
    return psutil.Process(int(holder.rpartition(":")[2])), epoch


def epochs(hub: Hub, after: int) -> list[dict[str, Any]]:
    """What controllers wrote down when they began to lead in a later epoch."""
    return [line for line in said_by_controllers(hub, "leading") if line["epoch"] > after]


def said_by_controllers(hub: Hub, event: str) -> list[dict[str, Any]]:
    """What controllers wrote down of such an event."""
    lines = [line for log in hub.stack.logs.glob("controller*.log") for line in log.read_text().splitlines()]
    said = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
    return [line for line in said if line.get("event") == event]


def scalar(hub: Hub, query: str, *values: object) -> Any:  # noqa: ANN401 - whatever the query returns
    """The first value of the first row; a query that finds none is wrong."""
    with hub.database() as connection:
        row = connection.execute(query.encode(), values or None).fetchone()
    assert row is not None  # noqa: S101 - a programming error
    return row[0]


def now(hub: Hub) -> datetime:
    """By the database's clock."""
    return datetime.fromisoformat(str(scalar(hub, "SELECT clock_timestamp()")))


def node_of(hub: Hub, job_id: str, attempt: int) -> str:
    """Where an attempt runs or ran."""
    return str(scalar(hub, "SELECT node FROM runs WHERE job_id = %s AND attempt = %s", job_id, attempt))


def machine_processes(hub: Hub, node: str) -> list[psutil.Process]:
    """`hub node` and everything below it: supervisor, Ray, sandboxes and what runs in them."""
    found = []
    for process in own_processes(hub):
        with suppress(psutil.Error):
            if f" node --name {node}" in " ".join(process.cmdline()):
                found += [process, *process.children(recursive=True)]
    return found


def _without(processes: Sequence[psutil.Process], roots: Sequence[psutil.Process]) -> list[psutil.Process]:
    """These processes but for some of them and what is below those."""
    below = {root.pid for root in roots}
    for root in roots:
        with suppress(psutil.NoSuchProcess):  # a job that has just ended
            below |= {one.pid for one in root.children(recursive=True)}
    return [process for process in processes if process.pid not in below]


def _runs(client: HubClient, job_id: str, attempt: int) -> bool:
    job = client.get(f"/v1/jobs/{job_id}")
    return bool(job["state"] == "running" and job["attempt"] >= attempt)


def _await(hub: Hub, what: str, is_so: Callable[[], object]) -> None:
    never, deadline = threading.Event(), boottime_ms() + _PATIENCE_S * 1000
    while not is_so():
        if boottime_ms() > deadline:
            raise NotDone(what=what, seconds=_PATIENCE_S, logs=hub.stack.logs)
        never.wait(_LOOK_S)
