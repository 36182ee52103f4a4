"""The supervisor's side of the nursery (`becoming.py`): has processes made that become the first of a job.

Forking the supervisor itself would copy its page tables for every job, and tear them down again; the nursery's are a
tenth of them.

Invariant: a process of which the supervisor does not hear, because the nursery died, ends before it has begun: it
waits at a gate that only the supervisor opens.
"""

import marshal
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from scheduler.node import becoming

_PATIENCE_S: Final = 3.0
"""The supervisor stands still so long for a helper that does not answer; well below any lease."""

_ASKING: Final = b"?"

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
    """

    etc: Path
    tree: Path
    folders: tuple[str, ...]
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Launch:
    """A request of the nursery's, `becoming.Plain` or, where there is a room, `becoming.Enclosed`.

    `descriptors` go with it.
    """

    request: "becoming.Plain | becoming.Enclosed"
    descriptors: tuple[int, ...]


class Nursery:
    """One helper process, started again when it is gone. With a room, every process is the first of a sandbox there."""

    def __init__(self, room: Room | None) -> None:
        self._room = room
        self._process: subprocess.Popen[bytes] | None = None
        self._line: socket.socket | None = None

    def start(self, launch: Launch, output: int) -> int:
        """The pid of a new child of ours that becomes this and says everything to `output`. Raises OSError."""
        asked = memory_file(marshal.dumps(launch.request))
        try:
            return self._start([output, asked, *launch.descriptors])
        except ConnectionError:
            return self._start([output, asked, *launch.descriptors])  # by another helper
        finally:
            os.close(asked)

    def _start(self, descriptors: list[int]) -> int:
        gate, gate_end = os.pipe2(os.O_CLOEXEC)
        try:
            pid = self._ask([gate, *descriptors])
            os.write(gate_end, b"%d" % pid)
        finally:
            os.close(gate)
            os.close(gate_end)
        return pid

    def close(self) -> None:
        """End the helper."""
        if self._line is not None:
            self._line.close()
            self._line = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _ask(self, descriptors: list[int]) -> int:
        line = self._line or self._open()
        try:
            socket.send_fds(line, [_ASKING], descriptors)
            answer = line.recv(becoming.ANSWER_BYTES)
            if not answer:
                raise ConnectionError("the nursery died")
        except TimeoutError as error:
            self.close()
            why = f"The helper that makes processes did not answer for {_PATIENCE_S:.0f} s"
            raise TimeoutError(why) from error
        except OSError:
            self.close()
            raise
        pid = int.from_bytes(answer, "little", signed=True)
        if pid < 0:
            raise OSError(-pid, os.strerror(-pid))
        return pid

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
        return None if room is None else (str(room.etc), str(room.tree), list(room.folders), list(room.files))


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
