"""The nursery: a small program that makes the first process of each job, so that the supervisor need not copy itself.

Run by file, without the hub's packages and without most of Python's, because every page it has is copied for each job.
It reads requests from the supervisor on standard input. A request is answered with the pid of a new process, which
waits for a word at its gate and then becomes the job: one process that becomes another, never a chain of children, as
the death signal of a parent of another uid without capabilities would not be delivered. The new process is the
supervisor's child, not this program's (CLONE_PARENT): the supervisor waits for it, and it dies with the supervisor.

Whatever fails in a new process is said on its standard error, which is the job's log, and ends it.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found] # `signal` itself would bring much along
import _socket
import ctypes
import gc
import marshal
import os
import resource
import stat

TYPE_CHECKING = False  # typing itself would be a third of this program's memory
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Request = tuple[
        list[str], dict[str, str], str, list[str], list[str], list[tuple[str, str]], str, str, list[str],
        list[tuple[int, int]], int | None,
    ]  # fmt: skip

FAILED = 1
DESCRIPTORS_MAX = 250
"""So many can travel with a request."""

FIRST_DESCRIPTOR = 300
"""A request's descriptors get this number and the following ones in the new process; all others are closed."""

_HEADER_BYTES = 4
_ANSWER_BYTES = 8

_PR_SET_PDEATHSIG = 1
_PR_CAPBSET_DROP = 24
_CAPABILITIES = 64
_CLONE_PARENT = 0x8000
_CLONE_NEWNS = 0x20000
_MS_RDONLY = 1
_MS_NOSUID = 2
_MS_NOEXEC = 8
_MS_REMOUNT = 32
_MS_BIND = 0x1000
_MS_REC = 0x4000
_MS_PRIVATE = 0x40000
_MNT_DETACH = 2
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_DEVICE_LINKS = (
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("fd", "/proc/self/fd"),
    ("core", "/proc/kcore"),
    ("ptmx", "pts/ptmx"),
)
_TERMINALS = "newinstance,ptmxmode=0666,mode=0620,max=64"
"""A job's own terminals: without a bound one job could open all that the machine has (kernel.pty.max)."""

_SYS_CLONE = {"x86_64": 56, "aarch64": 220}[os.uname().machine]

_LIBC = ctypes.CDLL(None, use_errno=True)


def serve(line: _socket.socket) -> None:
    """Answer requests until the supervisor hangs up."""
    supervisor_pid = os.getppid()
    _end_with(supervisor_pid)
    _prepare()
    while True:
        data, descriptors = _receive(line)
        if not data:
            return
        pid = _LIBC.syscall(_SYS_CLONE, _CLONE_PARENT | _signal.SIGCHLD, 0, 0, 0, 0)
        if pid == 0:
            _begin(marshal.loads(data), descriptors, supervisor_pid)  # noqa: S302 - written by the supervisor
        answer = pid if pid > 0 else -ctypes.get_errno()
        line.sendall(answer.to_bytes(_ANSWER_BYTES, "little", signed=True))
        for descriptor in descriptors:
            os.close(descriptor)


def _prepare() -> None:
    """Do once what every new process inherits."""
    # Python ignores two, and whoever started the hub may have ignored more, as nohup does.
    for number in _signal.valid_signals() - {_signal.SIGKILL, _signal.SIGSTOP}:
        _signal.signal(number, _signal.SIG_DFL)
    # When the host itself runs out of memory, jobs go before the supervisor that bills them.
    file = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    os.write(file, b"500")
    os.close(file)
    if os.geteuid() == 0:
        for capability in range(_CAPABILITIES):
            _LIBC.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    gc.disable()
    gc.freeze()


def _receive(line: _socket.socket) -> tuple[bytes, list[int]]:
    """One request and its descriptors; empty when the supervisor has hung up."""
    room = _socket.CMSG_SPACE(4 * (DESCRIPTORS_MAX + 2))
    data, ancillary, _, _ = line.recvmsg(1 << 16, room, _socket.MSG_CMSG_CLOEXEC)
    descriptors = []
    for level, kind, raw in ancillary:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            whole = memoryview(raw)[: len(raw) // 4 * 4]
            descriptors += whole.cast("i").tolist()
    if not data:
        return b"", descriptors
    while len(data) < _HEADER_BYTES or len(data) - _HEADER_BYTES < int.from_bytes(
        data[:_HEADER_BYTES], "little"
    ):
        more = line.recv(1 << 16)
        if not more:
            return b"", descriptors
        data += more
    return data[_HEADER_BYTES:], descriptors


def _begin(request: Request, descriptors: list[int], supervisor_pid: int) -> None:
    """In the new process: become what the request says; never returns."""
    step = "start"
    try:
        gate, output, *passed = descriptors
        os.dup2(output, 1)
        os.dup2(output, 2)
        if os.read(gate, 1) != b"!":
            os._exit(FAILED)  # the supervisor never heard of us
        for name, act in _steps(request, passed, supervisor_pid):
            step = name
            act()
    except BaseException as error:  # noqa: BLE001 - whatever it was, it is said
        os.write(2, f"{step}: {error}\n".encode())
    os._exit(FAILED)


def _steps(
    request: Request, passed: list[int], supervisor_pid: int
) -> tuple[tuple[str, Callable[[], object]], ...]:
    argv, env, directory, joins, namespaces, binds, root, devices, device_files, limits, uid = request
    return (
        ("parent", lambda: _end_with(supervisor_pid)),
        ("start", lambda: _detach(passed, directory)),
        ("cgroup", lambda: _join(joins)),
        ("namespace", lambda: _enter(namespaces)),
        ("mount", lambda: _show_only(binds, root, devices, device_files)),
        ("limit", lambda: _limit(limits)),
        ("uid", lambda: _change_uid(uid)),
        ("parent", lambda: _end_with(supervisor_pid)),
        ("program", lambda: os.execve(argv[0], argv, env)),  # noqa: S606 - that is its whole purpose
    )


def _end_with(supervisor_pid: int) -> None:
    _check(_LIBC.prctl(_PR_SET_PDEATHSIG, _signal.SIGKILL, 0, 0, 0))
    if os.getppid() != supervisor_pid:
        os._exit(FAILED)


def _detach(passed: Sequence[int], directory: str) -> None:
    """A session of its own, nothing to read, and of all descriptors only those it was given, in their places."""
    os.setsid()
    os.umask(0o022)
    nothing = os.open("/dev/null", os.O_RDONLY)
    os.dup2(nothing, 0)
    for place, descriptor in enumerate(passed, FIRST_DESCRIPTOR):
        os.dup2(descriptor, place)
    os.closerange(3, FIRST_DESCRIPTOR)
    os.chdir(directory)


def _join(joins: Sequence[str]) -> None:
    for path in joins:
        file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        os.write(file, b"0")
        os.close(file)


def _enter(namespaces: Sequence[str]) -> None:
    for file in [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in namespaces]:
        _check(_LIBC.setns(file, 0))
        os.close(file)


def _show_only(binds: Sequence[tuple[str, str]], root: str, devices: str, shown: Sequence[str]) -> None:
    """A mount namespace with nothing of the host but these; bubblewrap reads its table of mounts again and again."""
    if not binds:
        return
    _check(_LIBC.unshare(_CLONE_NEWNS))
    _mount("none", "/", _MS_REC | _MS_PRIVATE)
    _mount(root, root, _MS_BIND)
    for source, place in binds:
        _mount(source, place, _MS_BIND | _MS_REC)
    _make_devices(devices, shown)
    os.chdir(root)
    _check(_LIBC.pivot_root(b".", b"."), root)
    _check(_LIBC.umount2(b".", _MNT_DETACH))
    os.chdir("/")


def _make_devices(place: str, shown: Sequence[str]) -> None:
    """A /dev with what every program expects, and places for device files; bubblewrap would mount each by itself."""
    flags = _MS_NOSUID | _MS_NOEXEC
    _mount("tmpfs", place, flags, "tmpfs", "mode=0755,size=1m,nr_inodes=1024")
    for name in _DEVICES:
        _make_device(f"/dev/{name}", f"{place}/{name}")
    for name, target in _DEVICE_LINKS:
        os.symlink(target, f"{place}/{name}")  # noqa: PTH211 - pathlib is not here
    for path in set(shown) - set(_DEVICES):
        os.makedirs(os.path.dirname(f"{place}/{path}"), exist_ok=True)  # noqa: PTH103, PTH120 - the same
        _make_empty(f"{place}/{path}")
    os.mkdir(f"{place}/shm")  # noqa: PTH102 - the same
    os.mkdir(f"{place}/pts")  # noqa: PTH102 - the same
    _mount("devpts", f"{place}/pts", flags, "devpts", _TERMINALS)
    _mount("none", place, flags | _MS_REMOUNT | _MS_BIND | _MS_RDONLY)


def _make_device(host: str, path: str) -> None:
    try:
        os.mknod(path, stat.S_IFCHR, os.stat(host).st_rdev)  # noqa: PTH116 - the same
        os.chmod(path, 0o666)  # noqa: PTH101, S103 - the same; and they are everybody's
    except PermissionError:  # root of a container, who can only show the host's
        _make_empty(path)
        _mount(host, path, _MS_BIND)


def _make_empty(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))


def _limit(limits: Sequence[tuple[int, int]]) -> None:
    for kind, value in limits:
        resource.setrlimit(kind, (value, value))


def _change_uid(uid: int | None) -> None:
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)


def _mount(source: str, target: str, flags: int, kind: str | None = None, options: str | None = None) -> None:
    named = None if kind is None else kind.encode()
    said = None if options is None else options.encode()
    where = os.fsencode(source), os.fsencode(target)
    _check(_LIBC.mount(*where, named, ctypes.c_ulong(flags), said), source)


def _check(result: int, path: str | None = None) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)


if __name__ == "__main__":
    serve(_socket.socket(fileno=0))
