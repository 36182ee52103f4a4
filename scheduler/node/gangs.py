"""One network namespace per gang and host, shared by ranks under different supervisors of that host.

Where the gang spans hosts, a device in each of its namespaces leads to the others (`overlay.py`).

A holder process keeps the namespace. Every member run holds a shared lock on the gang's file; the holder waits
for the exclusive lock and ends when it gets it, that is, when the last member is gone, however it went: locks
die with the supervisor that holds them, and runs die with their supervisor. Nothing is left to clean up.

    <host run directory>/gangs/<gang>/mutex     held while somebody makes or joins
    <host run directory>/gangs/<gang>/members   shared by members, awaited by the holder
    <host run directory>/gangs/<gang>/holder    "pid start-ticks" of the holder
"""

import asyncio
import fcntl
import hashlib
import os
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from kernel.ids import new_secret
from scheduler.node.config import NodeConfig
from scheduler.node.errors import MissingHere, NodeFailed
from scheduler.node.overlay import INTERFACE, PATH, Overlay, open_overlay
from scheduler.node.processes import start_ticks
from scheduler.node.protocol import Gang, RunSpec, Spanning

_START_S: Final = 10.0
_ROUNDS: Final = 200
_PAUSE_S: Final = 0.02
_NOWHERE: Final = {4: "192.0.0.8", 6: "100::1"}
"""Addresses that no machine has (RFC 7600, 6666); nothing is sent there, for nobody inside speaks."""


@dataclass(slots=True)
class Membership:
    """One run's part in a gang's namespace, which is that of process `pid` until `leave`."""

    pid: int
    _directory: Path
    _lock: int | None

    def leave(self) -> None:
        """The last one to leave ends the holder; may be called twice."""
        if self._lock is None:
            return
        os.close(self._lock)
        self._lock = None
        _sweep_soon(self._directory)


class GangNetworks:
    """Makes and joins the namespaces of this host's gangs, and those that span hosts once it is known that they can.

    Attributes:
        spanning: whether they can.
    """

    def __init__(self, host_run_directory: Path) -> None:
        self.spanning = Spanning()
        self._overlay: Overlay | None = None
        self._root = host_run_directory / "gangs"
        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        for directory in self._root.iterdir():
            sweep(directory)

    async def close(self) -> None:
        """Remove the folders of gangs that nobody is in any more."""
        for _ in range(_ROUNDS):
            if not [directory for directory in self._root.iterdir() if sweep(directory)]:
                return
            await asyncio.sleep(_PAUSE_S)

    async def try_to_span(self, config: NodeConfig) -> None:
        """Find out, by making the network of a gang whose other host does not exist."""
        try:
            self._overlay = await open_overlay(config)
            elsewhere = _NOWHERE[ip_address(self._overlay.address).version]
            (await self.join(Gang(f"trial-{new_secret()}", peers=(self._overlay.address, elsewhere)))).leave()
        except (NodeFailed, OSError) as error:
            self._overlay = None
            self.spanning = Spanning(problem=f"This node runs no part of a gang that spans machines: {error}")
        else:
            self.spanning = Spanning(self._overlay.address, problem="")

    def check(self, spec: RunSpec, gang: Gang) -> None:
        """Refuse a gang that this node cannot be part of. Raises InvalidRun, MissingHere."""
        if gang.peers:
            self._end().check(spec, gang)

    async def join(self, gang: Gang) -> Membership:
        """Become a member of a gang's namespace, which is made if this is the first one.

        Raises:
            NodeFailed: with the reason why there is no namespace.
        """
        directory = self._root / hashlib.sha256(gang.id.encode()).hexdigest()[:32]
        for _ in range(_ROUNDS):
            try:
                mutex = _lock(directory, "mutex", fcntl.LOCK_EX)
            except BlockingIOError:
                await asyncio.sleep(_PAUSE_S)
                continue
            try:
                return await self._join(gang, directory)
            except BlockingIOError:
                # The holder has just won the exclusive lock and is about to end.
                await asyncio.sleep(_PAUSE_S)
            finally:
                os.close(mutex)
        raise NodeFailed(why=f"The network of gang {gang.id} could not be joined: its folder stays locked.")

    async def _join(self, gang: Gang, directory: Path) -> Membership:
        members = _lock(directory, "members", fcntl.LOCK_SH)
        try:
            pid = _living_holder(directory)
            if pid is None:
                pid = await self._make(gang, directory)
        except BaseException:
            os.close(members)
            _sweep_soon(directory)
            raise
        return Membership(pid, directory, members)

    async def _make(self, gang: Gang, directory: Path) -> int:
        """The gang's namespace, whole before anybody else finds it; the process that holds it."""
        pid, ticks = await _start_holder(directory, spans=bool(gang.peers))
        if gang.peers:
            namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            try:
                await self._end().extend(gang, namespace)
            finally:
                os.close(namespace)
        (directory / "holder").write_text(f"{pid} {ticks}", encoding="ascii")
        return pid

    def _end(self) -> Overlay:
        if self._overlay is None:
            raise MissingHere(why=self.spanning.problem)
        return self._overlay


async def _start_holder(directory: Path, *, spans: bool) -> tuple[int, int]:
    """Its pid and when it started, in clock ticks. Raises NodeFailed."""
    # bubblewrap brings the loopback interface up. The descriptor is a lock of its own, waited for inside.
    # In a gang that spans hosts it removes the device: connections that were open when their ranks ended keep the
    # namespace for as long as the kernel waits for the other side's last word, up to two minutes.
    kept = ("--cap-add", "CAP_NET_ADMIN") if spans else ()
    wanted = os.open(directory / "members", os.O_RDWR | os.O_CLOEXEC)
    waits = f"flock -x {wanted}; exec ip link delete {INTERFACE}" if spans else f"exec flock -x {wanted}"
    said, say = os.pipe2(os.O_CLOEXEC)
    rootless = () if os.geteuid() == 0 else ("--unshare-user", "--uid", str(os.geteuid()))
    try:
        process = subprocess.Popen(  # noqa: ASYNC220 - takes a millisecond, on purpose on this thread
            (
                *("/usr/bin/bwrap", *rootless, "--unshare-net", "--cap-drop", "ALL", *kept, "--new-session"),
                *("--ro-bind", "/", "/", "--dev-bind", "/dev", "/dev", "--chdir", "/"),
                *("/bin/sh", "-c", f"echo $$; exec >/dev/null; {waits}"),
            ),
            env={"PATH": PATH},
            stdin=subprocess.DEVNULL,
            stdout=say,
            stderr=subprocess.DEVNULL,
            pass_fds=(wanted,),
            start_new_session=True,
        )
    finally:
        os.close(wanted)
        os.close(say)
    return await _await_holder(process, said)


async def _await_holder(process: subprocess.Popen[bytes], said: int) -> tuple[int, int]:
    watch_and_reap(process)
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(said, _arrived, ready)
    try:
        async with asyncio.timeout(_START_S):
            await ready
        text = os.read(said, 64).split()
    except TimeoutError:
        text = []
    finally:
        loop.remove_reader(said)
        os.close(said)
    ticks = start_ticks(int(text[0])) if text else None
    if ticks is None:
        process.kill()
        raise NodeFailed(why="The network namespace of the gang could not be made.")
    return int(text[0]), ticks


def _arrived(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def watch_and_reap(process: subprocess.Popen[bytes]) -> None:
    """Collect a child's exit status whenever it ends."""
    loop = asyncio.get_running_loop()
    handle = os.pidfd_open(process.pid)

    def ended() -> None:
        loop.remove_reader(handle)
        os.close(handle)
        process.wait()

    loop.add_reader(handle, ended)


def _lock(directory: Path, name: str, kind: int, *, create: bool = True) -> int:
    """A locked file of the gang's folder. Raises BlockingIOError, also when the folder was swept away."""
    if create:
        directory.mkdir(exist_ok=True, mode=0o700)
    try:
        file = os.open(directory / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError as error:
        raise BlockingIOError from error
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        raise
    if os.fstat(file).st_nlink == 0:
        os.close(file)
        raise BlockingIOError
    return file


def _living_holder(directory: Path) -> int | None:
    with suppress(OSError, ValueError):
        pid, ticks = map(int, (directory / "holder").read_text(encoding="ascii").split())
        if start_ticks(pid) == ticks:
            return pid
    return None


def _sweep_soon(directory: Path, rounds: int = _ROUNDS) -> None:
    if sweep(directory) and rounds:
        asyncio.get_running_loop().call_later(_PAUSE_S, _sweep_soon, directory, rounds - 1)


def sweep(directory: Path) -> bool:
    """Remove a gang's folder if nobody is in it; whoever comes at the same time makes a new one.

    Returns:
        Whether to come again: somebody is at the door, or the holder about to leave.
    """
    try:
        mutex = _lock(directory, "mutex", fcntl.LOCK_EX, create=False)
    except OSError:
        return directory.exists()
    try:
        try:
            members = _lock(directory, "members", fcntl.LOCK_EX)
        except BlockingIOError:
            return not _has_members(directory)
        for name in ("holder", "members", "mutex"):
            (directory / name).unlink(missing_ok=True)
        os.close(members)
        directory.rmdir()
    except OSError:
        return True
    finally:
        os.close(mutex)
    return False


def _has_members(directory: Path) -> bool:
    try:
        os.close(_lock(directory, "members", fcntl.LOCK_SH))
    except BlockingIOError:
        return False  # it is the holder's alone
    return True
