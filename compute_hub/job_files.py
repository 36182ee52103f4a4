"""Reading what jobs left in the workspace store. Paths are built from ids; what a tenant wrote is never followed."""

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from heapq import nsmallest
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Final

from kernel.clock import from_unix_ms
from kernel.errors import Conflict, Invalid, NotFound
from scheduler.node.errors import InvalidRun
from scheduler.node.workspace import open_artifact, open_directory

_CHUNK_BYTES: Final = 64 * 1024
_LATEST_MS: Final = 253_402_300_799_999
"""The end of the year 9999, behind which there are no datetimes."""

ENTRIES_MAX: Final = 1_000_000
"""Entries of one directory that are looked at: as many as a job may have by itself, unless its operator allows more."""


class LogNotReadable(NotFound):
    """What lies at the log's place is not a log."""

    sentence = "What job {job} left in the place of the log of rank {rank} is not a log."


class NoLongerKept(NotFound):
    """It was removed after its time, or before it because the disk was full."""

    sentence = "{what} of job {job} are no longer kept: they were removed at {removed_at}."


class FolderTooLarge(Conflict):
    """A folder with more entries than are looked at; a listing that leaves some out would look like a whole one."""

    sentence = (
        "{path!r} of job {job} has more than {most} entries, too many to list. Download them by their names."
    )


class ArtifactNotReadable(NotFound):
    """There is nothing at the path that the job itself could have meant to give away."""

    sentence = "Job {job} left nothing readable at {path!r}: {why}. `hub job artifacts` lists what it left."


class MalformedArtifactPath(Invalid):
    """A path that does not lead downwards."""

    sentence = (
        "{field}: {path!r} does not name something below the job's working directory. Leave out .. and /."
    )


@dataclass(frozen=True)
class Artifact:
    """Something in a job's working directory: a `file`, a `directory`, or `other`, which cannot be downloaded."""

    path: str
    kind: str
    size_bytes: int
    modified_at: datetime


def log_chunks(job: object, rank: int, path: Path, offset: int) -> Iterator[bytes]:
    """A log's bytes from an offset on, up to what it held when reading began; nothing when there is no log yet.

    The log is opened before this returns, so a refusal comes before the first byte. A symbolic link is not followed: a
    log is a file the supervisor made.

    Raises:
        LogNotReadable: a symbolic link, a directory or a device lies there.
    """
    file = _open_log(job, rank, path)
    return iter(()) if file is None else _chunks(file, offset, os.fstat(file.fileno()).st_size)


def log_piece(job: object, rank: int, path: Path, offset: int) -> bytes:
    """Some bytes of a log from an offset on; none at its end, or when there is none. Raises LogNotReadable."""
    file = _open_log(job, rank, path)
    if file is None:
        return b""
    with file:
        file.seek(offset)
        return file.read(_CHUNK_BYTES)


def list_artifacts(
    job: object, workspace: Path, path: str, after: str, limit: int
) -> tuple[list[Artifact], str | None]:
    """What lies in a folder of a job's working directory, by path, the first so many behind a path; then the next.

    Nothing when there is no working directory yet. However many there are, only those that are asked for are kept.

    Returns:
        Them, and the path after which there may be more; what has just been removed is left out.

    Raises:
        MalformedArtifactPath, ArtifactNotReadable, FolderTooLarge.
    """
    parts = _parts("folder", path)
    if not workspace.is_dir():
        return [], None
    above = "".join(f"{part}/" for part in parts)
    try:
        with open_directory(workspace, parts, "path") as folder, os.scandir(folder) as entries:
            named = ((above + _shown(entry.name), entry.name) for entry in islice(entries, ENTRIES_MAX))
            names = nsmallest(limit, (pair for pair in named if pair[0] > after))
            if next(entries, None) is not None:
                raise FolderTooLarge(job=job, path=path, most=ENTRIES_MAX)
            found = (_artifact(folder, name, shown) for shown, name in names)
            more = names[-1][0] if len(names) == limit else None
            return [artifact for artifact in found if artifact is not None], more
    except (InvalidRun, OSError) as error:
        raise ArtifactNotReadable(job=job, path=path, why=_why(error)) from error


def open_download(job: object, workspace: Path, path: str) -> tuple[int, Iterator[bytes]]:
    """The size and the bytes of a plain file that a job left; it is opened before this returns.

    A file with a second name (a hard link) is refused: whose it is could not be said.

    Raises:
        MalformedArtifactPath, ArtifactNotReadable.
    """
    if not _parts("path", path):
        raise MalformedArtifactPath(field="path", path=path)
    try:
        handle = open_artifact(workspace, path)
    except (InvalidRun, OSError) as error:
        raise ArtifactNotReadable(job=job, path=path, why=_why(error)) from error
    facts = os.fstat(handle)
    if facts.st_nlink != 1:
        os.close(handle)
        raise ArtifactNotReadable(job=job, path=path, why="it has more than one name (hard links)")
    return facts.st_size, _chunks(os.fdopen(handle, "rb"), 0, facts.st_size)


def _open_log(job: object, rank: int, path: Path) -> BinaryIO | None:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno not in {errno.ELOOP, errno.ENXIO, errno.ENOTDIR}:
            raise
        raise LogNotReadable(job=job, rank=rank) from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise LogNotReadable(job=job, rank=rank)
    return os.fdopen(handle, "rb")


def _chunks(file: BinaryIO, offset: int, until: int) -> Iterator[bytes]:
    """What a file held when it was opened: a job may still write to it, and its size has been announced."""
    with file:
        left = max(0, until - offset)
        file.seek(offset)
        while left > 0 and (chunk := file.read(min(left, _CHUNK_BYTES))):
            left -= len(chunk)
            yield chunk


def _parts(field: str, path: str) -> tuple[str, ...]:
    parts = tuple(part for part in path.split("/") if part not in {"", "."})
    if path.startswith("/") or ".." in parts or "\0" in path:
        raise MalformedArtifactPath(field=field, path=path)
    return parts


def _artifact(folder: int, name: str, path: str) -> Artifact | None:
    try:
        facts = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None  # the job, which may still run, has just removed it
    kind = "directory" if stat.S_ISDIR(facts.st_mode) else "other"
    if stat.S_ISREG(facts.st_mode) and facts.st_nlink == 1:
        kind = "file"
    # The job says when it was changed: any number of nanoseconds.
    modified_ms = min(max(0, facts.st_mtime_ns // 1_000_000), _LATEST_MS)
    return Artifact(path, kind, facts.st_size, from_unix_ms(modified_ms))


def _shown(name: str) -> str:
    return name.encode(errors="surrogateescape").decode(errors="replace")


def _why(error: InvalidRun | OSError) -> str:
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return str(error.facts["problem"])
