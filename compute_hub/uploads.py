"""Uploaded working directories: tar archives kept under the SHA-256 of their bytes, so a reference can only mean one.

The archive is opened by nobody here; the node's supervisor unpacks it inside the job's own workspace.
"""

import hashlib
import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from kernel.errors import Invalid, NotFound

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


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


def keep_upload(folder: Path, tenant: str, chunks: Iterable[bytes], *, bytes_max: int) -> tuple[str, int]:
    """Store an archive and return its SHA-256 in hexadecimal and its size in bytes.

    The file appears under its name only when it is whole and on disk.

    Raises:
        UploadTooLarge, UploadIsNotAnArchive.
    """
    home = folder / tenant
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    digest, size = hashlib.sha256(), 0
    handle, name = tempfile.mkstemp(dir=home, prefix=".incoming-")
    incoming = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            for chunk in chunks:
                size += len(chunk)
                if size > bytes_max:
                    raise UploadTooLarge(bytes_max=bytes_max)
                digest.update(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        with incoming.open("rb") as file:
            if file.read(2) != b"\x1f\x8b":
                raise UploadIsNotAnArchive
        incoming.replace(home / f"{digest.hexdigest()}.tar.gz")
    finally:
        incoming.unlink(missing_ok=True)
    return digest.hexdigest(), size


def find_upload(folder: Path, tenant: str, sha256: str) -> Path:
    """The archive with that digest. Raises UploadNotFound."""
    path = folder / tenant / f"{sha256}.tar.gz"
    if not _DIGEST.fullmatch(sha256) or not path.is_file():
        raise UploadNotFound(field="upload_sha256", sha256=sha256)
    return path
