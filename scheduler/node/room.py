"""The room that root's sandboxes have in common, and what is mounted in it for one of them.

Part of the nursery (`becoming.py`), and as sparing: every page of it that a new process touches is copied for it.
"""

from __future__ import annotations

import ctypes
import os
import stat

TYPE_CHECKING = False  # typing itself would be a third of this program's memory
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LIBC = ctypes.CDLL(None, use_errno=True)

_CLONE_NEWNS = 0x20000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8
_MS_BIND, _MS_MOVE, _MS_REC, _MS_PRIVATE = 0x1000, 0x2000, 0x4000, 0x40000
_MNT_DETACH = 2
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_MOVE_MOUNT_F_EMPTY_PATH, _MOVE_MOUNT_T_SYMLINKS = 4, 16
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID, _MOUNT_ATTR_NODEV = 1, 2, 4
_SYS_MOVE_MOUNT, _SYS_MOUNT_SETATTR = 429, 442
"""The same number everywhere."""

_TREE = ("usr", "etc", "proc", "dev", "tmp", "job", "checkpoints", "run/secrets")
_LINKS = (("usr/bin", "bin"), ("usr/sbin", "sbin"), ("usr/lib", "lib"), ("usr/lib64", "lib64"))
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_DEVICE_LINKS = (
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("fd", "/proc/self/fd"),
    ("core", "/proc/kcore"),
    ("ptmx", "pts/ptmx"),
)
_OWN_IN_DEV = ("pts", "shm")
_TERMINALS = "newinstance,ptmxmode=0666,mode=0620,max=64"
"""A job's own terminals: without a bound one job could open all that the machine has (kernel.pty.max)."""


def make_room(etc: str, tree: str, folders: Sequence[str], files: Sequence[str]) -> None:
    """Leave the host: from here on the root is a read-only tree with nothing of it but /usr."""
    check(LIBC.unshare(_CLONE_NEWNS))
    _mount("none", "/", _MS_REC | _MS_PRIVATE)
    _mount("tmpfs", tree, _MS_NOSUID | _MS_NODEV, "tmpfs", "mode=0755,size=4m")
    for folder in _TREE:
        os.makedirs(f"{tree}/{folder}")  # noqa: PTH103 - pathlib is not here
    for target, link in _LINKS:
        os.symlink(target, f"{tree}/{link}")  # noqa: PTH211 - the same
    for source, place in (("/usr", "usr"), (etc, "etc")):
        _mount(source, f"{tree}/{place}", _MS_BIND | _MS_REC)
        _make_read_only(f"{tree}/{place}", _AT_RECURSIVE, _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV)
    _make_devices(f"{tree}/dev", ())
    _make_read_only(f"{tree}/dev", _AT_RECURSIVE)
    os.chdir(tree)
    check(LIBC.pivot_root(b".", b"."), tree)
    check(LIBC.umount2(b".", _MNT_DETACH))
    os.chdir("/")
    for path in (*folders, *files):  # now, when no link and no `..` leads out any more
        _make_place(path, is_file=path in files)
    _make_read_only("/")


def _make_place(path: str, *, is_file: bool) -> None:
    """An empty place to mount to; where none can be made, the job that needs it hears of it."""
    try:
        os.makedirs(os.path.dirname(path) if is_file else path, exist_ok=True)  # noqa: PTH103, PTH120
        if is_file:
            _make_empty(path)
    except OSError:
        pass


def furnish(tmp_bytes: int, shm_bytes: int) -> None:
    """What each job has for itself, in the room that this process shares with nobody any more."""
    flags = _MS_NOSUID | _MS_NODEV
    _mount("proc", "/proc", flags | _MS_NOEXEC, "proc")
    _mount("devpts", "/dev/pts", _MS_NOSUID | _MS_NOEXEC, "devpts", _TERMINALS)
    _mount("tmpfs", "/dev/shm", flags, "tmpfs", f"mode=1777,size={shm_bytes}")  # noqa: S108 - its own
    _mount("tmpfs", "/tmp", flags, "tmpfs", f"mode=1777,size={tmp_bytes}")  # noqa: S108 - its own


def attach(mounts: Sequence[tuple[int, str]], shown: Sequence[str]) -> None:
    """What this job alone is shown: copies of mounts, and device files below /dev."""
    if shown:
        _make_devices("/tmp", shown)  # noqa: S108 - a place where the devices of the room are still seen
        for name in _OWN_IN_DEV:
            _mount(f"/dev/{name}", f"/tmp/{name}", _MS_MOVE)  # noqa: S108 - the same
        _mount("/tmp", "/dev", _MS_MOVE)  # noqa: S108 - the same
    for mount, place in mounts:
        if place.startswith("/tmp/"):  # noqa: S108 - which hides what the room has there
            _make_place(place, is_file=not stat.S_ISDIR(os.fstat(mount).st_mode))
        where = os.fsencode(place)
        how = _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_SYMLINKS
        check(LIBC.syscall(_SYS_MOVE_MOUNT, mount, b"", _AT_FDCWD, where, how), place)
    if shown:
        _make_read_only("/dev")


def tell(secrets: Mapping[str, str], uid: int) -> None:
    """Files that only the job reads, in memory, and nobody changes."""
    if not secrets:
        return
    _mount("tmpfs", "/run/secrets", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, "tmpfs", "mode=0755,size=4m")
    for name, value in secrets.items():
        file = os.open(f"/run/secrets/{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
        rest = value.encode()
        while rest:
            rest = rest[os.write(file, rest) :]
        os.fchown(file, uid, uid)
        os.close(file)
    _make_read_only("/run/secrets")


def _make_devices(place: str, shown: Sequence[str]) -> None:
    """A /dev with what every program expects, and places for device files."""
    _mount("tmpfs", place, _MS_NOSUID | _MS_NOEXEC, "tmpfs", "mode=0755,size=1m,nr_inodes=1024")
    for name in _DEVICES:
        _make_device(f"/dev/{name}", f"{place}/{name}")
    for name, target in _DEVICE_LINKS:
        os.symlink(target, f"{place}/{name}")  # noqa: PTH211 - pathlib is not here
    for path in set(shown) - set(_DEVICES):
        _make_place(f"{place}/{path}", is_file=True)
    for name in _OWN_IN_DEV:
        os.mkdir(f"{place}/{name}")  # noqa: PTH102 - the same


def _make_device(host: str, path: str) -> None:
    try:
        os.mknod(path, stat.S_IFCHR, os.stat(host).st_rdev)  # noqa: PTH116 - the same
        os.chmod(path, 0o666)  # noqa: PTH101, S103 - the same; and they are everybody's
    except PermissionError:  # root of a container, who can only show the host's
        _make_empty(path)
        _mount(host, path, _MS_BIND)


def _make_empty(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))


def _mount(source: str, target: str, flags: int, kind: str | None = None, options: str | None = None) -> None:
    named = None if kind is None else kind.encode()
    said = None if options is None else options.encode()
    done = LIBC.mount(os.fsencode(source), os.fsencode(target), named, ctypes.c_ulong(flags), said)
    check(done, target if kind else source)


def _make_read_only(path: str, flags: int = 0, also: int = 0) -> None:
    attributes = (_MOUNT_ATTR_RDONLY | also).to_bytes(8, "little") + bytes(24)
    where = os.fsencode(path)
    check(LIBC.syscall(_SYS_MOUNT_SETATTR, _AT_FDCWD, where, flags, attributes, len(attributes)), path)


def check(result: int, path: str | None = None) -> None:
    """Raise what a call of the C library has said that did not leave with zero."""
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
