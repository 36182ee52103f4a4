"""What a hub that runs survives; `benchmarks.chaos` measures how soon."""

import os
import signal
import subprocess
import sys

import pytest

from benchmarks.chaos import torment
from benchmarks.peers.faults import kill, send_signal, together, victims
from benchmarks.peers.incidents import backend, database_ends
from benchmarks.peers.losses import (
    LOSSES,
    epochs,
    leader,
    losing,
    node_of,
    said_by_controllers,
    scalar,
    stopped,
)
from benchmarks.peers.mending import Mender
from benchmarks.peers.ours import Hub
from benchmarks.peers.verdict import counts
from compute_hub.sdk import HubClient
from tests.chaos.watching import await_that, await_whole, until, used_ms

pytestmark = pytest.mark.slow
BEAT = ("/bin/sh", "-c", "echo began; while :; do cat /proc/uptime >> /job/beats; sleep 0.1; done")
"""A program that says on the host's own clock when it ran."""


def beats(hub: Hub, job_id: str, attempt: int) -> list[float]:
    """When an attempt of BEAT ran, in seconds since the host was started."""
    tenant = scalar(hub, "SELECT tenant_id FROM jobs WHERE id = %s", job_id)
    file = hub.stack.settings.workspaces / str(tenant) / job_id / f"attempt-{attempt}" / "rank-0" / "beats"
    return [float(line.split()[0]) for line in file.read_text().splitlines()]


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
    send_signal([struck], signal.SIGKILL)
    before_ms = used_ms(hub, job_id)
    until(client, hub.submit(client, "/usr/bin/true"), "succeeded")
    await_that(lambda: (part, struck), lambda: not struck.is_running())
    await_whole(hub)
    until(client, hub.submit(client, "/usr/bin/true"), "succeeded")
    await_that(lambda: before_ms, lambda: used_ms(hub, job_id) > before_ms + 1000)
    cancel(client, job_id)
    assert until(client, job_id, "cancelled")["attempt"] == 1
    assert counts(hub)["unmetered_ms"] == 0


def test_a_standby_takes_over_and_a_stopped_and_resumed_leader_changes_nothing(
    hub: Hub, client: HubClient
) -> None:
    job_id = hub.submit(client, "/usr/bin/sleep", "600", time_limit_s=700)
    until(client, job_id, "running")
    old, epoch = leader(hub)
    with stopped([old]):
        await_that(lambda: epoch, lambda: bool(epochs(hub, epoch)))
        until(client, hub.submit(client, "/usr/bin/true"), "succeeded")
    lost = f":{old.pid} of epoch {epoch} "
    await_that(
        lambda: lost,
        lambda: any(lost in line["reason"] for line in said_by_controllers(hub, "leadership_lost")),
    )
    until(client, hub.submit(client, "/usr/bin/true"), "succeeded")
    cancel(client, job_id)
    assert until(client, job_id, "cancelled")["attempt"] == 1
    assert counts(hub)["doubled_runs"] == 0


@pytest.mark.parametrize("how", LOSSES)
def test_jobs_of_a_lost_node_are_queued_again_never_run_twice_and_what_was_lost_is_given_back(
    hub: Hub, client: HubClient, mender: Mender, how: str
) -> None:
    job_id = hub.submit(client, *BEAT, max_retries=3)
    until(client, job_id, "running")
    await_that(lambda: job_id, lambda: used_ms(hub, job_id) > 0)
    lost = node_of(hub, job_id, 1)
    with losing(hub, mender, lost, how):
        until(client, job_id, "running", attempt=2)
        assert client.log(job_id, attempt=1) == b"began\n"
    assert node_of(hub, job_id, 2) != lost
    await_that(lambda: job_id, lambda: bool(beats(hub, job_id, 2)))
    cancel(client, job_id)
    until(client, job_id, "cancelled")
    await_settled(hub, job_id)
    assert beats(hub, job_id, 1)[-1] < beats(hub, job_id, 2)[0]  # whatever the lost one might still have said
    assert not any(counts(hub).values())


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
    faults = [kill(part) for part in ("api", "courier", "biller", "keeper", "supervisor")]
    faults += [together(kill("leader"), backend(None)), database_ends("shut down at once", signal.SIGQUIT)]
    found = torment(hub, len(faults), seed=2, say=print, faults=faults)
    assert {name for name, value in found.items() if value} == {"points"}
