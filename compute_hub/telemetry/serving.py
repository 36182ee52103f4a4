"""A process's own metrics on a port of its own, and where Prometheus finds that port.

Each process writes a file of Prometheus's file-based service discovery into the state directory, so targets come and
go without anybody editing a configuration. A file is left behind by a process that was killed: then its target is
down, which is what the alert says, until a process of the hub starts again and clears it away.
"""

import atexit
import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
from prometheus_client import start_http_server

from compute_hub.settings import Settings
from compute_hub.telemetry.registry import REGISTRY
from kernel.errors import HubError

PORTS_TRIED: Final = 64
"""Workers of one kind on one host take consecutive ports from the configured one on."""


class NoPortFree(HubError):
    """Every port that a process may serve its metrics on is taken."""

    sentence = "metrics_port: all ports from {first} to {last} are taken on {host}; name another, or 0 for any."


@dataclass(frozen=True)
class Serving:
    """Where a process serves its metrics."""

    port: int
    announced: Path

    def withdraw(self) -> None:
        """Be no target any more; for processes that a signal ends before Python could."""
        self.announced.unlink(missing_ok=True)


def targets_directory(settings: Settings) -> Path:
    """Where processes announce themselves."""
    return settings.state_directory.resolve() / "metrics"


def serve_metrics(settings: Settings, process: str, ports_tried: int = PORTS_TRIED) -> Serving:
    """Serve this process's metrics until it ends. Raises NoPortFree."""
    port = _listen(settings, ports_tried)
    directory = targets_directory(settings)
    directory.mkdir(parents=True, exist_ok=True)
    host = socket.gethostname()
    _sweep(directory, host)
    announced = directory / f"{process}-{host}-{os.getpid()}.json"
    content = [
        {
            "targets": [f"{settings.metrics_host}:{port}"],
            "labels": {"job": f"hub-{process.partition('_')[0]}", "process": process},
        }
    ]
    partial = announced.with_suffix(".partial")
    partial.write_text(json.dumps(content), encoding="utf-8")
    partial.replace(announced)
    serving = Serving(port, announced)
    atexit.register(serving.withdraw)
    return serving


def _listen(settings: Settings, ports_tried: int) -> int:
    wanted = settings.metrics_port
    tried = range(wanted, wanted + ports_tried) if wanted else range(1)
    for port in tried:
        try:
            server, _ = start_http_server(port, settings.metrics_host, REGISTRY)
        except OSError:
            continue
        return int(server.server_port)
    raise NoPortFree(first=wanted, last=wanted + ports_tried - 1, host=settings.metrics_host)


def _sweep(directory: Path, host: str) -> None:
    """Remove what processes of this host left behind that are no more."""
    for file in directory.glob(f"*-{host}-*.json"):
        pid = file.stem.rpartition("-")[2]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            file.unlink(missing_ok=True)
