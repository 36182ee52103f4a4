"""What all hub processes of one user on one host share and nobody else can enter: short paths, for sockets."""

import os
import tempfile
from pathlib import Path
from typing import Final

from kernel.errors import Invalid

_BASE_CHARS_MAX: Final = 20
"""Ray's sockets lie 85 characters deeper, and the path of a socket ends at 107."""


class RunDirectoryTaken(Invalid):
    """Somebody else made the folder this user's hub keeps its sockets in."""

    sentence = "{path} belongs to another user; remove it and start again."


def run_directory() -> Path:
    """The folder, made with mode 0700 if it is not there. Raises RunDirectoryTaken."""
    base = tempfile.gettempdir()
    folder = Path(base if len(base) <= _BASE_CHARS_MAX else "/tmp") / f"compute-hub-{os.geteuid()}"  # noqa: S108 - made 0700
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.geteuid() or folder.is_symlink():
        raise RunDirectoryTaken(path=folder)
    return folder
