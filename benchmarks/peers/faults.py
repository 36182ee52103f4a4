"""What may go wrong with a running hub, one fault each: SIGKILL of a part, or SIGSTOP of it for a while."""

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import psutil

from benchmarks.peers.ours import Hub
from compute_hub.stack.children import processes_having
from compute_hub.stack.node_process import SOCKET_VARIABLE, supervisor_socket

PAUSE_S: Final = 4.0
"""For so long a part is stopped: longer than a leader's lease, shorter than a node's."""


@dataclass(frozen=True)
class Fault:
    """Something that is done to a hub, and its name."""

    name: str
    strike: Callable[[Hub], None]


def kill(part: str) -> Fault:
    """SIGKILL one process of a part."""
    return Fault(f"kill {part}", lambda hub: _signal(victims(hub, part)[:1], signal.SIGKILL))


def pause(part: str) -> Fault:
    """SIGSTOP one process of a part for a while."""

    def strike(hub: Hub) -> None:
        struck, never = victims(hub, part)[:1], threading.Event()
        _signal(struck, signal.SIGSTOP)
        never.wait(PAUSE_S)
        _signal(struck, signal.SIGCONT)

    return Fault(f"pause {part}", strike)


def kill_database_backend() -> Fault:
    """End one connection of the hub to its database."""

    def strike(hub: Hub) -> None:
        with hub.database() as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE usename = 'hub_app' ORDER BY random() LIMIT 1"
            )

    return Fault("kill database backend", strike)


FAULTS: Final = (
    *(
        kill(part)
        for part in ("api", "controller", "courier", "biller", "agent", "supervisor", "raylet", "head")
    ),
    *(
        pause(part)
        for part in ("api", "controller", "courier", "biller", "agent", "supervisor", "raylet", "head")
    ),
    kill_database_backend(),
)


def victims(hub: Hub, part: str) -> list[psutil.Process]:
    """The processes of a part of a hub, in a fixed order."""
    if part == "supervisor":
        return hub.supervisors()
    if part == "courier":
        return [one for victim in victims(hub, "controller") for one in _children(victim) if _is_courier(one)]
    if part in {"agent", "raylet", "head"}:
        mark = {"agent": "ray::NodeAgent", "raylet": "/raylet/raylet", "head": "gcs_server"}[part]
        return [process for process in _of_ray(hub) if mark in _command(process)]
    hubs = psutil.Process(os.getpid()).children()
    mine = str(hub.stack.settings.state_directory.resolve())
    return [
        process
        for process in hubs
        if _command(process).endswith(f"hub {part}")
        and _environment(process).get("HUB_STATE_DIRECTORY") == mine
    ]


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children()
    except psutil.Error:
        return []


def _is_courier(process: psutil.Process) -> bool:
    return "scheduler.ray.courier" in _command(process)


def _of_ray(hub: Hub) -> list[psutil.Process]:
    settings = hub.stack.settings
    sockets = [str(supervisor_socket(settings, node.name)) for node in settings.nodes]
    return [process for path in sockets for process in processes_having(SOCKET_VARIABLE, path)]


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return dict(process.environ())
    except psutil.Error:
        return {}


def _signal(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)
