"""What a hub that runs survives. Bounds are on instants the database recorded, wide enough for a busy machine."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any

import psutil
import pytest

from benchmarks.chaos import counts, torment
from benchmarks.peers.faults import FAULTS, kill, victims
from benchmarks.peers.ours import Hub
from compute_hub.sdk import HubClient
from kernel.clock import boottime_ms

pytestmark = pytest.mark.slow
PATIENCE_MS = 90_000
WITHIN_S = 10.0
SOURCES = ("raylet", "agent", "head")


@pytest.fixture
def client(hub: Hub) -> Iterator[HubClient]:
    with hub.client() as client:
        yield client


@contextmanager
def mended(hub: Hub) -> Iterator[None]:
    """Dead processes are started again, as `hub up` does."""
    done = threading.Event()

    def mend() -> None:
        while not done.wait(0.2):
            hub.stack.mend()

    thread = threading.Thread(target=mend)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def until(client: HubClient, job_id: str, *states: str, attempt: int = 1) -> dict[str, Any]:
    never, deadline = threading.Event(), boottime_ms() + PATIENCE_MS
    while True:
        job = dict(client.get(f"/v1/jobs/{job_id}"))
        if job["state"] in states and job["attempt"] >= attempt:
            return job
        assert boottime_ms() < deadline, job
        never.wait(0.1)


def scalar(hub: Hub, query: str, *values: object) -> Any:  # noqa: ANN401 - whatever the query returns
    with hub.database() as connection:
        row = connection.execute(query.encode(), values or None).fetchone()
    assert row is not None
    return row[0]


def now(hub: Hub) -> datetime:
    return datetime.fromisoformat(str(scalar(hub, "SELECT clock_timestamp()")))


def given_up_after_s(hub: Hub, job_id: str, since: datetime) -> float:
    """From an instant until the first attempt was over for the hub and its job was queued again."""
    query = "SELECT extract(epoch FROM ended_at - %s) FROM runs WHERE job_id = %s AND attempt = 1"
    return float(scalar(hub, query, since, job_id))


def node_of(hub: Hub, job_id: str) -> str:
    return str(scalar(hub, "SELECT node FROM runs WHERE job_id = %s ORDER BY attempt DESC LIMIT 1", job_id))


def machine_processes(node: str) -> list[psutil.Process]:
    """`hub node` and everything below it, supervisor and raylet included."""
    children = psutil.Process(os.getpid()).children()
    (parent,) = [process for process in children if f" node --name {node}" in command(process)]
    return [parent, *parent.children(recursive=True)]


def command(process: psutil.Process) -> str:
    """Its command line; nothing of one that has ended meanwhile."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def signal_all(processes: list[psutil.Process], number: signal.Signals) -> None:
    """Send a signal to each that is still there: some end as soon as their parent does."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


@pytest.mark.parametrize("part", SOURCES)
def test_jobs_go_on_and_new_ones_start_while_a_part_of_ray_is_killed_and_comes_back(
    hub: Hub, client: HubClient, part: str
) -> None:
    with mended(hub):
        job_id = hub.submit(client, "/usr/bin/sleep", "12")
        until(client, job_id, "running")
        kill(part).strike(hub)
        assert until(client, hub.submit(client, "/usr/bin/true"), "succeeded", "failed")["state"] == "succeeded"
        ended = until(client, job_id, "succeeded", "failed")
    assert (ended["state"], ended["attempt"], ended["end_reason"]) == ("succeeded", 1, "exited")
    used_ms = scalar(hub, "SELECT sum(duration_ms) FROM usage_records WHERE job_id = %s", job_id)
    assert used_ms >= 12_000


def test_a_stopped_and_resumed_leader_changes_nothing(hub: Hub, client: HubClient) -> None:
    job_id = hub.submit(client, "/usr/bin/sleep", "10")
    until(client, job_id, "running")
    epoch = scalar(hub, "SELECT epoch FROM scheduler_leader")
    holder = scalar(hub, "SELECT holder FROM scheduler_leader")
    leader = psutil.Process(int(str(holder).rpartition(":")[2]))
    leader.send_signal(signal.SIGSTOP)
    try:
        other = hub.submit(client, "/usr/bin/true")
        assert until(client, other, "succeeded", "failed")["state"] == "succeeded"
    finally:
        leader.send_signal(signal.SIGCONT)
    assert scalar(hub, "SELECT epoch FROM scheduler_leader") > epoch
    ended = until(client, job_id, "succeeded", "failed")
    assert (ended["state"], ended["attempt"]) == ("succeeded", 1)
    assert counts(hub)["doubled_runs"] == 0


def test_jobs_of_a_partitioned_node_are_queued_again_within_ten_seconds_and_never_run_twice(
    hub: Hub, client: HubClient
) -> None:
    job_id = hub.submit(client, "/usr/bin/sleep", "15", max_retries=3)
    until(client, job_id, "running")
    lost = node_of(hub, job_id)
    frozen = machine_processes(lost)
    since = now(hub)
    signal_all(frozen, signal.SIGSTOP)
    try:
        until(client, job_id, "running", attempt=2)
    finally:
        signal_all(frozen, signal.SIGCONT)
    assert node_of(hub, job_id) != lost
    assert given_up_after_s(hub, job_id, since) <= WITHIN_S
    with mended(hub):
        assert until(client, job_id, "succeeded", "failed", attempt=2)["state"] == "succeeded"
    assert counts(hub)["doubled_runs"] == 0


def test_jobs_of_a_killed_node_are_queued_again_within_ten_seconds(hub: Hub, client: HubClient) -> None:
    job_id = hub.submit(client, "/usr/bin/sleep", "5", max_retries=3)
    until(client, job_id, "running")
    since = now(hub)
    signal_all(machine_processes(node_of(hub, job_id)), signal.SIGKILL)
    until(client, job_id, "running", "succeeded", attempt=2)
    assert given_up_after_s(hub, job_id, since) <= WITHIN_S
    with mended(hub):
        assert until(client, job_id, "succeeded", "failed", attempt=2)["state"] == "succeeded"


def test_after_random_faults_under_load_no_job_is_lost_nothing_ran_twice_and_no_money_is_held(hub: Hub) -> None:
    found = torment(hub, 6, seed=2, say=print, faults=FAULTS)
    assert {name for name, value in found.items() if value} == {"points"}
    assert victims(hub, "api")
