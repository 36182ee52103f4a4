"""The log of one run: what its processes print, from a pipe into a file that only the supervisor writes.

Bytes are copied as they are; lines mean nothing here. At the cap one sentence is written, and the rest is read
and thrown away, so that a job that prints too much goes on. Reading is paced: a job that floods the pipe waits,
the supervisor does not.
"""

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Final

_CHUNK_BYTES: Final = 256 * 1024
_PACE_S: Final = 0.05
_TAIL_BYTES: Final = 300
_LAST_CHUNKS: Final = 8  # a pipe holds far less; somebody who still writes must not keep us


class LogSink:
    """Drains one pipe into one file.

    Args:
        on_full: called once with the error when the file system takes no more.
    """

    def __init__(
        self, file: int, *, bytes_max: int, bytes_per_s: int, on_full: Callable[[OSError], None]
    ) -> None:
        self.bytes = os.fstat(file).st_size
        self.truncated = False
        self._last = b""
        self._file = file
        self._bytes_max = bytes_max
        self._budget_bytes = max(_CHUNK_BYTES, int(bytes_per_s * _PACE_S))
        self._on_full = on_full
        self._loop = asyncio.get_running_loop()
        self._pipe, self.write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(self.write_end, True)
        self._spent = 0
        self._over = False
        self._timer: asyncio.TimerHandle | None = None
        self._loop.add_reader(self._pipe, self._readable)

    def started(self) -> None:
        """The job has its copy of the pipe's end; ours goes."""
        os.close(self.write_end)
        self.write_end = -1

    def tail(self) -> str:
        """The last words, for the reason of a sandbox that could not be built."""
        self._drain()
        return self._last.decode(errors="replace").strip()

    def close(self) -> None:
        """Take what is still in the pipe and give both files back."""
        if self.write_end >= 0:
            self.started()
        if self._timer is not None:
            self._timer.cancel()
        if not self._over:
            self._stop_reading()
            self._drain()
        os.close(self._pipe)
        os.close(self._file)

    def _drain(self) -> None:
        with suppress(BlockingIOError):
            for _ in range(_LAST_CHUNKS):
                data = os.read(self._pipe, _CHUNK_BYTES)
                if not data:
                    return
                self._take(data)

    def _readable(self) -> None:
        try:
            data = os.read(self._pipe, _CHUNK_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._over = True
            self._stop_reading()
            return
        self._take(data)
        self._spent += len(data)
        if self._timer is None:
            self._timer = self._loop.call_later(_PACE_S, self._refill)
        if self._spent >= self._budget_bytes:
            self._stop_reading()

    def _refill(self) -> None:
        self._timer = None
        if self._spent >= self._budget_bytes:
            self._loop.add_reader(self._pipe, self._readable)
        self._spent = 0

    def _stop_reading(self) -> None:
        self._loop.remove_reader(self._pipe)

    def _take(self, data: bytes) -> None:
        self._last = (self._last + data[-_TAIL_BYTES:])[-_TAIL_BYTES:]
        if self.truncated:
            return
        room = self._bytes_max - self.bytes
        try:
            self._write(data[:room])
            if len(data) > room:
                self.truncated = True
                self._write(f"\n[hub: the log ends here: it reached {self._bytes_max} bytes]\n".encode())
        except OSError as error:
            self.truncated = True
            self._on_full(error)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            written = os.write(self._file, view)
            self.bytes += written
            view = view[written:]


def open_log(directory: int, name: str) -> int:
    """The log file in a directory, to be appended to; never through a link, never anything but a plain file."""
    return os.open(
        name,
        os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC,
        0o600,
        dir_fd=directory,
    )
