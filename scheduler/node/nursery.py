"""The supervisor's side of the nursery (`becoming.py`): has processes made that become the first of a job.

Forking the supervisor itself would copy its page tables for every job, and tear them down again; the nursery's are a
tenth of them. A few are made ahead, in moments in which nothing is started, and wait at their lines for a run
(docs/decisions/0038). They hold nothing of anybody's, are in no run's cgroup and count as no run; they do not need the
helper that made them any more, and end with the supervisor.

Invariant: a process of which the supervisor does not hear, because the nursery died, ends before it has begun: it
waits at a line at whose other end only the supervisor is.
"""

import asyncio
import marshal
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from scheduler.node import becoming
from scheduler.node.processes import kill_pidfd

_PATIENCE_S: Final = 3.0
"""The supervisor stands still so long for a helper that does not answer; well below any lease."""

_REST_S: Final = 0.015
"""Nothing was started for so long: time to make some ahead. Starts that come together follow one another faster."""

_PROGRAM: Final = "import sys; sys.path.append(sys.argv[1]); from scheduler.node.becoming import serve; serve()"
"""Not run by its file: what is compiled at the start leaves holes in the memory that every process is a copy of."""

_HUB: Final = str(Path(becoming.__file__).parents[2])
_ENVIRONMENT: Final = {"LD_BIND_NOW": "1"}
"""Each function is looked for once, and not by every process anew that calls it."""


@dataclass(frozen=True, slots=True)
class Room:
    """What all sandboxes of a node show that root makes.

    Args:
        etc: the folder that is /etc inside.
        tree: an empty folder to mount the tree on; only the nursery sees what is there.
        folders, files: absolute paths inside at which some job is shown a folder or a file of its own.
        hostname: inside.
    """

    etc: Path
    tree: Path
    folders: tuple[str, ...]
    files: tuple[str, ...]
    hostname: str
    tmp_bytes: int
    shm_bytes: int


@dataclass(frozen=True, slots=True)
class Launch:
    """A request of the nursery's, `becoming.Plain` or, where there is a room, `becoming.Enclosed`.

    `descriptors` go with it.
    """

    request: "becoming.Plain | becoming.Enclosed"
    descriptors: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Made:
    """A process that waits for what it is to become at the other end of a line."""

    pid: int
    line: socket.socket

    def become(self, descriptors: Sequence[int]) -> None:
        """Raises OSError; BrokenPipeError when it is dead."""
        socket.send_fds(self.line, [b"%d" % self.pid], descriptors)


class Nursery:
    """One helper process, started again when it is gone. With a room, every process is the first of a sandbox there."""

    def __init__(self, room: Room | None) -> None:
        self._room = room
        self._process: subprocess.Popen[bytes] | None = None
        self._line: socket.socket | None = None
        self._ahead: dict[int, _Made] = {}
        """By their pidfds, the oldest first."""
        self._ends = select.epoll()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._next: asyncio.Handle | None = None
        self._rested_s = 0.0
        self._wanted = 0

    def keep_ready(self, wanted: int) -> None:
        """From now on, on the running loop, have so many processes made ahead."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._ends.fileno(), self._bury)
        self._wanted = wanted
        self._rest()

    def start(self, launch: Launch, output: int, *, anew: bool = False) -> int:
        """The pid of a child of ours that becomes this and says everything to `output`. Raises OSError.

        It is none that was made ahead if it is to be seen whether one can be made: `anew`.
        """
        asked = memory_file(marshal.dumps(launch.request))
        descriptors = (output, asked, *launch.descriptors)
        try:
            pid = None if anew else self._start_ready(descriptors)
            return pid or self._start_anew(descriptors)
        finally:
            os.close(asked)
            self._rest()

    def make_ready(self) -> int:
        """Make one ahead; its pid. Raises OSError."""
        made = self._make(becoming.AHEAD)
        with ExitStack() as undone:
            undone.callback(abandon, made.pid)
            undone.callback(made.line.close)
            handle = os.pidfd_open(made.pid)
            undone.callback(os.close, handle)
            self._ends.register(handle, select.EPOLLIN)
            undone.pop_all()
        self._ahead[handle] = made
        return made.pid

    def close(self) -> None:
        """End the helper and whoever waits."""
        if self._next is not None:
            self._next.cancel()
        if self._loop is not None:
            self._loop.remove_reader(self._ends.fileno())
            self._loop = None
        self._end_helper()
        for handle in self._ahead:
            kill_pidfd(handle)
        for handle in list(self._ahead):
            os.waitpid(self._forget(handle), 0)
        self._ends.close()

    def _start_ready(self, descriptors: Sequence[int]) -> int | None:
        """By the first of those made ahead that has said it is ready, lives and was not stopped; None if none has."""
        for handle, made in list(self._ahead.items()):
            if _is_over_or_stopped(handle):
                continue  # `_bury` will see to it, or whoever stopped it: a run would wait for him
            try:
                if made.line.recv(len(becoming.READY), socket.MSG_DONTWAIT) != becoming.READY:
                    continue  # it has ended, and `_bury` will see to it
                made.become(descriptors)
            except (BlockingIOError, ConnectionError):
                continue
            except OSError:
                kill_pidfd(handle)
                raise
            self._forget(handle)
            return made.pid
        return None

    def _start_anew(self, descriptors: Sequence[int]) -> int:
        made = self._make(becoming.AT_ONCE)
        try:
            made.become(descriptors)
        except OSError:
            abandon(made.pid)
            raise
        finally:
            made.line.close()
        return made.pid

    def _rest(self) -> None:
        """Somebody was started: nobody is made ahead for a moment."""
        if self._loop is None:
            return
        self._rested_s = self._loop.time() + _REST_S
        if self._next is None and len(self._ahead) < self._wanted:
            self._next = self._loop.call_at(self._rested_s, self._make_missing)

    def _make_missing(self, missing: int = 0) -> None:
        """Make so many ahead, or all that are missing, one in each round of the loop, unless somebody is started.

        No more, even if they die as fast as they are made: whatever ails them ails the next start, too, which says so.
        """
        assert self._loop is not None  # noqa: S101 - which calls this
        self._next = None
        if self._loop.time() < self._rested_s:
            self._next = self._loop.call_at(self._rested_s, self._make_missing)
            return
        missing = missing or self._wanted - len(self._ahead)
        if missing <= 0:
            return
        try:
            self.make_ready()
        except OSError:
            return
        if missing > 1:
            self._next = self._loop.call_soon(self._make_missing, missing - 1)

    def _bury(self) -> None:
        """Whoever died before his run came is not waited for any longer."""
        for handle, _ in self._ends.poll(0):
            os.waitpid(self._forget(handle), 0)

    def _forget(self, handle: int) -> int:
        """It does not wait any longer, whatever becomes of it; its pid."""
        made = self._ahead.pop(handle)
        self._ends.unregister(handle)
        os.close(handle)
        made.line.close()
        return made.pid

    def _make(self, kind: bytes) -> _Made:
        try:
            return self._make_by(self._line or self._open(), kind)
        except ConnectionError:
            return self._make_by(self._open(), kind)  # another helper

    def _make_by(self, line: socket.socket, kind: bytes) -> _Made:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                return _Made(self._ask(line, kind, theirs.fileno()), ours)
            except BaseException:
                ours.close()
                raise

    def _ask(self, line: socket.socket, kind: bytes, descriptor: int) -> int:
        try:
            socket.send_fds(line, [kind], [descriptor])
            answer = line.recv(becoming.ANSWER_BYTES)
            if not answer:
                raise ConnectionError("the nursery died")
        except TimeoutError as error:
            self._end_helper()
            why = f"The helper that makes processes did not answer for {_PATIENCE_S:.0f} s"
            raise TimeoutError(why) from error
        except OSError:
            self._end_helper()
            raise
        pid = int.from_bytes(answer, "little", signed=True)
        if pid < 0:
            raise OSError(-pid, os.strerror(-pid))
        return pid

    def _end_helper(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _open(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                (sys.executable, "-I", "-S", "-c", _PROGRAM, _HUB),
                stdin=theirs.fileno(),
                cwd="/",
                env=_ENVIRONMENT,
                start_new_session=True,
            )
        ours.settimeout(_PATIENCE_S)
        ours.send(marshal.dumps(self._described()))
        self._line = ours
        return ours

    def _described(self) -> "becoming.Room | None":
        room = self._room
        if room is None:
            return None
        places = (str(room.etc), str(room.tree), list(room.folders), list(room.files))
        return places, room.hostname, (room.tmp_bytes, room.shm_bytes)


def _is_over_or_stopped(handle: int) -> bool:
    """Whether a child of ours is dead, or was sent SIGSTOP and not told to go on; it can still be waited for."""
    return os.waitid(os.P_PIDFD, handle, os.WEXITED | os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None


def memory_file(data: bytes) -> int:
    """A descriptor, closed on exec, of a file in memory that holds this and is to be read from its beginning."""
    handle = os.memfd_create("hub", os.MFD_CLOEXEC)
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(handle, rest) :]
    os.lseek(handle, 0, os.SEEK_SET)
    return handle


def await_child(pid: int) -> int:
    """Wait for a child; its exit status, or the number of the signal that ended it, below zero."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def abandon(pid: int) -> None:
    """Kill a child of which nothing more is wanted, and wait for it."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
