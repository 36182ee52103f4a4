"""No program that a tenant runs gets out of its sandbox; what it tried for is really there, and unharmed."""

import ctypes
import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from scheduler.node.protocol import DeviceShare, RunSpec, RunState
from tests.scheduler.node.escapes import ESCAPES, ESCAPES_WHERE_ROOT_MAKES_THE_SANDBOX, PRELUDE
from tests.scheduler.node.harness import Node, a_machine, await_line

pytestmark = pytest.mark.slow

HIDDEN = "host-secret"
SHM_KEY = 0x48554221
DEVICE = "/dev/loop-control"


@dataclass
class Town:
    """A node where a victim runs, and what an intruder would look for."""

    node: Node
    victim: RunSpec
    targets: dict[str, str]


def _listeners(folder: Path) -> tuple[list[socket.socket], dict[str, str]]:
    ports = [socket.create_server(("0.0.0.0", 0)), socket.create_server(("127.0.0.1", 0))]  # noqa: S104 - to be hidden
    six = socket.create_server(("::1", 0), family=socket.AF_INET6)
    database = socket.socket(socket.AF_UNIX)
    database.bind(str(folder / ".s.PGSQL.5432"))
    database.listen()
    abstract = socket.socket(socket.AF_UNIX)
    abstract.bind(f"\0hub-{os.getpid()}")
    abstract.listen()
    numbers = [str(listener.getsockname()[1]) for listener in (*ports, six)]
    targets = {
        "TARGET_PORTS": ",".join(numbers),
        "TARGET_ADDRESS": socket.gethostbyname(socket.gethostname()),
        "TARGET_DATABASE": str(folder / ".s.PGSQL.5432"),
        "TARGET_ABSTRACT": f"hub-{os.getpid()}",
    }
    return [*ports, six, database, abstract], targets


@pytest.fixture(scope="module")
def town() -> Iterator[Town]:
    with a_machine() as machine:
        secret = machine.folder / HIDDEN
        secret.write_text("for nobody")
        secret.chmod(0o644)
        machine.folder.chmod(0o755)
        listeners, targets = _listeners(machine.folder)
        libc = ctypes.CDLL(None)
        segment = libc.shmget(SHM_KEY, 4096, 0o1666)
        assert segment >= 0
        node = machine.node(
            devices=[
                {"index": 0, "model": "a", "files": [DEVICE]},
                {"index": 1, "model": "a", "files": ["/dev/full"]},
            ]
        )
        script = "echo mine > /job/file; chmod 644 /job/file; echo ready; while :; do sleep 0.2; done"
        victim = node.begin(node.spec("/bin/sh", "-c", script, tenant_id="victim", secrets={"token": "x"}))
        await_line(victim, "ready")
        assert node.process is not None
        targets |= {
            "TARGET_SECRET": str(secret),
            "TARGET_STATE": node.config["state_directory"],
            "TARGET_VICTIM_WORKSPACE": victim.workspace,
            "TARGET_VICTIM_FILE": f"{victim.workspace}/file",
            "TARGET_VICTIM_PID": str(node.await_state(victim, RunState.RUNNING).pid),
            "TARGET_SUPERVISOR_PID": str(node.process.pid),
            "TARGET_DEVICE": DEVICE,
            "TARGET_PYTHON": sys.prefix,
            "TARGET_SHM_KEY": str(SHM_KEY),
        }
        yield Town(node, victim, targets)
        libc.shmctl(segment, 0, None)
        for listener in listeners:
            listener.close()
        node.desired.clear()
        node.ended(victim)


@pytest.mark.parametrize("attempt", ESCAPES, ids=lambda name: name.replace(" ", "-"))
def test_a_tenant_cannot(town: Town, attempt: str) -> None:
    _holds(town, ESCAPES[attempt])


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize(
    "attempt", ESCAPES_WHERE_ROOT_MAKES_THE_SANDBOX, ids=lambda name: name.replace(" ", "-")
)
def test_a_tenant_of_roots_cannot(town: Town, attempt: str) -> None:
    _holds(town, ESCAPES_WHERE_ROOT_MAKES_THE_SANDBOX[attempt])


def _holds(town: Town, attempt: str) -> None:
    node = town.node
    spec = node.spec(
        "python",
        "-c",
        f"{PRELUDE}\n{attempt}\nprint('held')",
        environment="python",
        env=town.targets,
        devices=(DeviceShare(1),),
        time_limit_ms=300_000,
    )
    status = node.run(spec)
    log = Path(spec.log).read_text()
    assert (status.exit_code, log) == (0, "held\n"), (status, log)
    assert node.status(town.victim).state is RunState.RUNNING
    assert (Path(town.victim.workspace) / "file").read_text() == "mine\n"
    del node.desired[spec.run_id]


def test_there_are_at_least_forty_attempts() -> None:
    assert len(ESCAPES) >= 40
