"""Ports for a hub that is started for itself beside others: by a demo, a replay, a benchmark or a test.

Between the choice of a port and its use Ray opens a hundred others, and every connection takes one. Invariant: what
is handed out lies below the range that the kernel takes those from (`ip_local_port_range`, from 32768 on) and above
Ray's own for its workers (to 19999), so that nobody gets it by chance meanwhile.
"""

import errno
import itertools
import os
import socket
from contextlib import closing
from typing import Final

_FIRST: Final = 20_000
_COUNT: Final = 10_000
_STRIDE: Final = 97
"""Processes with consecutive numbers begin so far from each other."""

_numbers = itertools.count()


def free_port() -> int:
    """A loopback port that nobody listens at, another one with every call. Raises OSError when all are taken."""
    for number in itertools.islice(_numbers, _COUNT):
        port = _FIRST + (os.getpid() * _STRIDE + number) % _COUNT
        with closing(socket.socket()) as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise OSError(errno.EADDRINUSE, f"All ports from {_FIRST} to {_FIRST + _COUNT - 1} are taken.")
