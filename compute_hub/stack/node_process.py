"""`hub node`: one machine of the centre, which is a raylet and, beside it, the supervisor that runs tenants' code.

Neither is the other's child: a Ray restart touches no job.
"""

import hashlib
import json
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import structlog

from compute_hub.api.job_submission import GRACE_S_MAX, SLOTS_MILLI_MIN
from compute_hub.settings import Environment, Node, Settings, inherited_environment
from compute_hub.stack.children import GRACE_MS, Child, ChildEnded, stop_all
from compute_hub.stack.claim import claim
from compute_hub.stack.ray_node import RayNode, node_resources, token_file
from compute_hub.stack.run_directory import run_directory
from compute_hub.telemetry.sensors import tell_sensed
from compute_hub.telemetry.serving import serve_metrics
from kernel.clock import boot_id, boottime_ms
from kernel.errors import Invalid
from kernel.logs import configure_logs
from scheduler.node.nvml import open_nvml
from scheduler.node.relay import LINK_LABEL, Relay, read_token
from scheduler.node.sensing import NvmlSensors

_log = structlog.get_logger(__name__)
_CHECK_S = 0.5
_RUNS_MIN = 512
_RUNS_PER_CARD = 1000 // SLOTS_MILLI_MIN
"""A node takes every run that its cards can be divided into: one refused for want of runs would hold cards and wait."""
_FOUND_CARDS_MAX = 16
"""Of a node whose library says what it has."""
LONGEST_STOP_MS = GRACE_S_MAX * 1000 + GRACE_MS
"""A supervisor ends by itself when each of its jobs had the grace it chose; so long at most."""

SOCKET_VARIABLE = "HUB_NODE_SOCKET"
"""Tells the agent in the raylet's workers where the supervisor listens (`scheduler.ray.agent`)."""


class UnknownNodeName(Invalid):
    """The settings describe no node of that name."""

    sentence = "--name: the settings describe no node {name!r}; they describe {known}."


def run_node(settings: Settings, name: str, *, head: bool) -> None:
    """Run the machine until SIGTERM or SIGINT; a raylet that ends is started again, a supervisor that ends, too.

    While it stops, a further SIGINT cuts the graces of its jobs short.
    """
    configure_logs(f"node {name}")
    node = _node_named(settings, name)
    folder = settings.node_directory(name)
    claimed = claim(folder, f"Node {name}")
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    socket_path = supervisor_socket(settings, name)
    relay = Relay(settings.node_address, read_token(token_file(settings)), socket_path, folder / "relay-port")
    node = node.model_copy(update={"labels": node.labels | {LINK_LABEL: relay.address}})
    supervisor = _start_supervisor(settings, node, folder, socket_path)
    ray = RayNode(
        settings,
        name,
        mark=(SOCKET_VARIABLE, str(socket_path)),
        resources=node_resources(settings, name),
        head=head,
        log=folder / "ray.log",
    )
    sensors = NvmlSensors(open_nvml()) if node.inventory == "nvml" else None
    serve_metrics(settings, f"node_{name}")
    while not stopping.wait(_CHECK_S):
        if sensors is not None:
            tell_sensed(name, sensors.read(boottime_ms()))
        try:
            supervisor.check()
        except ChildEnded as ended:
            _log.error("supervisor_ended", reason=str(ended))
            supervisor = _start_supervisor(settings, node, folder, socket_path)
        ray.mend()
    signal.signal(signal.SIGINT, lambda *_: supervisor.signal(signal.SIGINT))
    stop_node(supervisor, ray.child)
    socket_path.unlink(missing_ok=True)  # of one that was killed
    relay.close()
    os.close(claimed)


def stop_node(supervisor: Child, ray: Child) -> None:
    """End a machine's supervisor when its jobs have had their grace, then Ray, through which their leases come."""
    stop_all([supervisor], grace_ms=LONGEST_STOP_MS)
    stop_all([ray])


def supervisor_socket(settings: Settings, name: str) -> Path:
    """Where a node's supervisor listens: short, because the path of a socket ends at 107 bytes."""
    digest = hashlib.sha256(str(settings.node_directory(name)).encode()).hexdigest()[:12]
    return run_directory() / f"{digest}.sock"


def node_config(settings: Settings, node: Node, folder: Path, socket_path: Path) -> dict[str, Any]:
    """The supervisor's configuration of a node, as `scheduler.node.config` reads it."""
    devices = [part for part in node.devices for _ in range(part.count)]
    cards = len(devices) or _FOUND_CARDS_MAX
    return {
        "node": node.name,
        "host_id": f"{socket.gethostname()}/{boot_id()}",
        "state_directory": str(folder / "state"),
        "workspace_root": str(settings.workspaces),
        "host_run_directory": str(run_directory() / "host"),
        "socket": str(socket_path),
        "devices": [
            {
                "index": index,
                "model": part.model,
                "vendor": "simulated",
                "imitates": part.vendor if part.vendor != "simulated" else "nvidia",
                "health_file": "" if part.health_directory is None else str(part.health_directory / str(index)),
            }
            for index, part in enumerate(devices)
        ],
        "inventory": node.inventory,
        "environments": {
            name: _environment(environment) for name, environment in sorted(settings.environments.items())
        },
        "sandbox": settings.sandbox,
        "span_address": node.span_address or _resolved(settings.node_address),
        "meter_interval_ms": settings.meter_interval_ms,
        "cgroup_parent": settings.cgroup_parent,
        "limits": {"log_bytes": settings.log_bytes_max, "runs": max(_RUNS_MIN, cards * _RUNS_PER_CARD)},
        "labels": dict(node.labels),
        "cpu_milli": node.cpu_milli,
        "memory_mib": node.memory_mib,
    }


def _resolved(host: str) -> str:
    """The address of a machine's name; what has none stays, and the supervisor says that it is no address."""
    try:
        return socket.gethostbyname(host)
    except OSError:
        return host


def _environment(environment: Environment) -> dict[str, Any]:
    """A virtual environment is mounted with the Python it was made from, where that lies outside /usr."""
    directory = environment.directory.resolve()
    mounts = [directory, *(path.resolve() for path in environment.also_mounted)]
    described = directory / "pyvenv.cfg"
    if described.is_file():
        facts = dict(line.split(" = ", 1) for line in described.read_text().splitlines() if " = " in line)
        prefix = Path(facts.get("home", "/usr/bin")).parent
        if not prefix.is_relative_to("/usr"):
            mounts.append(prefix)
    return {
        "mounts": [{"source": str(path)} for path in mounts],
        "path": [str(directory / "bin")],
        "env": {"VIRTUAL_ENV": str(directory)},
    }


def _start_supervisor(settings: Settings, node: Node, folder: Path, socket_path: Path) -> Child:
    config = folder / "supervisor.json"
    config.write_text(json.dumps(node_config(settings, node, folder, socket_path), indent=2), encoding="utf-8")
    for path in (settings.workspaces, settings.uploads, run_directory() / "host"):
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return Child(
        f"supervisor of {node.name}",
        [sys.executable, "-m", "scheduler.node.supervisor", "--config", str(config)],
        log=folder / "supervisor.log",
        environment=inherited_environment(),
    )


def _node_named(settings: Settings, name: str) -> Node:
    for node in settings.nodes:
        if node.name == name:
            return node
    raise UnknownNodeName(name=name, known=", ".join(node.name for node in settings.nodes) or "none")
