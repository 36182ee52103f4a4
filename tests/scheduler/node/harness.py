"""A real supervisor on real sandboxes, a controller's view of it, and what would be left of it."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from kernel.clock import boottime_ms
from kernel.ids import new_id
from scheduler.node.client import SupervisorClient
from scheduler.node.protocol import Report, RunSpec, RunState, RunStatus, SyncRequest, UsageRecord
from tests.leftovers import cgroups_of, processes_naming, words

DEADLINE_MS = 300_000
ANSWER_S = 60
"""How long a supervisor may take to answer on a machine that others keep busy."""

REPOSITORY = Path(__file__).resolve().parents[3]


@dataclass
class Node:
    """One supervisor process, what it is configured with, and a controller's view of it."""

    folder: Path
    config: dict[str, Any]
    process: subprocess.Popen[bytes] | None = None
    epoch: int = 1
    lease_ms: int = 60_000
    desired: dict[str, RunSpec] = field(default_factory=dict)
    usage: dict[str, UsageRecord] = field(default_factory=dict)
    wrapper: tuple[str, ...] = ()

    @property
    def socket(self) -> Path:
        return Path(self.config["state_directory"]) / "supervisor.sock"

    @property
    def log(self) -> Path:
        return self.folder / f"{self.config['node']}.log"

    def start(self) -> "Node":
        path = self.folder / f"{self.config['node']}.json"
        path.write_text(json.dumps(self.config))
        self.socket.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.wrapper, sys.executable, "-m", "scheduler.node.supervisor", "--config", str(path)],
                cwd=REPOSITORY,
                env={"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._await_answer()
        return self

    def _await_answer(self) -> None:
        assert self.process is not None
        for _ in range(2400):
            if self.socket.exists():
                return
            try:
                status = self.process.wait(timeout=0.025)
            except subprocess.TimeoutExpired:
                continue
            raise AssertionError(f"the supervisor left with {status}: {self.log.read_text()}")
        raise AssertionError(f"no socket: {self.log.read_text()}")

    def client(self) -> SupervisorClient:
        return SupervisorClient(self.socket, timeout_s=ANSWER_S)

    def request(self, **changes: Any) -> SyncRequest:  # noqa: ANN401 - any field of the type it makes
        return replace(SyncRequest(self.epoch, self.lease_ms, tuple(self.desired.values())), **changes)

    def sync(self, **changes: Any) -> Report:  # noqa: ANN401 - any field of the type it makes
        with self.client() as client:
            report = client.sync(self.request(**changes))
        self.usage |= {record.id: record for record in report.usage}
        return report

    def spec(self, *argv: str, **changes: Any) -> RunSpec:  # noqa: ANN401 - any field of the type it makes
        run_id = str(new_id())
        root = Path(self.config["workspace_root"]) / "tenant"
        spec = RunSpec(
            run_id=run_id,
            job_id=f"job-{run_id}",
            tenant_id="tenant",
            attempt=1,
            argv=argv,
            workspace=str(root / "work" / run_id),
            log=str(root / "logs" / run_id),
            grace_ms=2000,
        )
        return replace(spec, **changes)

    def begin(self, spec: RunSpec) -> RunSpec:
        self.desired[spec.run_id] = spec
        self.sync()
        return spec

    def status(self, spec: RunSpec) -> RunStatus:
        return next(run for run in self.sync().runs if run.run_id == spec.run_id)

    def await_state(self, spec: RunSpec, state: RunState) -> RunStatus:
        """The run's status once it is in a state (or beyond), waiting with the long poll."""
        order, deadline = list(RunState), boottime_ms() + DEADLINE_MS
        with self.client() as client:
            while True:
                report = self.sync()
                status = next(run for run in report.runs if run.run_id == spec.run_id)
                if order.index(status.state) >= order.index(state):
                    return status
                assert boottime_ms() < deadline, f"it never got there: {status}\n{self.log.read_text()}"
                client.wait_for_change(report.seq, 10_000)

    def ended(self, spec: RunSpec) -> RunStatus:
        return self.await_state(spec, RunState.ENDED)

    def run(self, spec: RunSpec) -> RunStatus:
        self.begin(spec)
        return self.ended(spec)

    def sh(self, script: str, **changes: Any) -> tuple[RunStatus, str]:  # noqa: ANN401 - any field of the type it makes
        """Run a shell script to its end; its status and log."""
        spec = self.spec("/bin/sh", "-c", script, **changes)
        status = self.run(spec)
        return status, Path(spec.log).read_text(errors="replace") if Path(spec.log).exists() else ""

    def records(self, spec: RunSpec) -> list[UsageRecord]:
        return sorted((r for r in self.usage.values() if r.run_id == spec.run_id), key=lambda r: r.k)

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(timeout=60)


def _make_config(folder: Path, name: str, **changes: Any) -> dict[str, Any]:  # noqa: ANN401 - any field of the type it makes
    base = Path(sys.base_prefix)
    mounts = [{"source": str(base)}, {"source": sys.prefix}]
    return {
        "node": name,
        "host_id": "test-host",
        "state_directory": str(folder / name),
        "workspace_root": str(folder / "store"),
        "host_run_directory": str(folder / "host"),
        "devices": [{"index": index, "model": "sim-a"} for index in range(4)],
        "environments": {"python": {"mounts": mounts, "path": [f"{sys.prefix}/bin"]}},
    } | changes


class Machine:
    """Makes supervisors in one temporary folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nodes: list[Node] = []

    def node(self, name: str = "n", wrapper: tuple[str, ...] = (), **changes: Any) -> Node:  # noqa: ANN401 - any field of the type it makes
        node = Node(self.folder, _make_config(self.folder, name, **changes), wrapper=wrapper)
        self.nodes.append(node)
        return node.start()


@contextmanager
def a_machine() -> Iterator[Machine]:
    """A machine; when the block ends, no process, cgroup, mount or gang folder of it may remain."""
    with tempfile.TemporaryDirectory(prefix="hub-node-") as name:
        folder = Path(name)
        machine = Machine(folder)
        yield machine
        for node in machine.nodes:
            if node.process is not None and node.process.poll() is None:
                assert node.stop() == 0, node.log.read_text()
        for node in machine.nodes:
            said = node.log.read_text().splitlines()
            trouble = [line for line in said if not line.startswith("{") or json.loads(line)["level"] != "info"]
            assert not trouble, trouble
        left = [words(process) for process in processes_naming(folder)]
        assert not left, left
        assert not cgroups_of(node.config["state_directory"] for node in machine.nodes)
        assert str(folder) not in Path("/proc/self/mountinfo").read_text()
        assert not list((folder / "host" / "gangs").glob("*"))


def children_of(node: Node, name: str) -> list[psutil.Process]:
    """The supervisor's children of that name, the oldest first."""
    assert node.process is not None
    children = sorted(psutil.Process(node.process.pid).children(), key=lambda one: (one.create_time(), one.pid))
    return [child for child in children if _name_of(child) == name]


def _name_of(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""


def helper_of(node: Node) -> psutil.Process:
    """What makes processes for the supervisor; each of them has its name until it is given another."""
    return children_of(node, "hub-nursery")[0]


def ready_of(node: Node) -> list[psutil.Process]:
    """Those that wait for a run, once there are as many as there will be: one for each device of root's node."""
    wanted = len(node.config["devices"]) if os.geteuid() == 0 else 0
    while len(ready := children_of(node, "hub-ready")) < wanted:
        os.sched_yield()
    return ready


def await_line(spec: RunSpec, text: str) -> None:
    """Wait until a running job has printed something."""
    while text not in (Path(spec.log).read_text() if Path(spec.log).exists() else ""):
        os.sched_yield()


def open_descriptors() -> set[str]:
    """Those of this process, but for the folder that is read."""
    with os.scandir("/proc/self/fd") as entries:
        names = {entry.name for entry in entries}
    return {name for name in names if Path("/proc/self/fd", name).exists()}
