"""One raylet: how a machine joins the hub's private Ray cluster, as a compute node or to be led from.

Ray demands a token of everybody who talks to it; the token lies in a file only the operator can read. Ray's own
dashboard, usage statistics and job server are off: the hub is the only driver.
"""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import structlog

from compute_hub.settings import Settings, export_environment, inherited_environment
from compute_hub.stack.children import Child, ChildEnded, end_processes, processes_having, stop_all
from compute_hub.stack.run_directory import run_directory
from kernel.ids import new_secret
from scheduler.ray.autoscaling import DEVICE_RESOURCE

NODE_RESOURCE: Final = "hub_node:"
"""Ray resource by which the controller recognises a hub node: `hub_node:<name>`."""


_log = structlog.get_logger(__name__)

_RAYLET: Final = {
    # A raylet whose head has gone ends, and is started anew with the head's successor.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "5",
    # No tenant's work runs inside Ray: no memory is to be had by killing what does, and hardly an object is kept.
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_local_fs_monitor_interval_ms": "10000",
}


def ray_environment(settings: Settings) -> dict[str, str]:
    """What Ray must find in the environment of every process of ours that talks to it."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file(settings)),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "0",
        # The agent carries every start and every renewal; Ray would run it at the lowest priority.
        "RAY_worker_niceness": "0",
        # Nobody reads Ray's history of calls, of which there are two for every job.
        "RAY_task_events_report_interval_ms": "0",
        # No job runs inside Ray, so there is nothing to drain when a raylet is told to end.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    }


def export_ray_environment(settings: Settings) -> None:
    """Put the same into this process's own environment, for its children that import Ray."""
    export_environment(ray_environment(settings))


def token_file(settings: Settings) -> Path:
    """The cluster's token; made with mode 0600 if the operator gave none."""
    if settings.ray_token_file is not None:
        return settings.ray_token_file.resolve()
    path = settings.state_directory.resolve() / "ray-token"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(new_secret())
    return path


class RayNode:
    """This machine's part in the cluster; what ends is started again.

    Args:
        name: of the machine, for its log.
        mark: a variable and its value that tell its processes from all others, even when who started them was killed.
        resources: what it brings into the cluster.
        head: also run the head of the cluster.
    """

    def __init__(
        self,
        settings: Settings,
        name: str,
        *,
        mark: tuple[str, str],
        resources: Mapping[str, int],
        head: bool,
        log: Path,
    ) -> None:
        self._settings = settings
        self._name = name
        self._mark = mark
        self._resources = resources
        self._head = head
        self._log = log
        self._end_leftovers()  # of a predecessor that was killed
        self.child = self._start()

    def mend(self) -> None:
        """Start it again if it has ended."""
        try:
            self.child.check()
        except ChildEnded as ended:
            _log.error("raylet_ended", reason=str(ended))
            self._end_leftovers()
            self.child = self._start()

    def stop(self) -> None:
        """End it."""
        stop_all([self.child])

    def _start(self) -> Child:
        return start_ray(
            self._settings,
            self._name,
            head=self._head,
            resources=self._resources,
            environment=dict([self._mark]),
            log=self._log,
        )

    def _end_leftovers(self) -> None:
        """Kill what is left of this Ray: it would keep ports, and Ray would take it for the cluster to join."""
        end_processes(processes_having(*self._mark), grace_s=0)


def start_ray(
    settings: Settings,
    name: str,
    *,
    head: bool,
    resources: Mapping[str, int],
    environment: Mapping[str, str],
    log: Path,
) -> Child:
    """Start this machine's raylet (and the cluster's head with it) in the foreground of a child process."""
    if head:
        # As long as a raylet of the head before lives, Ray would take this for that head's address and not start.
        (ray_directory(settings) / "ray_current_cluster").unlink(missing_ok=True)
    where = (
        [
            "--head",
            f"--port={settings.ray_port}",
            "--include-dashboard=false",
            *(["--no-monitor"] if settings.autoscaler == "none" else []),  # which is its autoscaler
        ]
        if head
        else [f"--address={ray_address(settings)}"]
    )
    argv = [
        *(sys.executable, "-m", "scheduler.ray.start"),
        "start",
        *where,
        f"--node-ip-address={settings.node_address}",
        f"--temp-dir={ray_directory(settings)}",
        "--block",
        "--disable-usage-stats",
        "--include-log-monitor=false",  # it would read all logs again and again for drivers that ask for none
        "--num-cpus=1",
        "--num-gpus=0",
        "--object-store-memory=100000000",
        f"--resources={json.dumps(dict(resources))}",
    ]
    return Child(
        f"ray of {name}",
        argv,
        log=log,
        environment=inherited_environment(**ray_environment(settings), **_RAYLET, **environment),
    )


def node_resources(settings: Settings, name: str) -> dict[str, int]:
    """What makes a raylet the hub node of that name.

    Its devices are there for Ray's autoscaler, which compares them with what jobs need; Ray places nothing by them.
    """
    found = {f"{NODE_RESOURCE}{name}": 1}
    for part in (part for node in settings.nodes if node.name == name for part in node.devices):
        resource = f"{DEVICE_RESOURCE}{part.model}"
        found[resource] = found.get(resource, 0) + part.count
    return found


def ray_address(settings: Settings) -> str:
    """Where the cluster's head listens, as Ray prints it."""
    return f"{settings.ray_head_host}:{settings.ray_port}"


def ray_directory(settings: Settings) -> Path:
    """Ray's session directory; short, because Ray puts sockets below it, which it opens to everybody."""
    if settings.ray_directory is not None:
        return settings.ray_directory
    return run_directory() / f"ray-{settings.ray_port}"
