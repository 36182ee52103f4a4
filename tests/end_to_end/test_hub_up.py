import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from decimal import Decimal
from fractions import Fraction
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from compute_hub.sdk import HubClient
from compute_hub.settings import Settings
from compute_hub.stack.database import private_server
from compute_hub.stack.ray_node import ray_address, ray_directory, ray_environment
from kernel.clock import boottime_ms
from scheduler.controller.wakeups import Wakeups
from scheduler.node.protocol import OverRequest, Report, SyncRequest
from scheduler.ray.couriers import Couriers
from tests.end_to_end.conftest import HUB, ROOT, RunningHub, read_until
from tests.end_to_end.waiting import PATIENCE_MS, wait_until

pytestmark = pytest.mark.slow
MODEL = "MLU370-X8"
PRICE_CNY_PER_CARD_HOUR = Fraction("12.50")


def submit(hub: RunningHub, *words: str) -> dict[str, Any]:
    done = hub.command("job", "submit", "--accelerator", MODEL, "--json", *words)
    assert done.returncode == 0, done.stderr + done.stdout
    (job,) = json.loads(done.stdout[done.stdout.index("[\n") :])
    return dict(job)


def test_a_firm_submits_a_job_and_sees_its_log_its_devices_and_its_state(hub: RunningHub) -> None:
    job = submit(hub, "--wait", "--workdir", "examples/digits", "--", "python", "train.py")
    assert job["state"] == "succeeded"
    assert len(job["devices"]) == 1
    assert "done: test accuracy" in hub.command("job", "logs", job["id"]).stdout
    listed = json.loads(hub.command("job", "list", "--json").stdout)
    assert job["id"] in {found["id"] for found in listed}
    shown = hub.command("job", "show", job["id"]).stdout
    assert "succeeded" in shown
    assert "node-" in shown


def test_a_running_job_can_be_cancelled_and_its_cards_are_free_again(hub: RunningHub) -> None:
    job = submit(hub, "--devices", "4", "--", "sleep", "600")
    with hub.client("tenant") as client:
        wait_until(client, job["id"], "running")
        cancelled = hub.command("job", "cancel", job["id"])
        assert cancelled.returncode == 0, cancelled.stderr
        ended = wait_until(client, job["id"], "cancelled")
        nodes = client.get("/v1/cluster")["nodes"]
    assert ended["end_reason"] == "cancelled"
    assert sum(device["allocated_milli"] for node in nodes for device in node["devices"]) == 0


def test_a_job_gets_its_secret_is_followed_and_leaves_a_file_that_can_be_fetched(
    hub: RunningHub, tmp_path: Path
) -> None:
    value = tmp_path / "token"
    value.write_text("open sesame\n", encoding="utf-8")
    assert hub.command("secret", "put", "token", "--file", str(value)).returncode == 0
    script = "wc -c < $HUB_SECRETS/token; echo done > result; sleep 1; echo over"
    job = submit(hub, "--secret", "token", "--", "sh", "-c", script)
    followed = hub.command("job", "logs", "-f", job["id"])
    assert (followed.returncode, followed.stdout) == (0, "11\nover\n")
    assert "result" in hub.command("job", "artifacts", job["id"]).stdout
    target = tmp_path / "result"
    assert hub.command("job", "download", job["id"], "result", "--to", str(target)).returncode == 0
    assert target.read_text(encoding="utf-8") == "done\n"
    logs = [file for file in (hub.state / "logs").rglob("*") if file.is_file()]
    assert [file for file in logs if b"open sesame" in file.read_bytes()] == []


def test_listings_show_vouchers_and_cluster_and_the_audit_is_clean(hub: RunningHub) -> None:
    assert json.loads(hub.command("voucher", "list", "--json").stdout) == []
    cluster = json.loads(hub.command("cluster", "show", "--json").stdout)
    assert [node["name"] for node in cluster] == ["node-1", "node-2"]
    assert {device["model"] for node in cluster for device in node["devices"]} == {MODEL}
    audit = hub.command("ledger", "audit", "--json", role="auditor")
    assert (audit.returncode, json.loads(audit.stdout)["audit"]) == (0, "ok")


def test_a_refusal_is_one_sentence_on_standard_error(hub: RunningHub) -> None:
    done = hub.command("job", "submit", "--accelerator", "H100", "--", "true")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"hub: accelerator: the centre has no accelerator 'H100'; it has {MODEL}. Choose one of these.\n"
    )


def test_a_second_hub_on_the_same_state_directory_is_refused(hub: RunningHub) -> None:
    environment = {**os.environ, "HUB_STATE_DIRECTORY": str(hub.state)}
    done = subprocess.run(
        [str(HUB), "up"], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 1
    assert "already running" in done.stderr
    assert httpx.get(f"{hub.url}/readyz", timeout=60).is_success


def settings_of(hub: RunningHub) -> Settings:
    port = int(psutil.Process(hub.process.pid).environ()["HUB_RAY_PORT"])
    return Settings(state_directory=hub.state, ray_port=port)


def test_a_controller_hears_through_ray_that_what_it_awaits_is_over(
    hub: RunningHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = settings_of(hub)
    for name, value in ray_environment(chosen).items():
        monkeypatch.setenv(name, value)  # for the courier
    with private_server(chosen).superuser("hub") as connection:
        ((epoch,),) = connection.execute("SELECT epoch FROM scheduler_leader").fetchall()
    # Nobody's report is what it follows, so the supervisors only answer it.
    request = OverRequest(("r",), 60_000, SyncRequest(epoch, 60_000, as_of_boot_ms=0, instance="no"))
    heard: queue.SimpleQueue[tuple[int, str, Report]] = queue.SimpleQueue()
    wakeups, deadline = Wakeups(), boottime_ms() + PATIENCE_MS
    couriers = Couriers(ray_address(chosen), wakeups, lambda *said: heard.put(said))
    try:
        while not couriers.members:
            assert boottime_ms() < deadline
            wakeups.wait(1)
        members = couriers.members
        couriers.ask_ahead(7, dict.fromkeys(members, request))
        said = [heard.get(timeout=PATIENCE_MS / 1000) for _ in members]
        assert {(number, report.node) for number, _, report in said} == {(7, name) for name in members}
        assert all(name == report.node for _, name, report in said)
    finally:
        couriers.close()


def test_a_courier_that_reaches_no_raylet_of_its_machine_says_what_to_do_and_joins_nothing(
    hub: RunningHub,
) -> None:
    chosen = settings_of(hub)
    ours, theirs = socket.socketpair()
    # As on a machine without a node: Ray's sockets are out of its sight.
    hide = f'mount -t tmpfs none "{ray_directory(chosen)}" && exec "$@"'
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", hide, "sh"]
    command += [sys.executable, "-m", "scheduler.ray.courier", ray_address(chosen), str(theirs.fileno())]
    environment = {**os.environ, **ray_environment(chosen)}
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        pass_fds=[theirs.fileno()],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        theirs.close()
        assert "--raylet" in read_until(process, "no_raylet_here")
        with Connection(ours.detach()) as connection:
            assert not connection.poll()  # it knows of no node
        assert process.wait(timeout=PATIENCE_MS / 1000) == 0


def test_a_job_survives_the_death_of_controller_biller_and_api_and_is_billed_once(hub: RunningHub) -> None:
    job = submit(hub, "--", "sleep", "6")
    with hub.client("tenant") as client:
        wait_until(client, job["id"], "running")
    killed = [process for word in ("controller", "biller", "api") for process in hub.children(word)]
    assert len(killed) == 4  # two controllers, one of which stands by
    for process in killed:
        process.send_signal(signal.SIGKILL)
    await_answer(hub)
    with hub.client("tenant") as client, hub.client("auditor") as auditor:
        ended = wait_until(client, job["id"], "succeeded")
        usage = until_charged(auditor, job["id"])
        billed = client.get(f"/v1/jobs/{job['id']}")
    assert ended["attempt"] == 1
    assert [record["k"] for record in usage] == list(range(len(usage)))
    assert usage[-1]["final"]
    slot_ms = sum(record["slot_ms"] for record in usage)
    assert 6_000_000 <= slot_ms < 60_000_000
    exact = PRICE_CNY_PER_CARD_HOUR * slot_ms / (1000 * 3_600_000)
    assert abs(Fraction(Decimal(billed["charge_cny"])) - exact) <= Fraction(1, 2_000_000)
    assert json.loads(hub.command("ledger", "audit", "--json", role="auditor").stdout)["audit"] == "ok"


def test_a_database_that_is_killed_comes_back_by_itself_and_jobs_run_again(hub: RunningHub) -> None:
    pid = (hub.state / "postgres" / "data" / "postmaster.pid").read_text(encoding="ascii").splitlines()[0]
    killed = psutil.Process(int(pid))
    killed.kill()
    killed.wait()
    await_answer(hub)
    job = submit(hub, "--", "true")
    with hub.client("tenant") as client, hub.client("auditor") as auditor:
        wait_until(client, job["id"], "succeeded")
        until_charged(auditor, job["id"])


def await_answer(hub: RunningHub) -> None:
    never, deadline = threading.Event(), boottime_ms() + PATIENCE_MS
    while True:
        with suppress(httpx.TransportError):
            if httpx.get(f"{hub.url}/readyz").is_success:
                return
        assert boottime_ms() < deadline
        never.wait(0.1)


def until_charged(auditor: HubClient, job_id: str) -> list[dict[str, Any]]:
    never, deadline = threading.Event(), boottime_ms() + PATIENCE_MS
    while True:
        usage = list(auditor.pages(f"/v1/jobs/{job_id}/usage"))
        if usage and usage[-1]["final"] and all(record["charge_id"] for record in usage if record["slot_ms"]):
            return usage
        assert boottime_ms() < deadline, usage
        never.wait(0.1)
