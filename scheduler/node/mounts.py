"""Copies of mounts that are attached nowhere, to be handed to a process that attaches them in a namespace of its own.

With mount_setattr(2) (Linux 5.12) a copy is made read-only with all that is mounted below it before anybody sees it.
"""

import ctypes
import os
from typing import Final

_SYS_OPEN_TREE: Final = 428
_SYS_MOUNT_SETATTR: Final = 442
"""The same number on every architecture."""

_AT_FDCWD: Final = -100
_AT_EMPTY_PATH: Final = 0x1000
_AT_RECURSIVE: Final = 0x8000
_OPEN_TREE_CLONE: Final = 1
_READ_ONLY: Final = 1
_NO_SETUID: Final = 2
_NO_DEVICES: Final = 4
_MS_PRIVATE: Final = 1 << 18
_REST: Final = bytes(8) + _MS_PRIVATE.to_bytes(8, "little") + bytes(8)
"""Of `struct mount_attr`: nothing cleared, no part in what is mounted on the host or there later, no id mapping."""

_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def detached(path: str, *, writable: bool = False, device: bool = False) -> int:
    """A descriptor, closed on exec, of a copy of what is at `path` with all mounts below; nothing there is setuid.

    Args:
        path: of the host.
        writable: for folders of the job's own; else read-only.
        device: for a device file; else device files below are dead.

    Raises:
        OSError: nothing is there, or we may not (CAP_SYS_ADMIN).
    """
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_RECURSIVE
    handle = _LIBC.syscall(_SYS_OPEN_TREE, _AT_FDCWD, os.fsencode(path), flags)
    _check(handle, path)
    changes = _NO_SETUID | (0 if writable else _READ_ONLY) | (0 if device else _NO_DEVICES)
    attributes = changes.to_bytes(8, "little") + _REST
    try:
        _check(
            _LIBC.syscall(
                _SYS_MOUNT_SETATTR, handle, b"", _AT_EMPTY_PATH | _AT_RECURSIVE, attributes, len(attributes)
            ),
            path,
        )
    except OSError:
        os.close(handle)
        raise
    return int(handle)


def _check(result: int, path: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
