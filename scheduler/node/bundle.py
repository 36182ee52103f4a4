"""Unpacks a tenant's working directory: `python -m scheduler.node.bundle`, a process of its own.

It gives up root for the job's uid before it reads the first byte, limits its memory, and knows the archive and
the workspace only as open descriptors. Only plain files, folders and links that stay inside are made; names are
relative, without `..`, and opened step by step without following links. Prints one sentence and leaves with
status 1 when the archive is refused, with `FAILED_BY` + errno when the system fails it.

It ends with the supervisor: nobody else knows of it, and its uid may be the next job's.

Arguments: descriptor of the workspace (the archive is 0), sha256, bytes at most, entries at most, uid (-1
keeps the caller's), pid of the supervisor.
"""

import ctypes
import gzip
import hashlib
import io
import os
import posixpath
import resource
import signal
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import BinaryIO, Final

FAILED_BY: Final = 100
"""Added to the number of the system's error that kept an archive from being unpacked."""

_ARCHIVE: Final = 0
_MEMORY_BYTES: Final = 512 * 1024 * 1024
_COPY_BYTES: Final = 1024 * 1024
_DEPTH_MAX: Final = 200
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_GZIP_MAGIC: Final = b"\x1f\x8b"
_PR_SET_PDEATHSIG: Final = 1


class Refused(Exception):
    """The archive is not what it must be; the message is a sentence without its full stop."""


def unpack(archive: BinaryIO, top: int, *, sha256: str, bytes_max: int, entries_max: int) -> None:
    """Unpack into the directory `top`. Raises Refused, OSError."""
    if _digest(archive) != sha256:
        raise Refused("its content does not match its SHA-256")
    archive.seek(0)
    magic = archive.read(2)
    archive.seek(0)
    plain: BinaryIO = gzip.GzipFile(fileobj=archive) if magic == _GZIP_MAGIC else archive  # type: ignore[assignment]
    bounded = io.BufferedReader(_Bounded(plain, bytes_max + entries_max * 2048))
    left = bytes_max
    folders: set[tuple[str, ...]] = set()
    try:
        with tarfile.open(fileobj=bounded, mode="r|") as tar:
            for number, member in enumerate(tar):
                # One name may stand for as many folders as it has slashes.
                folders.update(_above(_parts(member.name)))
                folders.update(_above(_parts(member.linkname)) if member.islnk() else ())
                if number + len(folders) >= entries_max:
                    raise Refused(f"it has more than {entries_max} entries")
                left -= max(0, member.size)
                if left < 0:
                    raise Refused(f"it unpacks to more than {bytes_max} bytes")
                _place(tar, member, top)
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, ValueError) as error:
        raise Refused(f"it is not a readable tar archive ({error})") from error
    except MemoryError as error:
        raise Refused("its headers do not fit in memory") from error


def _digest(archive: BinaryIO) -> str:
    digest = hashlib.sha256()
    while data := archive.read(_COPY_BYTES):
        digest.update(data)
    return digest.hexdigest()


class _Bounded(io.RawIOBase):
    """Ends a stream that unpacks to more than it may, whatever its headers say."""

    def __init__(self, source: BinaryIO, bytes_max: int) -> None:
        self._source = source
        self._left = bytes_max

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        data = self._source.read(len(view))
        self._left -= len(data)
        if self._left < 0:
            raise Refused("it unpacks to more than is allowed")
        view[: len(data)] = data
        return len(data)


def _place(tar: tarfile.TarFile, member: tarfile.TarInfo, top: int) -> None:
    parts = _parts(member.name)
    if not parts:
        return
    with _folder(top, parts[:-1]) as folder:
        name = parts[-1]
        if member.isdir():
            with suppress(FileExistsError):
                os.mkdir(name, 0o755, dir_fd=folder)
        elif member.isreg():
            _write(tar, member, folder, name)
        elif member.issym():
            _check_link(member, parts)
            _anew(folder, name, partial(os.symlink, member.linkname, name, dir_fd=folder))
        elif member.islnk():
            target = _parts(member.linkname)
            if not target:
                raise Refused(f"the link {member.name!r} leads to no file")
            with _folder(top, target[:-1]) as other:
                make = partial(os.link, target[-1], name, src_dir_fd=other, dst_dir_fd=folder)
                _anew(folder, name, partial(make, follow_symlinks=False))
        else:
            raise Refused(f"{member.name} is neither a file nor a folder nor a link")


def _anew(folder: int, name: str, make: Callable[[], None]) -> None:
    """Make a link in the place of what lies there from a time when unpacking was broken off."""
    try:
        make()
    except FileExistsError:
        os.unlink(name, dir_fd=folder)
        make()


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: int, name: str) -> None:
    source = tar.extractfile(member)
    if source is None:
        raise Refused(f"{member.name} has no content")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    target = os.open(name, flags, 0o755 if member.mode & 0o100 else 0o644, dir_fd=folder)
    with os.fdopen(target, "wb") as file:
        while data := source.read(_COPY_BYTES):
            file.write(data)


def _parts(name: str) -> tuple[str, ...]:
    parts = tuple(part for part in name.split("/") if part not in {"", "."})
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise Refused(f"{name!r} points outside the working directory")
    if len(parts) > _DEPTH_MAX:
        raise Refused(f"{name[:80]!r}… lies more than {_DEPTH_MAX} folders deep")
    return parts


def _above(parts: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The folders that a name lies in."""
    return (parts[:depth] for depth in range(1, len(parts)))


def _check_link(member: tarfile.TarInfo, parts: tuple[str, ...]) -> None:
    target = posixpath.normpath(posixpath.join(*parts[:-1], member.linkname))
    if member.linkname.startswith("/") or target == ".." or target.startswith("../"):
        raise Refused(f"the link {member.name!r} points outside the working directory")


@contextmanager
def _folder(top: int, parts: tuple[str, ...]) -> Iterator[int]:
    here = os.dup(top)
    try:
        for part in parts:
            with suppress(FileExistsError):
                os.mkdir(part, 0o755, dir_fd=here)
            below = os.open(part, _DIRECTORY, dir_fd=here)
            os.close(here)
            here = below
        yield here
    finally:
        os.close(here)


def main(arguments: list[str]) -> int:
    """Drop root, limit ourselves, unpack."""
    top, sha256 = int(arguments[0]), arguments[1]
    bytes_max, entries_max, uid, supervisor_pid = map(int, arguments[2:])
    if uid >= 0:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # which a change of uid would undo
    if os.getppid() != supervisor_pid:
        return 1
    os.umask(0o022)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    try:
        with os.fdopen(_ARCHIVE, "rb") as archive:
            unpack(archive, top, sha256=sha256, bytes_max=bytes_max, entries_max=entries_max)
    except Refused as refusal:
        print(refusal)  # noqa: T201 - the supervisor reads the sentence from our output
        return 1
    except OSError as error:
        print(f"{error.filename or 'it'} could not be written: {error.strerror}")  # noqa: T201 - as above
        return FAILED_BY + (error.errno or 0)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
