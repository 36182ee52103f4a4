"""Reading what jobs left in the workspace store. Paths are built from ids, never from what a tenant wrote."""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from kernel.errors import NotFound

_CHUNK_BYTES: Final = 64 * 1024


class LogNotReadable(NotFound):
    """What lies at the log's place is not a log."""

    sentence = "What job {job} left in the place of the log of rank {rank} is not a log."


def log_chunks(job: object, rank: int, path: Path, offset: int) -> Iterator[bytes]:
    """A log's bytes from an offset on, up to what it held when reading began; nothing when there is no log yet.

    The log is opened before this returns, so a refusal comes before the first byte. A symbolic link is not followed: a
    log is a file the supervisor made.

    Raises:
        LogNotReadable: a symbolic link, a directory or a device lies there.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return iter(())
    except OSError as error:
        if error.errno not in {errno.ELOOP, errno.ENXIO, errno.ENOTDIR}:
            raise
        raise LogNotReadable(job=job, rank=rank) from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise LogNotReadable(job=job, rank=rank)
    return _chunks(os.fdopen(handle, "rb"), offset)


def _chunks(file: BinaryIO, offset: int) -> Iterator[bytes]:
    with file:
        left = max(0, os.fstat(file.fileno()).st_size - offset)
        file.seek(offset)
        while left > 0 and (chunk := file.read(min(left, _CHUNK_BYTES))):
            left -= len(chunk)
            yield chunk
