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
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from scheduler.node import becoming

_PATIENCE_S: Final = 3.0
"""The supervisor stands still so long for a helper that does not answer; well below any lease."""
_ANSWER_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class Becoming:
    """What a new process does before it becomes another program.

    Args:
        cgroup_joins: files to write itself into.
        namespaces: files of namespaces to enter, in this order.
        binds: (host path, place) pairs made in a mount namespace of its own; `root`, which contains the
            places, then becomes its root. No mount namespace is made when it is empty.
        devices: another place below the root, for a small /dev with a few terminals of its own; read-only, with an
            empty file for each of `device_files` (relative to it).
        limits: (resource, value) pairs, soft and hard.
        uid: whom to become, with a group of the same number and no capability; None to stay.
    """

    cgroup_joins: tuple[str, ...]
    namespaces: tuple[str, ...]
    binds: tuple[tuple[str, str], ...]
    root: str
    devices: str
    device_files: tuple[str, ...]
    limits: tuple[tuple[int, int], ...]
    uid: int | None


@dataclass(frozen=True, slots=True)
class Launch:
    """A command line, its environment and directory, the descriptors it needs, and what becomes it.

    The descriptors get the numbers from `FIRST_DESCRIPTOR` on.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    directory: str
    descriptors: tuple[int, ...]
    become: Becoming


class Nursery:
    """One helper process, started again when it is gone."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._line: socket.socket | None = None

    def start(self, launch: Launch, output: int) -> int:
        """The pid of a new child of ours that becomes this and says everything to `output`. Raises OSError."""
        request = _packed(launch)
        try:
            return self._start(request, [output, *launch.descriptors])
        except ConnectionError:
            return self._start(request, [output, *launch.descriptors])  # by another helper

    def _start(self, request: bytes, descriptors: list[int]) -> int:
        gate, gate_end = os.pipe2(os.O_CLOEXEC)
        try:
            pid = self._ask(request, [gate, *descriptors])
            os.write(gate_end, b"!")
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

    def _ask(self, request: bytes, descriptors: list[int]) -> int:
        line = self._line or self._open()
        try:
            sent = socket.send_fds(line, [request], descriptors)
            line.sendall(request[sent:])
            answer = b""
            while len(answer) < _ANSWER_BYTES:
                more = line.recv(_ANSWER_BYTES - len(answer))
                if not more:
                    raise ConnectionError("the nursery died")
                answer += more
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
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                (sys.executable, "-I", "-S", becoming.__file__),
                stdin=theirs.fileno(),
                cwd="/",
                env={},
                start_new_session=True,
            )
        ours.settimeout(_PATIENCE_S)
        self._line = ours
        return ours


def await_child(pid: int) -> int:
    """Wait for a child; its exit status, or the number of the signal that ended it, below zero."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def abandon(pid: int) -> None:
    """Kill a child of which nothing more is wanted, and wait for it."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _packed(launch: Launch) -> bytes:
    become = launch.become
    data = marshal.dumps(
        (
            list(launch.argv),
            dict(launch.env),
            launch.directory,
            become.cgroup_joins,
            become.namespaces,
            become.binds,
            become.root,
            become.devices,
            become.device_files,
            tuple((int(kind), int(value)) for kind, value in become.limits),
            become.uid,
        )
    )
    return len(data).to_bytes(4, "little") + data
