"""What a node's supervisor is told of the hub's settings."""

import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from compute_hub.api.job_submission import GRACE_S_MAX, SLOTS_MILLI_MIN
from compute_hub.settings import Devices, Node, Settings, inherited_environment
from compute_hub.stack.children import Child
from compute_hub.stack.claim import AlreadyRuns, claim
from compute_hub.stack.node_process import LONGEST_STOP_MS, node_config, stop_node
from compute_hub.stack.up import LocalStack
from tests.scheduler.node.harness import DEADLINE_MS, a_machine, await_line

_HEARS_INT = ("env", "--default-signal=INT")
"""Who runs the tests in the background has them ignore it, and a shell cannot trap what it was told to ignore."""


def test_a_node_runs_once_on_a_machine_and_again_when_the_first_is_gone(tmp_path: Path) -> None:
    first = claim(tmp_path / "n", "Node n")
    with pytest.raises(AlreadyRuns, match="Node n already runs here"):
        claim(tmp_path / "n", "Node n")
    os.close(first)
    os.close(claim(tmp_path / "n", "Node n"))


def test_a_node_takes_every_run_its_cards_can_be_divided_into(tmp_path: Path) -> None:
    cards = Devices(model="X", vendor="nvidia", count=16)
    settings = Settings(state_directory=tmp_path, cgroup_parent="/hub")
    config = node_config(settings, Node(name="n", devices=(cards,)), tmp_path, tmp_path / "s")
    assert config["limits"]["runs"] * SLOTS_MILLI_MIN >= 16 * 1000
    assert config["cgroup_parent"] == "/hub"


def test_a_node_spans_machines_from_the_address_ray_uses_or_its_own(tmp_path: Path) -> None:
    cards = Devices(model="X", vendor="nvidia", count=1)
    for node_address, span_address, told in (
        ("127.0.0.1", "", "127.0.0.1"),
        ("localhost", "", "127.0.0.1"),
        ("192.0.2.7", "", "192.0.2.7"),
        ("2001:db8::7", "", "2001:db8::7"),
        ("no-such-host.invalid", "", "no-such-host.invalid"),
        ("192.0.2.7", "198.51.100.7", "198.51.100.7"),
    ):
        settings = Settings(state_directory=tmp_path, node_address=node_address)
        node = Node(name="n", devices=(cards,), span_address=span_address)
        assert node_config(settings, node, tmp_path, tmp_path / "s")["span_address"] == told


@pytest.mark.slow
def test_who_cannot_wait_while_a_hub_stops_has_its_nodes_hurry(tmp_path: Path) -> None:
    stack = LocalStack(Settings(state_directory=tmp_path), {}, print)
    wait = "trap 'echo told' TERM; trap 'exit 7' INT; echo ready; while :; do sleep 0.05; done"
    node, api = (
        Child(name, [*_HEARS_INT, "sh", "-c", wait], log=tmp_path / name, environment=inherited_environment())
        for name in ("node-n", "api")
    )
    stack._children += [node, api]  # noqa: SLF001 - starting the whole hub takes a minute
    while "ready" not in node.tail() or "ready" not in api.tail():
        node.wait(0.05)
    stack.hurry()
    node.process.wait()
    assert (node.process.poll(), api.process.poll()) == (7, None)
    api.signal(signal.SIGINT)
    stack.stop()


@pytest.mark.slow
def test_a_node_that_stops_keeps_ray_until_its_jobs_have_saved_what_they_have(tmp_path: Path) -> None:
    assert LONGEST_STOP_MS > GRACE_S_MAX * 1000  # whatever a job may choose
    save = "echo told; until [ -e go ]; do sleep 0.05; done; echo saved; exit 0"
    with a_machine() as machine:
        node = machine.node()
        assert node.stop() == 0
        config = machine.folder / f"{node.config['node']}.json"
        supervisor = Child(
            "supervisor",
            [sys.executable, "-m", "scheduler.node.supervisor", "--config", str(config)],
            log=tmp_path / "supervisor.log",
            environment=inherited_environment(),
        )
        while not node.socket.exists():
            supervisor.wait(0.05)
        ray = Child("ray", ["sleep", "600"], log=tmp_path / "ray.log", environment=inherited_environment())
        script = f"trap '{save}' TERM; echo ready; while :; do sleep 0.05; done"
        spec = node.begin(node.spec("/bin/sh", "-c", script, grace_ms=DEADLINE_MS))
        await_line(spec, "ready")
        stopping = threading.Thread(target=stop_node, args=(supervisor, ray))
        stopping.start()
        await_line(spec, "told")
        ray.check()
        Path(spec.workspace, "go").touch()
        stopping.join()
        assert Path(spec.log).read_text().endswith("told\nsaved\n")
        assert (supervisor.process.poll(), ray.process.poll()) == (0, -15)
