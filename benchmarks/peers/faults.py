"""What may go wrong with the processes of a running hub: SIGKILL of one, SIGSTOP of it for a while, two at once."""

import os
import random
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import psutil
import psycopg

from benchmarks.peers.ours import Hub
from compute_hub.stack.children import processes_having
from compute_hub.stack.node_process import SOCKET_VARIABLE, supervisor_socket

PAUSE_S: Final = 4.0
"""For so long a part is stopped: longer than a leader's lease, shorter than a node's."""
LONG_PAUSE_S: Final = 12.0
"""Longer than a node's lease and all that is waited beyond it before its jobs run elsewhere."""

PARTS: Final = (
    "api",
    "leader",
    "standby",
    "courier",
    "biller",
    "keeper",
    "node",
    "agent",
    "supervisor",
    "nursery",
    "raylet",
    "head",
)
"""Every kind of process of a hub; of a controller, the one that leads and one that stands by are different things."""

_BELOW: Final = {
    "courier": ("controller", "scheduler.ray.courier"),
    "nursery": ("supervisor", "hub-nursery"),
}
"""Whose child a part is, and how it is known."""

Strike = Callable[[Hub, random.Random], None]


@dataclass(frozen=True)
class Fault:
    """Something that is done to a hub, and its name; of several processes chance takes one."""

    name: str
    strike: Strike


def kill(part: str) -> Fault:
    """SIGKILL one process of a part."""
    return Fault(
        f"kill {part}", lambda hub, chance: send_signal(one_of(victims(hub, part), chance), signal.SIGKILL)
    )


def end(part: str) -> Fault:
    """SIGTERM of one process of a part, as for an upgrade."""
    return Fault(
        f"end {part}", lambda hub, chance: send_signal(one_of(victims(hub, part), chance), signal.SIGTERM)
    )


def pause(part: str, seconds: float = PAUSE_S) -> Fault:
    """SIGSTOP one process of a part for a while."""

    def strike(hub: Hub, chance: random.Random) -> None:
        stop_for(one_of(victims(hub, part), chance), seconds)

    return Fault(f"pause {part} for {seconds:.0f} s", strike)


def together(*faults: Fault) -> Fault:
    """Several faults at once."""

    def strike(hub: Hub, chance: random.Random) -> None:
        chances = [random.Random(chance.random()) for _ in faults]  # noqa: S311 - chance, not secrecy
        threads = [
            threading.Thread(target=fault.strike, args=(hub, own))
            for fault, own in zip(faults, chances, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return Fault(" and ".join(fault.name for fault in faults), strike)


def victims(hub: Hub, part: str) -> list[psutil.Process]:
    """The processes of a part of a hub, in a fixed order."""
    match part:
        case "supervisor":
            return hub.supervisors()
        case "courier" | "nursery":
            above, mark = _BELOW[part]
            found = [child for one in victims(hub, above) for child in _children(one)]
            return [one for one in found if mark in _command(one)]
        case "agent" | "raylet" | "head":
            mark = {"agent": "ray::NodeAgent", "raylet": "/raylet/raylet", "head": "gcs_server"}[part]
            return [process for process in _of_ray(hub) if mark in _command(process)]
        case "leader" | "standby":
            leads = _leader_pid(hub)
            return [one for one in victims(hub, "controller") if (one.pid == leads) == (part == "leader")]
        case _:
            return [one for one in own_processes(hub) if f"hub {part}" in _command(one)]


def own_processes(hub: Hub) -> list[psutil.Process]:
    """What the hub's stack has started itself; the database is not among them."""
    mine = str(hub.stack.settings.state_directory.resolve())
    children = psutil.Process(os.getpid()).children()
    return [one for one in children if _environment(one).get("HUB_STATE_DIRECTORY") == mine]


def one_of(processes: Sequence[psutil.Process], chance: random.Random) -> Sequence[psutil.Process]:
    """One of them; none when they are just being started again."""
    return [chance.choice(processes)] if processes else []


def stop_for(processes: Sequence[psutil.Process], seconds: float) -> None:
    """SIGSTOP, and SIGCONT after so long."""
    send_signal(processes, signal.SIGSTOP)
    threading.Event().wait(seconds)
    send_signal(processes, signal.SIGCONT)


def send_signal(processes: Sequence[psutil.Process], number: signal.Signals) -> None:
    """Send a signal to each that is still there: some end as soon as their parent does."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def _leader_pid(hub: Hub) -> int:
    try:
        with hub.database() as connection:
            row = connection.execute("SELECT holder FROM scheduler_leader").fetchone()
    except psycopg.OperationalError:  # the database is away, too
        return 0
    return int(str(row[0]).rpartition(":")[2]) if row else 0


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children()
    except psutil.Error:
        return []


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
