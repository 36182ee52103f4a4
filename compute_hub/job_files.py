"""Reading what jobs left in the workspace store. Paths are built from ids, never from what a tenant wrote."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_CHUNK_BYTES: Final = 64 * 1024


def log_chunks(path: Path, offset: int) -> Iterator[bytes]:
    """A log's bytes from an offset on, up to what it held when reading began; nothing when there is no log yet.

    A symbolic link is not followed: a log is a file the supervisor made.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    with os.fdopen(handle, "rb") as file:
        left = max(0, os.fstat(handle).st_size - offset)
        file.seek(offset)
        while left > 0 and (chunk := file.read(min(left, _CHUNK_BYTES))):
            left -= len(chunk)
            yield chunk
