"""What a hub that runs survives. Bounds are promises of the hub, on instants the database recorded."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import psutil
import pytest

from benchmarks.chaos import counts, torment
from benchmarks.peers.faults import kill, kill_database_backend, victims
from benchmarks.peers.mending import Mender
from benchmarks.peers.ours import Hub
from compute_hub.sdk import HubClient
from tests.chaos.watching import (
    await_that,
    await_whole,
    given_up_after_s,
    machine_processes,
    node_of,
    now,
    scalar,
    signal_all,
    until,
    used_ms,
    without,
)

pytestmark = pytest.mark.slow
WITHIN_S = 10.0
BEAT = ("/bin/sh", "-c", "while :; do cat /proc/uptime >> /job/beats; sleep 0.1; done")
"""A program that says on the host's own clock when it ran."""


def beats(hub: Hub, job_id: str, attempt: int) -> list[float]:
    """When an attempt of BEAT ran, in seconds since the host was started."""
    tenant = scalar(hub, "SELECT tenant_id FROM jobs WHERE id = %s", job_id)
    file = hub.stack.settings.workspaces / str(tenant) / job_id / f"attempt-{attempt}" / "rank-0" / "beats"
    return [float(line.split()[0]) for line in file.read_text().splitlines()]


@contextmanager
def stopped(processes: list[psutil.Process]) -> Iterator[None]:
    """SIGSTOP while the block runs."""
    signal_all(processes, signal.SIGSTOP)
    try:
        yield
    finally:
        signal_all(processes, signal.SIGCONT)


def cancel(client: HubClient, job_id: str) -> None:
    client.post(f"/v1/jobs/{job_id}:cancel")


def test_ray_listens_on_the_loopback_address_asks_for_its_token_and_no_job_reaches_it(
    hub: Hub, client: HubClient
) -> None:
    parts = [process for part in ("head", "raylet", "agent", "courier") for process in victims(hub, part)]
    open_at = {at.laddr for part in parts for at in part.net_connections("inet") if at.status == "LISTEN"}
    assert {address.ip.removeprefix("::ffff:") for address in open_at} == {"127.0.0.1"}
    ports = " ".join(str(address.port) for address in sorted(open_at))
    knock = f"for p in {ports}; do (exec 3<>/dev/tcp/127.0.0.1/$p) && echo reached $p; done; echo tried"
    job_id = hub.submit(client, "/bin/bash", "-c", knock)
    until(client, job_id, "succeeded")
    said = client.log(job_id).decode()
    assert "reached" not in said
    assert said.endswith("tried\n")
    head = f"127.0.0.1:{hub.stack.settings.ray_port}"
    ask = f"from ray._raylet import GcsClient; print(GcsClient(address={head!r}).get_all_node_info(timeout=5))"
    stranger = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 32}
    answer = subprocess.run(
        [sys.executable, "-c", ask], env=stranger, capture_output=True, text=True, check=False
    )
    assert answer.returncode != 0
    assert "node-1" not in answer.stdout
    assert "token" in answer.stderr.lower()


@pytest.mark.parametrize("part", ["raylet", "agent", "head"])
def test_jobs_go_on_and_new_ones_start_while_a_part_of_ray_is_killed_and_comes_back(
    hub: Hub, client: HubClient, part: str
) -> None:
    job_id = hub.submit(client, "/usr/bin/sleep", "600", time_limit_s=700)
    until(client, job_id, "running")
    struck = victims(hub, part)[0]
    kill(part).strike(hub)
    before_ms = used_ms(hub, job_id)
    until(client, hub.submit(client, "/usr/bin/true"), "succeeded")
    await_that(lambda: (part, struck), lambda: not struck.is_running())
    await_whole(hub)
    until(client, hub.submit(client, "/usr/bin/true"), "succeeded")
    await_that(lambda: before_ms, lambda: used_ms(hub, job_id) > before_ms + 1000)
    cancel(client, job_id)
    assert until(client, job_id, "cancelled")["attempt"] == 1
    assert counts(hub)["unmetered_ms"] == 0


def test_a_standby_takes_over_in_time_and_a_stopped_and_resumed_leader_changes_nothing(
    hub: Hub, client: HubClient
) -> None:
    job_id = hub.submit(client, "/usr/bin/sleep", "600", time_limit_s=700)
    until(client, job_id, "running")
    holder, epoch = (
        str(scalar(hub, "SELECT holder FROM scheduler_leader")),
        int(scalar(hub, "SELECT epoch FROM scheduler_leader")),
    )
    old = psutil.Process(int(holder.rpartition(":")[2]))
    lease_s = hub.stack.settings.leader_lease_ms / 1000
    since = now(hub)
    with stopped([old]):
        await_that(
            lambda: epoch, lambda: any(line["epoch"] > epoch for line in said_by_controllers(hub, "leading"))
        )
        won = next(line for line in said_by_controllers(hub, "leading") if line["epoch"] > epoch)
        assert (datetime.fromisoformat(won["timestamp"]) - since).total_seconds() <= lease_s + 1
        until(client, hub.submit(client, "/usr/bin/true"), "succeeded")
    lost = f"{holder} of epoch {epoch} "
    await_that(
        lambda: lost,
        lambda: any(lost in line["reason"] for line in said_by_controllers(hub, "leadership_lost")),
    )
    until(client, hub.submit(client, "/usr/bin/true"), "succeeded")
    cancel(client, job_id)
    assert until(client, job_id, "cancelled")["attempt"] == 1
    assert counts(hub)["doubled_runs"] == 0


def said_by_controllers(hub: Hub, event: str) -> list[dict[str, Any]]:
    """What controllers wrote down of such an event."""
    lines = [line for log in hub.stack.logs.glob("controller*.log") for line in log.read_text().splitlines()]
    said = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
    return [line for line in said if line.get("event") == event]


@pytest.mark.parametrize("frozen", [False, True], ids=["cut off", "frozen"])
def test_jobs_of_a_lost_node_are_queued_again_within_ten_seconds_never_run_twice_and_cost_nothing(
    hub: Hub, client: HubClient, *, frozen: bool
) -> None:
    job_id = hub.submit(client, *BEAT, max_retries=3)
    until(client, job_id, "running")
    await_that(lambda: job_id, lambda: used_ms(hub, job_id) > 0)
    lost = node_of(hub, job_id, 1)
    sandboxes, supervisors = [], [one for one in victims(hub, "supervisor") if lost in one.cmdline()[-1]]
    for supervisor in supervisors:
        sandboxes += supervisor.children()
    since = now(hub)
    with stopped(without(machine_processes(hub, lost), sandboxes if frozen else supervisors)):
        until(client, job_id, "running", attempt=2)
    assert node_of(hub, job_id, 2) != lost
    assert given_up_after_s(hub, job_id, since) <= WITHIN_S
    await_that(lambda: job_id, lambda: bool(beats(hub, job_id, 2)))
    assert beats(hub, job_id, 1)[-1] < beats(hub, job_id, 2)[0]
    cancel(client, job_id)
    until(client, job_id, "cancelled")
    await_settled(hub, job_id)
    assert counts(hub) == {"doubled_runs": 0, "orphan_processes": 0, "orphan_holds": 0, "unmetered_ms": 0}


def test_jobs_of_a_killed_node_are_queued_again_within_ten_seconds_and_what_was_lost_is_given_back(
    hub: Hub, client: HubClient, mender: Mender
) -> None:
    job_id = hub.submit(client, *BEAT, max_retries=3)
    until(client, job_id, "running")
    await_that(lambda: job_id, lambda: used_ms(hub, job_id) > 0)
    since = now(hub)
    with mender.held_off():
        signal_all(machine_processes(hub, node_of(hub, job_id, 1)), signal.SIGKILL)
        until(client, job_id, "running", attempt=2)
    assert given_up_after_s(hub, job_id, since) <= WITHIN_S
    await_that(lambda: job_id, lambda: bool(beats(hub, job_id, 2)))
    assert beats(hub, job_id, 1)[-1] < beats(hub, job_id, 2)[0]
    cancel(client, job_id)
    until(client, job_id, "cancelled")
    await_settled(hub, job_id)


def await_settled(hub: Hub, job_id: str) -> None:
    """The lost attempt is metered to its last confirmation, and all that was charged of it is back where it was."""
    final = "SELECT count(*) FROM usage_records WHERE job_id = %s AND final"
    await_that(lambda: "no final record", lambda: scalar(hub, final, job_id) == 2)
    assert used_ms(hub, job_id, 1) > 0
    released = "SELECT state FROM job_funding WHERE job_id = %s"
    await_that(lambda: "hold not released", lambda: scalar(hub, released, job_id) == "released")
    back = (
        "SELECT coalesce(sum(amount_micros), 0) - (SELECT coalesce(sum(restored_micros), 0) FROM lost_attempts"
        " WHERE job_id = c.job_id) FROM charges c WHERE attempt = 1 AND job_id = %s GROUP BY job_id"
    )
    assert scalar(hub, back, job_id) == 0


def test_after_random_faults_under_load_no_job_is_lost_nothing_ran_twice_and_no_money_is_held(hub: Hub) -> None:
    faults = [kill(part) for part in ("api", "controller", "courier", "biller", "supervisor")]
    found = torment(hub, 6, seed=2, say=print, faults=[*faults, kill_database_backend()])
    assert {name for name, value in found.items() if value} == {"points"}
