"""Unix sockets whose path is longer than the 107 bytes the kernel takes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_PATH_BYTES_MAX: Final = 107


@contextmanager
def reachable(path: Path) -> Iterator[str]:
    """A name for the socket that is short enough, valid inside the block. Raises OSError."""
    if len(os.fsencode(path)) <= _PATH_BYTES_MAX:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
