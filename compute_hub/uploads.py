"""Uploaded working directories: tar archives kept under the SHA-256 of their bytes, so a reference can only mean one.

What a tenant keeps is bounded; what no live job needs makes room. The archive is opened by nobody here: the node's
supervisor unpacks it inside the job's own workspace.
"""

import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Collection
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Final

from kernel.clock import unix_ms
from kernel.errors import Conflict, Invalid, NotFound
from kernel.files import sync_directory

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_SUFFIX: Final = ".tar.gz"
_INCOMING: Final = ".incoming-"
_GZIP_MAGIC: Final = b"\x1f\x8b"
_NEW_MS: Final = 3_600_000
"""So long an upload that no job names stays in any case: its job may be on the way."""
_LEAST_BYTES: Final = 64 * 1024
"""As so much a small one counts, so that their number is bounded, too."""


class UploadTooLarge(Invalid):
    """More bytes than the operator allows."""

    sentence = (
        "body: the archive is larger than {bytes_max} bytes. Upload less, or ask the operator to allow more."
    )


class UploadIsNotAnArchive(Invalid):
    """The bytes are not a tar archive compressed with gzip."""

    sentence = (
        "body: the upload is not a .tar.gz archive. Pack the directory with `tar czf` and send the bytes."
    )


class UploadNotFound(NotFound):
    """Nothing was uploaded under that digest by this tenant."""

    sentence = "{field}: there is no upload {sha256!r} of yours. Upload the working directory first."


class TooManyUploads(Conflict):
    """A tenant's uploads, of which none can make room, are as large together as they may be."""

    sentence = (
        "body: your uploads would have more than {most} bytes together, and the others are new or belong to jobs that "
        "have not ended. Upload less, or try again when some have."
    )


class UploadBrokenOff(Conflict):
    """An upload of which nothing came for so long that what had come was removed."""

    sentence = "body: nothing came for more than an hour, so what had come was removed. Send it again."


class Incoming:
    """An archive on its way in: written as it comes, kept under its digest when it is whole and on disk, or not at all.

    What is refused is refused by `keep`, so that whoever sends may send to the end and hears why.

    Args:
        folder: of all uploads.
        tenant: whose it is.
        bytes_max: of this one.
        kept_bytes_max: of all of the tenant's.
    """

    def __init__(self, folder: Path, tenant: str, *, bytes_max: int, kept_bytes_max: int) -> None:
        self._home = folder / tenant
        if not self._home.is_dir():
            self._home.mkdir(parents=True, exist_ok=True, mode=0o700)
            sync_directory(folder)
        self._bytes_max, self._kept_bytes_max = bytes_max, kept_bytes_max
        self._digest, self._begin = hashlib.sha256(), b""
        self.size = 0
        handle, name = tempfile.mkstemp(dir=self._home, prefix=_INCOMING)
        self._file, self._path = os.fdopen(handle, "wb"), Path(name)

    def write(self, data: bytes) -> None:
        """Take the next bytes; those beyond the bound, or without room even now, are forgotten."""
        self.size += len(data)
        if self.size <= self._bytes_max and _held_bytes(self._home) + len(data) <= 2 * self._kept_bytes_max:
            self._begin = self._begin or data[:2]
            self._digest.update(data)
            self._file.write(data)
            self._file.flush()

    def keep(self, needed: Callable[[], Collection[str]], at: datetime) -> str:
        """Keep it and return its SHA-256 in hexadecimal. Others make room for it that nobody needs any more.

        Args:
            needed: asks which uploads of the tenant live jobs need.
            at: now.

        Raises:
            UploadTooLarge, UploadIsNotAnArchive, TooManyUploads, UploadBrokenOff.
        """
        if self.size > self._bytes_max:
            raise UploadTooLarge(bytes_max=self._bytes_max)
        if self._begin != _GZIP_MAGIC:
            raise UploadIsNotAnArchive
        if self._file.tell() < self.size or not self._make_room(needed, at):
            raise TooManyUploads(most=self._kept_bytes_max)
        os.fsync(self._file.fileno())
        try:
            self._path.replace(self._home / f"{self._digest.hexdigest()}{_SUFFIX}")
        except FileNotFoundError as error:
            raise UploadBrokenOff from error
        sync_directory(self._home)
        return self._digest.hexdigest()

    def _make_room(self, needed: Callable[[], Collection[str]], at: datetime) -> bool:
        """Remove the oldest that nobody needs until the rest is small enough; whether it is."""
        excess = _held_bytes(self._home) - self._kept_bytes_max
        if excess <= 0:
            return True
        old_ms = unix_ms(at) - _NEW_MS
        kept = {self._path.name, *(f"{digest}{_SUFFIX}" for digest in needed())}
        for written_ms, size, path in sorted(_held(self._home)):
            if excess > 0 and written_ms < old_ms and path.name not in kept:
                path.unlink(missing_ok=True)
                excess -= size
        return excess <= 0

    def close(self) -> None:
        """Give the file back; what was not kept is gone."""
        self._file.close()
        self._path.unlink(missing_ok=True)


def remove_broken_off(folder: Path, at: datetime) -> int:
    """Remove what is left of uploads of which nothing has come for an hour, as their API process was killed; how many.

    Args:
        folder: of all uploads.
        at: now.
    """
    removed = 0
    old_ms = unix_ms(at) - _NEW_MS
    for path in folder.glob(f"*/{_INCOMING}*"):
        with suppress(FileNotFoundError):
            if path.stat(follow_symlinks=False).st_mtime_ns // 1_000_000 < old_ms:
                path.unlink()
                removed += 1
    return removed


def _held_bytes(home: Path) -> int:
    return sum(size for _, size, _ in _held(home))


def _held(home: Path) -> list[tuple[int, int, Path]]:
    """When each file was written, its size and where it lies; those on their way in, too."""
    found = []
    for path in home.iterdir():
        with suppress(FileNotFoundError):
            facts = path.stat()
            found.append((facts.st_mtime_ns // 1_000_000, max(facts.st_size, _LEAST_BYTES), path))
    return found


def find_upload(folder: Path, tenant: str, sha256: str) -> Path:
    """The archive with that digest, which counts as new again: no other makes it go while its job is on the way.

    Raises:
        UploadNotFound: this tenant has none.
    """
    path = folder / tenant / f"{sha256}.tar.gz"
    try:
        if _DIGEST.fullmatch(sha256):
            os.utime(path)
            return path
    except FileNotFoundError:
        pass
    raise UploadNotFound(field="upload_sha256", sha256=sha256)
