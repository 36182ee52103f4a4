"""Removes what jobs left, however it is made: through a bin beside it, in small steps, following nothing.

What is to go is renamed into the bin at once, and so is every folder found in what goes: none is reached through
another, so that folders without end within each other cost no more than as many beside each other.

Invariant: whoever is killed in between leaves everything either where it was or in the bin, which the next one empties.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import Final

BIN: Final = ".removed"
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_STEP_ENTRIES: Final = 256


def open_bin(folder: int) -> int:
    """A descriptor of a folder's bin, which is made where it is missing. Raises OSError."""
    with suppress(FileExistsError):
        os.mkdir(BIN, 0o700, dir_fd=folder)
    return os.open(BIN, _DIRECTORY, dir_fd=folder)


def put_aside(folder: int, name: str, into: int) -> None:
    """Take an entry out of its folder: a folder goes into the bin, under its own number; anything else is gone.

    What is not there any more is no error: somebody else may be at it, too. Raises OSError.
    """
    with suppress(FileNotFoundError):
        info = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if not stat.S_ISDIR(info.st_mode):
            os.unlink(name, dir_fd=folder)
            return
        try:
            os.rename(name, str(info.st_ino), src_dir_fd=folder, dst_dir_fd=into)
        except PermissionError:  # to move a folder one must be allowed to write into it
            _make_ours(folder, name)
            os.rename(name, str(info.st_ino), src_dir_fd=folder, dst_dir_fd=into)


def emptying(bin_: int) -> Iterator[None]:
    """Remove what lies in a bin; yields wherever others may have their turn. What resists is left for another time."""
    while True:
        with os.scandir(bin_) as entries:
            names = [entry.name for entry in islice(entries, _STEP_ENTRIES)]
        before = len(names)
        for name in names:
            yield from _strip(bin_, name)
            with suppress(FileNotFoundError):
                try:
                    os.rmdir(name, dir_fd=bin_)
                except OSError:
                    continue
            before -= 1
        if before == len(names):
            return


def _strip(bin_: int, name: str) -> Iterator[None]:
    """Take everything out of one folder of the bin; its own folders go beside it."""
    try:
        folder = _open(bin_, name)
    except (FileNotFoundError, NotADirectoryError):
        return
    work = 0
    try:
        left = -1
        while left:  # a file system may skip entries of a folder that changes while it is read
            found = gone = 0
            with os.scandir(folder) as entries:
                for entry in entries:
                    found += 1
                    with suppress(OSError):
                        put_aside(folder, entry.name, bin_)
                        gone += 1
                    work += 1
                    if work % _STEP_ENTRIES == 0:
                        yield
            left = found if gone else 0
    finally:
        os.close(folder)
    yield


def _open(folder: int, name: str) -> int:
    try:
        return os.open(name, _DIRECTORY, dir_fd=folder)
    except PermissionError:
        _make_ours(folder, name)
        return os.open(name, _DIRECTORY, dir_fd=folder)


def _make_ours(folder: int, name: str) -> None:
    """Let its owner, whom it may have shut out, into a folder; never through a link."""
    handle = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        os.chmod(f"/proc/self/fd/{handle}", 0o700)  # noqa: PTH101 - a descriptor that only names cannot be changed itself
    finally:
        os.close(handle)
