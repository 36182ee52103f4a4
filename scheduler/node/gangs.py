"""One network namespace per gang and host, shared by ranks under different supervisors of that host.

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
from pathlib import Path
from typing import Final

from scheduler.node.errors import NodeFailed
from scheduler.node.processes import start_ticks

_START_S: Final = 10.0
_ROUNDS: Final = 200
_PAUSE_S: Final = 0.02


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
        if not sweep(self._directory):
            asyncio.get_running_loop().call_later(_PAUSE_S, sweep, self._directory)


class GangNetworks:
    """Makes and joins the namespaces of this host's gangs."""

    def __init__(self, host_run_directory: Path) -> None:
        self._root = host_run_directory / "gangs"
        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.sweep()

    def sweep(self) -> None:
        """Remove the folders of gangs that nobody is in any more."""
        for directory in self._root.iterdir():
            sweep(directory)

    async def join(self, gang_id: str) -> Membership:
        """Become a member of a gang's namespace, which is made if this is the first one.

        Raises:
            NodeFailed: with the reason why there is no namespace.
        """
        directory = self._root / hashlib.sha256(gang_id.encode()).hexdigest()[:32]
        for _ in range(_ROUNDS):
            try:
                mutex = _lock(directory, "mutex", fcntl.LOCK_EX)
            except BlockingIOError:
                await asyncio.sleep(_PAUSE_S)
                continue
            try:
                return await self._join(directory)
            except BlockingIOError:
                # The holder has just won the exclusive lock and is about to end.
                await asyncio.sleep(_PAUSE_S)
            finally:
                os.close(mutex)
        raise NodeFailed(why=f"The network of gang {gang_id} could not be joined: its folder stays locked.")

    async def _join(self, directory: Path) -> Membership:
        members = _lock(directory, "members", fcntl.LOCK_SH)
        try:
            pid = _living_holder(directory)
            if pid is None:
                pid = await self._make_holder(directory)
        except BaseException:
            os.close(members)
            raise
        return Membership(pid, directory, members)

    async def _make_holder(self, directory: Path) -> int:
        # bubblewrap brings the loopback interface up. The descriptor is a lock of its own, waited for inside.
        wanted = os.open(directory / "members", os.O_RDWR | os.O_CLOEXEC)
        said, say = os.pipe2(os.O_CLOEXEC)
        rootless = () if os.geteuid() == 0 else ("--unshare-user", "--uid", str(os.geteuid()))
        try:
            process = subprocess.Popen(  # noqa: ASYNC220 - takes a millisecond, on purpose on this thread
                (
                    *("/usr/bin/bwrap", *rootless, "--unshare-net", "--cap-drop", "ALL", "--new-session"),
                    *("--ro-bind", "/", "/", "--dev-bind", "/dev", "/dev", "--chdir", "/"),
                    *("/bin/sh", "-c", f"echo $$; exec /usr/bin/flock -x {wanted} >/dev/null"),
                ),
                env={"PATH": "/usr/bin:/bin"},
                stdin=subprocess.DEVNULL,
                stdout=say,
                stderr=subprocess.DEVNULL,
                pass_fds=(wanted,),
                start_new_session=True,
            )
        finally:
            os.close(wanted)
            os.close(say)
        return await _await_holder(process, said, directory)


async def _await_holder(process: subprocess.Popen[bytes], said: int, directory: Path) -> int:
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
    pid = int(text[0])
    (directory / "holder").write_text(f"{pid} {ticks}", encoding="ascii")
    return pid


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


def sweep(directory: Path) -> bool:
    """Remove a gang's folder if nobody is in it; whoever comes at the same time makes a new one."""
    try:
        mutex = _lock(directory, "mutex", fcntl.LOCK_EX, create=False)
    except OSError:
        return not directory.exists()
    try:
        members = _lock(directory, "members", fcntl.LOCK_EX)
        for name in ("holder", "members", "mutex"):
            (directory / name).unlink(missing_ok=True)
        os.close(members)
        directory.rmdir()
    except OSError:
        return False
    finally:
        os.close(mutex)
    return True
