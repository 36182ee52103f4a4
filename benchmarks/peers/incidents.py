"""What goes wrong with more than one process: a machine, the database, a disk, an upload; and all faults there are."""

import enum
import os
import random
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import psutil

from benchmarks.peers.faults import (
    LONG_PAUSE_S,
    PARTS,
    PAUSE_S,
    Fault,
    end,
    kill,
    pause,
    send_signal,
    stop_for,
    together,
    victims,
)
from benchmarks.peers.load import submit_upload
from benchmarks.peers.losses import LOSSES, struck
from benchmarks.peers.ours import Hub
from compute_hub.stack.database import private_server

_DISK_BYTES: Final = 2 * 2**30
"""A file with holes: it takes what is written to it."""
_UPLOAD_BYTES: Final = 48 * 2**20
_FULL_S: Final = 4.0
_KILLED_AFTER_S: Final = (0.02, 0.4)


class SmallDisk(enum.Enum):
    """Whose disk may be full: that of a node's journal, or of the database."""

    JOURNAL = "the disk of a node's journal"
    DATABASE = "the disk of the database"

    def folder(self, hub: Hub) -> Path:
        """Where it is mounted."""
        settings = hub.stack.settings
        if self is SmallDisk.DATABASE:
            return private_server(settings).directory
        return settings.node_directory(hub.node_names[-1]) / "state"


def backend(number: signal.Signals | None) -> Fault:
    """One session of the hub is ended by its server, or stands still for a while, with whatever it has locked."""

    def strike(hub: Hub, chance: random.Random) -> None:
        with hub.database() as connection:
            query = "SELECT pid FROM pg_stat_activity WHERE usename = 'hub_app' ORDER BY pid"
            pids = [int(pid) for (pid,) in connection.execute(query.encode()).fetchall()]
            if pids and number is None:
                connection.execute("SELECT pg_terminate_backend(%s)", [chance.choice(pids)])
        if pids and number is not None:
            with suppress(psutil.NoSuchProcess):
                stop_for([psutil.Process(chance.choice(pids))], PAUSE_S)

    return Fault(f"{'kill' if number is None else 'pause'} database backend", strike)


def database_ends(how: str, number: signal.Signals) -> Fault:
    """The whole server is shut down or killed; the hub starts it again."""

    def strike(hub: Hub, chance: random.Random) -> None:  # noqa: ARG001 - there is one
        send_signal(_server(hub)[:1], number)

    return Fault(f"database {how}", strike)


def database_stands_still(seconds: float) -> Fault:
    """Every process of the server is stopped for a while."""

    def strike(hub: Hub, chance: random.Random) -> None:  # noqa: ARG001 - there is one
        stop_for(_server(hub), seconds)

    return Fault(f"database stands still for {seconds:.0f} s", strike)


def node_is(how: str) -> Fault:
    """A machine is lost in one of the ways of `LOSSES`: killed and started again at once, or away for a while."""

    def strike(hub: Hub, chance: random.Random) -> None:
        processes = struck(hub, chance.choice(hub.node_names), how)
        if how == "killed":
            send_signal(processes, signal.SIGKILL)
        else:
            stop_for(processes, LONG_PAUSE_S)

    return Fault(f"a node is {how}", strike)


def both(part: str) -> Fault:
    """SIGKILL of all processes of a part at once."""
    return Fault(f"kill every {part}", lambda hub, _: send_signal(victims(hub, part), signal.SIGKILL))


def upload_broken_off() -> Fault:
    """The API is killed while it takes in a large working directory; what was broken off is sent again, and runs."""

    def strike(hub: Hub, chance: random.Random) -> None:
        gone = threading.Timer(
            chance.uniform(*_KILLED_AFTER_S),
            lambda: send_signal(victims(hub, "api"), signal.SIGKILL),
        )
        gone.start()
        submit_upload(hub, chance, _UPLOAD_BYTES)
        gone.join()

    return Fault("kill api in an upload", strike)


def disk_is_full(hub: Hub, disk: SmallDisk) -> Fault:
    """A disk of the hub's own is full for a while."""
    folder = disk.folder(hub)

    def strike(_: Hub, chance: random.Random) -> None:  # noqa: ARG001 - there is one
        fill = folder / "fill"
        with suppress(OSError), fill.open("wb", buffering=0) as file:
            found = os.statvfs(folder)
            os.posix_fallocate(file.fileno(), 0, max(1, (found.f_bavail - 16) * found.f_frsize))
            file.seek(0, os.SEEK_END)
            while True:
                file.write(bytes(4096))
        threading.Event().wait(_FULL_S)
        fill.unlink()

    return Fault(f"{disk.value} is full", strike)


@contextmanager
def small_disk(hub: Hub, disk: SmallDisk) -> Iterator[None]:
    """Give a part of the hub a small disk, before it is started. Raises CalledProcessError: only root may mount."""
    folder = disk.folder(hub)
    folder.mkdir(parents=True, mode=0o700)
    image = folder.with_name(f"{folder.name}.ext4")
    with image.open("wb") as file:
        file.truncate(_DISK_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-E", "root_owner", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)
        image.unlink()


def _server(hub: Hub) -> list[psutil.Process]:
    """The database's processes, the first one first; none while it is being started."""
    with suppress(psutil.NoSuchProcess, FileNotFoundError):
        first = psutil.Process(private_server(hub.stack.settings).server_pid())
        return [first, *first.children()]
    return []


def every_fault() -> list[Fault]:
    """All kinds of faults but full disks, each once, in a fixed order."""
    return [
        *(kill(part) for part in PARTS),
        *(pause(part) for part in PARTS),
        *(end(part) for part in ("api", "leader", "standby", "biller", "keeper", "node", "supervisor")),
        *(pause(part, LONG_PAUSE_S) for part in ("leader", "node", "agent", "supervisor", "raylet", "head")),
        *(node_is(how) for how in LOSSES),
        backend(None),
        backend(signal.SIGSTOP),
        database_ends("shut down", signal.SIGINT),
        database_ends("shut down at once", signal.SIGQUIT),
        database_ends("killed", signal.SIGKILL),
        database_stands_still(PAUSE_S),
        database_stands_still(LONG_PAUSE_S),
        upload_broken_off(),
        *(both(part) for part in ("controller", "supervisor", "agent", "raylet")),
        together(kill("leader"), backend(None)),
        together(kill("leader"), database_ends("shut down at once", signal.SIGQUIT)),
        together(kill("supervisor"), kill("leader")),
        together(kill("supervisor"), database_ends("killed", signal.SIGKILL)),
        together(kill("agent"), kill("raylet")),
        together(kill("head"), kill("leader")),
        together(kill("api"), kill("biller"), kill("keeper")),
        together(pause("leader"), kill("standby")),
        together(pause("leader", LONG_PAUSE_S), node_is("cut off")),
        together(node_is("killed"), database_ends("shut down", signal.SIGINT)),
    ]
