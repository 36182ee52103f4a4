"""Directories on the host that a tenant's code writes into, and how to walk them without being led astray.

Every path is opened component by component from the workspace root and never through a symbolic link, so that
nothing a job leaves behind can make the supervisor (which may be root) touch a file elsewhere.
"""

import asyncio
import errno
import os
import stat
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Final, Self

from scheduler.node.errors import FolderClosed, InvalidRun, NestedTooDeep

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
NOTICE: Final = "HUB_NOTICE"
DEPTH_MAX: Final = 256
"""Folders within folders that are walked: each is reached from the top, so deeper ones would cost ever more."""

_SHOWN_MAX: Final = 200
_NO_DESCRIPTOR: Final = (errno.EMFILE, errno.ENFILE)
_STEP_ENTRIES: Final = 256
"""Entries looked at and folders opened between two rests."""

Entry = tuple[int, str, os.stat_result]
"""A descriptor of its folder, its name, and what it is."""


@lru_cache(maxsize=256)
def relative_parts(root: Path, path: str, field: str) -> tuple[str, ...]:
    """The components of `path` below `root`. Raises InvalidRun when it is not (textually) below it."""
    above, _, below = path.partition(f"{root}/")
    parts = tuple(part for part in below.split("/") if part not in {"", "."})
    if above or not parts or ".." in parts or "\0" in path:
        raise InvalidRun(field=field, problem=f"{path} is not below the workspace root {root}")
    return parts


class Way:
    """Opens directories below a root, one after the other; the way that two have in common is gone once.

    `made` says of the directory entered last whether that has made it, so that nothing can be in it. Raises OSError.
    """

    def __init__(self, root: Path) -> None:
        self.made = False
        self._root = root
        self._parts: list[str] = []
        self._opened = [os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)]

    def enter(self, parts: tuple[str, ...], field: str, *, create: bool = False) -> int:
        """A descriptor of `root/parts…`, each step a real directory, until the next. Raises InvalidRun, OSError."""
        while tuple(self._parts) != parts[: len(self._parts)]:
            self._return()
        self.made = False
        for part in parts[len(self._parts) :]:
            try:
                self._opened.append(self._step(part, create=create))
            except (NotADirectoryError, FileNotFoundError) as error:
                problem = f"{'/'.join(parts)} below {self._root}: {part} is not a directory"
                raise InvalidRun(field=field, problem=problem) from error
            self._parts.append(part)
        return self._opened[-1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        while self._parts:
            self._return()
        os.close(self._opened.pop())

    def _return(self) -> None:
        self._parts.pop()
        os.close(self._opened.pop())

    def _step(self, part: str, *, create: bool) -> int:
        here = self._opened[-1]
        if not self.made:
            try:
                return os.open(part, _DIRECTORY, dir_fd=here)
            except FileNotFoundError:
                if not create:
                    raise
        try:
            os.mkdir(part, 0o711, dir_fd=here)
            self.made = True
        except FileExistsError:
            self.made = False
        return os.open(part, _DIRECTORY, dir_fd=here)


@contextmanager
def open_directory(root: Path, parts: tuple[str, ...], field: str) -> Iterator[int]:
    """A descriptor of `root/parts…`, each step a real directory. Raises InvalidRun, OSError."""
    with Way(root) as way:
        yield way.enter(parts, field)


def give_to(directory: int, uid: int) -> None:
    """Make a workspace its job's own, closed to other users. Only root can give; others keep."""
    if os.geteuid() == 0:
        os.fchown(directory, uid, uid)
    os.fchmod(directory, 0o700)


def leave_notice(directory: int, text: str) -> None:
    """Put a sentence into the workspace as the file HUB_NOTICE, replacing whatever is there. Raises OSError."""
    with suppress(FileNotFoundError):
        os.unlink(NOTICE, dir_fd=directory)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(NOTICE, flags, 0o644, dir_fd=directory), "w", encoding="utf-8") as file:
        file.write(f"{text}\n")


async def adopt(directory: int, uid: int) -> None:
    """Give a workspace that an earlier attempt left, under another uid, to this attempt's uid, link by link.

    Meanwhile its top is nobody's: where this is broken off, the next attempt sees that it was, whoever that runs as.

    Raises:
        NestedTooDeep: it has folders too deep within each other.
    """
    if os.geteuid() != 0 or os.fstat(directory).st_uid == uid:
        return
    os.fchown(directory, 0, 0)
    for entry in walk_entries(directory):
        if entry is None:
            await asyncio.sleep(0)
            continue
        folder, name, info = entry
        if info.st_uid != uid:
            with suppress(FileNotFoundError):
                os.chown(name, uid, uid, dir_fd=folder, follow_symlinks=False)


def open_artifact(workspace: Path, path: str) -> int:
    """A descriptor to read a plain file that a job left in its workspace, wherever its links point.

    Raises:
        InvalidRun: the path is not a plain file reached through plain folders.
    """
    parts = tuple(part for part in path.split("/") if part not in {"", "."})
    if not parts or ".." in parts or "\0" in path or path.startswith("/"):
        raise InvalidRun(field="path", problem=f"{path!r} does not name a file below the workspace")
    with open_directory(workspace, parts[:-1], "path") as folder:
        try:
            file = os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        except OSError as error:
            raise InvalidRun(field="path", problem=f"{path!r} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise InvalidRun(field="path", problem=f"{path!r} is not a plain file")
    return file


class Census:
    """How much some directory trees hold, counted in small steps so that nobody waits for it.

    Sparse files count by the blocks they occupy, hard links once per name. `trouble` is why it ended early, if it did.

    Args:
        directories: descriptors of their tops.
        besides: sizes of what else counts, with None wherever others may have their turn.
    """

    def __init__(self, directories: Iterable[int], besides: Iterable[int | None] = ()) -> None:
        self.bytes = 0
        self.entries = 0
        self.complete = False
        self.trouble = ""
        self._walk = self._count(tuple(directories), besides)

    def step(self) -> None:
        """Count some more entries; sets `complete` at the end."""
        if next(self._walk, None) is None:
            self.complete = True

    def close(self) -> None:
        """Stop half-way."""
        self._walk.close()

    def _count(self, tops: Iterable[int], besides: Iterable[int | None]) -> Generator[bool, None, None]:
        try:
            for entry in chain.from_iterable(map(walk_entries, tops)):
                if entry is None:
                    yield True
                    continue
                self.entries += 1
                self.bytes += entry[2].st_blocks * 512
        except (NestedTooDeep, FolderClosed) as trouble:
            self.trouble = str(trouble)
        for size in besides:
            if size is None:
                yield True
            else:
                self.bytes += size


def walk_entries(top: int) -> Iterator[Entry | None]:
    """Every entry below the directory `top`, links not followed; None wherever others may have their turn.

    Entries that vanish meanwhile or may not be looked at are left out. The descriptor is valid until the next step.
    However the tree is made, little is done between two of them: nothing may keep the supervisor from renewing leases.

    Raises:
        NestedTooDeep: there are folders deeper than `DEPTH_MAX`.
        FolderClosed: we are not root, and its owner closed a folder to us, and so to himself.
    """
    waiting: list[tuple[str, ...]] = [()]
    work = 0
    while waiting:
        parts = waiting.pop()
        work += len(parts) + 1
        try:
            directory = _reopen(top, parts)
        except OSError as error:
            _leave_out(error, parts)
            continue
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    try:
                        info = entry.stat(follow_symlinks=False)
                    except OSError as error:
                        _leave_out(error, parts)
                    else:
                        if stat.S_ISDIR(info.st_mode):
                            waiting.append((*parts, entry.name))
                        yield directory, entry.name, info
                    work += 1
                    if work >= _STEP_ENTRIES:
                        yield None
                        work = 0
        finally:
            os.close(directory)
        if waiting and len(waiting[-1]) > DEPTH_MAX:
            raise NestedTooDeep(most=DEPTH_MAX)


def _leave_out(error: OSError, parts: tuple[str, ...]) -> None:
    """What is gone or what even root may not see is left out; not what was closed to hide it from an ordinary user."""
    if isinstance(error, PermissionError) and os.geteuid() != 0:
        raise FolderClosed(path="/".join(parts)[-_SHOWN_MAX:]) from error
    if error.errno in _NO_DESCRIPTOR:
        raise error


def _reopen(top: int, parts: tuple[str, ...]) -> int:
    here = os.dup(top)
    for part in parts:
        try:
            below = os.open(part, _DIRECTORY, dir_fd=here)
        finally:
            os.close(here)
        here = below
    return here
