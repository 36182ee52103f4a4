"""`hub up`, started once per test session as a person would, and ended with Ctrl-C."""

import json
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from compute_hub.sdk import HubClient
from compute_hub.stack.ports import free_port
from kernel.clock import boottime_ms
from tests.end_to_end.collecting import Collector
from tests.end_to_end.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
HUB = Path(sys.executable).with_name("hub")
START_S = 240


@dataclass(frozen=True)
class RunningHub:
    """A hub somebody started with `hub up`."""

    url: str
    keys: dict[str, str]
    state: Path
    process: subprocess.Popen[bytes]
    prometheus: str = ""
    alertmanager: str = ""
    collector: Collector = field(default_factory=Collector)

    def client(self, role: str) -> HubClient:
        return HubClient(self.url, self.keys[role])

    def command(self, *words: str, role: str = "tenant") -> subprocess.CompletedProcess[str]:
        """Run `hub …` as a person of that role."""
        environment = {**os.environ, "HUB_URL": self.url, "HUB_API_KEY": self.keys[role]}
        return subprocess.run(
            [str(HUB), *words],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def children(self, word: str) -> list[psutil.Process]:
        """The hub's own processes that run `hub WORD`."""
        return [
            child
            for child in psutil.Process(self.process.pid).children()
            if child.cmdline()[-1:] == [word] and str(HUB) in child.cmdline()
        ]


def processes_mentioning(path: Path) -> list[list[str]]:
    return [
        process.info["cmdline"]
        for process in psutil.process_iter(["cmdline"])
        if process.pid != os.getpid() and any(str(path) in word for word in process.info["cmdline"] or ())
    ]


def read_until(process: subprocess.Popen[bytes], word: str) -> str:
    """What the process printed up to a line with the word."""
    assert process.stdout is not None
    deadline, text = boottime_ms() + START_S * 1000, ""
    while word not in text:
        ready, _, _ = select.select([process.stdout], [], [], max(0, deadline - boottime_ms()) / 1000)
        assert ready, f"{word!r} did not come within {START_S} s: {text}"
        chunk = os.read(process.stdout.fileno(), 65_536)
        assert chunk, f"it ended before {word!r}: {text}"
        text += chunk.decode()
    return text


def leave_a_job_running(hub: RunningHub) -> None:
    """One that saves what it has when it is told to end, which takes it a while."""
    script = "trap 'sleep 1; touch saved; exit 0' TERM; while :; do sleep 0.1; done"
    with hub.client("tenant") as tenant:
        (model,) = {
            device["model"] for node in tenant.get("/v1/cluster")["nodes"] for device in node["devices"]
        }
        words = ("--accelerator", model, "--grace", "30", "--json", "--", "sh", "-c", script)
        done = hub.command("job", "submit", *words)
        (job,) = json.loads(done.stdout[done.stdout.index("[\n") :])
        wait_until(tenant, job["id"], "running")


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningHub]:
    state = tmp_path_factory.mktemp("hub")
    port, prometheus, alertmanager = free_port(), free_port(), free_port()
    collector = Collector()
    collector.listen()
    rules = tmp_path_factory.mktemp("rules")
    for file in (ROOT / "deploy" / "prometheus").glob("*.rules.yml"):
        # What must hold for minutes before somebody is woken holds for a second here.
        patient = file.read_text(encoding="utf-8")
        (rules / file.name).write_text(re.sub(r"\bfor: .*", "for: 1s", patient), encoding="utf-8")
    environment = {
        **os.environ,
        "HUB_STATE_DIRECTORY": str(state),
        "HUB_API_PORT": str(port),
        "HUB_RAY_PORT": str(free_port()),
        "HUB_METER_INTERVAL_MS": "1000",
        "HUB_SCRAPE_INTERVAL_MS": "1000",
        "HUB_OTLP_ENDPOINT": collector.address,
        "HUB_AUDIT_INTERVAL_MS": "2000",
        "HUB_RULES_DIRECTORY": str(rules),
        "HUB_PROMETHEUS_PORT": str(prometheus),
        "HUB_ALERTMANAGER_PORT": str(alertmanager),
        "HUB_GRAFANA_PORT": str(free_port()),
        "HUB_NODE_LEASE_MS": "20000",  # a busy machine takes long to start a new controller
    }
    process = subprocess.Popen(
        [str(HUB), "up", "--with-monitoring"],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        bufsize=0,
    )
    try:
        text = read_until(process, "Ctrl-C")
        keys = json.loads((state / "keys.json").read_text(encoding="utf-8"))["keys"]
        assert all(key in text for key in keys.values())
        assert (state / "keys.json").stat().st_mode & 0o077 == 0
        assert "Prometheus" in text
        running = RunningHub(
            f"http://127.0.0.1:{port}",
            keys,
            state,
            process,
            f"http://127.0.0.1:{prometheus}",
            f"http://127.0.0.1:{alertmanager}",
            collector,
        )
        yield running
        leave_a_job_running(running)
    finally:
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=240)
        collector.close()
    assert b"Everything is stopped." in rest
    assert re.search(rb"Stopping; what runs \(jobs: \d+\) has up to \d+ s to save", rest), rest
    assert list(state.rglob("saved")), "a job's grace is its own also when everything is stopped"
    assert process.returncode == 0
    assert processes_mentioning(state) == []
