"""The nursery: a small program that makes the first process of each job, so that the supervisor need not copy itself.

Run without most of Python's packages and with none of the hub's but `room.py`, because every page it has is copied for
each job. It is asked by the supervisor over its standard input and answers with the pid of a new process, which is the
supervisor's child, not this program's (CLONE_PARENT): the supervisor waits for it, and it dies with the supervisor. The
new process has a line of its own to the supervisor, over which it is told what to become, so that this program never
holds anything of a tenant's. It does what all have in common, waits there, and then

- becomes another program (a job without a sandbox, or bubblewrap for an ordinary user's), or
- where root has given this program a `Room`, becomes the first process of a sandbox, starts the job's program in it and
  says how that ended. It is made in process and mount namespaces of its own, whose root is the room: a directory tree
  with /usr and the few files of /etc that every job sees. This program lives there, too, and has nothing of the host.

One that is made ahead of its run takes the same steps as one that is made for it; it only waits longer at its line.
Whatever fails in a new process is said on the run's log, and ends it.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found] # `signal` itself would bring much along
import _socket
import ctypes
import errno
import gc
import marshal
import os
import resource

from scheduler.node.room import LIBC, attach, check, furnish, make_room, tell

TYPE_CHECKING = False  # typing itself would be a third of this program's memory
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Room = tuple[tuple[str, str, list[str], list[str]], str, tuple[int, int]]
    """What every sandbox shows as /etc, an empty directory for the tree, and what else the tree has (folders, files);
    the host's name inside; bytes of /tmp and of /dev/shm."""
    Plain = tuple[list[str], dict[str, str], str, list[str], list[str], list[tuple[int, int]], int | None]
    Program = tuple[list[str], dict[str, str], str]
    """Its words, its environment and its directory inside."""
    Furniture = tuple[list[str], list[str], dict[str, str]]
    """Places of the mounts that go with it, device files below /dev, secrets."""
    Bounds = tuple[list[tuple[int, int]], int, int, bytes]
    """Resource limits, the uid outside and inside, and the filter of system calls."""
    Enclosed = tuple[Program, int, Furniture, Bounds]
    """The number is how many cgroups are joined."""
    Steps = Iterator[tuple[str, Callable[[], object]]]

FAILED = 1
NOT_FOUND = 127
NOT_EXECUTABLE = 126

DESCRIPTORS_MAX = 250
"""So many can travel with a request."""

AT_ONCE, AHEAD = b"?", b"+"
"""What this program is asked: to make a process for a run that waits for it, or one that will wait for a run."""

READY = b"!"
"""What a process made ahead says when nothing is left to do but what its run decides."""

FIRST_DESCRIPTOR = 300
"""A plain request's descriptors get this number and the following ones in the new process; all others are closed."""

_NURSERY, _READY, _INIT = b"hub-nursery", b"hub-ready", b"hub-init"
"""What this program, a process that waits for its run, and the first one of a sandbox are called in place of Python's
command line."""

ROOM_BYTES_MAX = 1 << 20
_MESSAGE_BYTES = 16
"""More than what is asked for, or a pid, has in letters."""
ANSWER_BYTES = 8

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NAME = 1, 4, 15
_PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 22, 24, 38
_SECCOMP_MODE_FILTER = 2
_CAPABILITIES = 64
_NO_CAPABILITIES = b"\x22\x05\x08\x20" + bytes(4), bytes(24)
"""Version 3 of capset(2)'s header, and three empty sets."""
_CLONE_PARENT, _CLONE_NEWNS, _CLONE_NEWCGROUP = 0x8000, 0x20000, 0x2000000
_CLONE_NEWUTS, _CLONE_NEWIPC, _CLONE_NEWUSER = 0x4000000, 0x8000000, 0x10000000
_CLONE_NEWPID = 0x20000000
_POLLIN = 1

_LACKS = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
"""Whichever program it is, none can be started while this lasts."""

_CALLED_LATER = ("capset", "sethostname", "setns")
"""Functions of the C library that only the new processes call."""

_SYS_CLONE = {"x86_64": 56, "aarch64": 220}[os.uname().machine]
_SYS_CLOSE_RANGE = 436
"""The same number everywhere."""


class _Nursery:
    """What every new process inherits.

    `supervisor` is the `struct pollfd` by which it sees whether that one lives.
    """

    def __init__(self, room: Room | None) -> None:
        asked = os.pidfd_open(os.getppid()).to_bytes(4, "little") + _POLLIN.to_bytes(2, "little") + bytes(2)
        self.supervisor = ctypes.create_string_buffer(asked, len(asked))
        self.room = room
        self.trouble = ""
        self._command_line = _command_line()
        self.be_called(_NURSERY)
        _end_with(self.supervisor)
        _prepare()
        try:
            if room is not None:
                make_room(*room[0])
        except OSError as error:
            self.trouble = f"mount: {error}\n"

    def be_called(self, name: bytes) -> None:
        """Have this process shown by that name."""
        start, length = self._command_line
        ctypes.memmove(start, name.ljust(length, b"\0")[:length], length)
        LIBC.prctl(_PR_SET_NAME, name, 0, 0, 0)

    def make(self) -> int:
        """Make a process; zero in it. Below zero: the number of the error."""
        apart = _CLONE_NEWPID | _CLONE_NEWNS if self.room is not None and not self.trouble else 0
        pid = LIBC.syscall(_SYS_CLONE, _CLONE_PARENT | apart | _signal.SIGCHLD, 0, 0, 0, 0)
        return int(pid) if pid >= 0 else -ctypes.get_errno()


def serve() -> None:
    """Answer requests until the supervisor hangs up. The first message says what is in the room, if there is one."""
    line = _socket.socket(fileno=0)
    described = line.recv(ROOM_BYTES_MAX)
    if not described:
        return
    nursery = _Nursery(marshal.loads(described))  # noqa: S302 - written by the supervisor
    while True:
        asked, own = _receive(line)
        if not own:
            return
        pid = nursery.make()
        if pid == 0:
            _live(nursery, *own, ahead=asked == AHEAD)
        line.sendall(pid.to_bytes(ANSWER_BYTES, "little", signed=True))
        os.close(*own)
        if nursery.trouble:
            return  # the next one may have more luck


def _prepare() -> None:
    for name in _CALLED_LATER:
        getattr(LIBC, name)  # which looks for it and keeps it: once here, and not in every process anew
    # Python ignores two, and whoever started the hub may have ignored more, as nohup does.
    for number in _signal.valid_signals() - {_signal.SIGKILL, _signal.SIGSTOP}:
        _signal.signal(number, _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
    os.umask(0o022)
    # When the host itself runs out of memory, jobs go before the supervisor that bills them.
    file = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    os.write(file, b"500")
    os.close(file)
    if os.geteuid() == 0:
        _drop_bounds()
    gc.disable()
    gc.freeze()


def _receive(line: _socket.socket) -> tuple[bytes, list[int]]:
    """A message and its descriptors; neither when the supervisor has hung up."""
    room = _socket.CMSG_SPACE(4 * (DESCRIPTORS_MAX + 3))
    try:
        said, ancillary, _, _ = line.recvmsg(_MESSAGE_BYTES, room, _socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:  # it died before it had read what it was told last
        return b"", []
    descriptors = []
    for level, kind, raw in ancillary:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            whole = memoryview(raw)[: len(raw) // 4 * 4]
            descriptors += whole.cast("i").tolist()
    return said, descriptors


def _live(nursery: _Nursery, own: int, *, ahead: bool) -> None:
    """In the new process: prepare, wait for a run, become what it says; never returns."""
    try:
        line = _socket.socket(fileno=own)
        trouble = nursery.trouble or _take(_preparing(nursery))
        if ahead:
            if trouble:
                return  # it is no use to anybody; one made at once will say why
            nursery.be_called(_READY)
            line.sendall(READY)
        pid, descriptors = _receive(line)
        if not descriptors:
            return  # the supervisor never heard of us, or is done
        output, asked, *passed = descriptors
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.write(2, (trouble or _take(_asked_for(nursery, asked, passed, pid))).encode())
    finally:
        os._exit(FAILED)


def _take(steps: Steps) -> str:
    """Take one step after the other; what failed, else empty."""
    step = "start"
    try:
        for name, act in steps:
            step = name
            act()
    except BaseException as error:  # noqa: BLE001 - whatever it was, it is said
        return f"{step}: {error}\n"
    return ""


def _asked_for(nursery: _Nursery, asked: int, passed: list[int], pid: bytes) -> Steps:
    request = marshal.loads(os.pread(asked, os.fstat(asked).st_size, 0))  # noqa: S302 - the supervisor's
    if nursery.room is None:
        yield from _becoming(nursery, request, passed)
    else:
        yield from _enclosing(nursery, request, passed, pid)


def _preparing(nursery: _Nursery) -> Steps:
    """What sandboxes have in common."""
    if nursery.room is not None:
        _, hostname, sizes = nursery.room
        yield "parent", lambda: _end_with(nursery.supervisor)
        yield "start", lambda: _detach("/")
        yield "namespace", lambda: _separate(hostname)
        yield "mount", lambda: furnish(*sizes)


def _becoming(nursery: _Nursery, request: Plain, passed: list[int]) -> Steps:
    argv, env, directory, joins, namespaces, limits, uid = request
    yield "parent", lambda: _end_with(nursery.supervisor)
    yield "start", lambda: _detach(directory)
    yield "cgroup", lambda: _join([os.open(path, os.O_WRONLY | os.O_CLOEXEC) for path in joins])
    yield "namespace", lambda: _enter([os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in namespaces])
    yield "limit", lambda: _limit(limits)
    yield "uid", lambda: _change_uid(uid)
    yield "parent", lambda: _end_with(nursery.supervisor)
    yield "start", lambda: _keep(passed)
    yield "program", lambda: os.execve(argv[0], argv, env)  # noqa: S606 - that is its whole purpose


def _enclosing(nursery: _Nursery, request: Enclosed, passed: list[int], pid: bytes) -> Steps:
    program, joins, (places, devices, secrets), (limits, uid, inside, banned) = request
    status, network, *others = passed
    joined, mounts = others[:joins], others[joins:]
    yield "cgroup", lambda: _join(joined)
    yield "namespace", lambda: _enter_run(network)
    yield "mount", lambda: attach(list(zip(mounts, places, strict=True)), devices)
    yield "secrets", lambda: tell(secrets, uid)
    yield "limit", lambda: _limit(limits)
    yield "uid", lambda: _change_uid(uid)
    yield "user namespace", lambda: _have_number(inside, uid)
    yield "privileges", _drop_privileges
    yield "parent", lambda: _end_with(nursery.supervisor)
    yield "filter", lambda: _filter(banned)
    yield "program", lambda: _be_first(nursery, program, status, pid)


def _end_with(supervisor: ctypes.Array[ctypes.c_char]) -> None:
    """Die when the supervisor does, which whoever changes identity must ask for again."""
    check(LIBC.prctl(_PR_SET_PDEATHSIG, _signal.SIGKILL, 0, 0, 0))
    if LIBC.poll(supervisor, 1, 0) != 0:
        os._exit(FAILED)


def _detach(directory: str) -> None:
    """A session of its own, and nothing to read: what is nothing where it lives, for the host's can be touched."""
    os.setsid()
    os.dup2(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC), 0)
    os.chdir(directory)


def _keep(passed: Sequence[int]) -> None:
    """Of all descriptors only those it was given, in their places."""
    for place, descriptor in enumerate(passed, FIRST_DESCRIPTOR):
        os.dup2(descriptor, place)
    os.closerange(3, FIRST_DESCRIPTOR)


def _join(files: Sequence[int]) -> None:
    for file in files:
        os.write(file, b"0")
        os.close(file)


def _enter(namespaces: Sequence[int]) -> None:
    for file in namespaces:
        check(LIBC.setns(file, 0))
        os.close(file)


def _separate(hostname: str) -> None:
    """Namespaces of its own."""
    check(LIBC.unshare(_CLONE_NEWIPC | _CLONE_NEWUTS))
    name = hostname.encode()
    check(LIBC.sethostname(name, len(name)))


def _enter_run(network: int) -> None:
    """The run's network, without which none becomes anything; and a cgroup namespace, which begins where it is now."""
    check(LIBC.unshare(_CLONE_NEWCGROUP))
    _enter([network])


def _limit(limits: Sequence[tuple[int, int]]) -> None:
    for kind, value in limits:
        resource.setrlimit(kind, (value, value))


def _change_uid(uid: int | None) -> None:
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)


def _have_number(inside: int, uid: int) -> None:
    """A user namespace that knows one user, by another number."""
    check(LIBC.unshare(_CLONE_NEWUSER))
    # Who has changed his identity owns his files in /proc only while others could look into him; there are none yet.
    check(LIBC.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0))
    known = f"{inside} {uid} 1"
    for name, text in (("setgroups", "deny"), ("gid_map", known), ("uid_map", known)):
        file = os.open(f"/proc/self/{name}", os.O_WRONLY | os.O_CLOEXEC)
        os.write(file, text.encode())
        os.close(file)
    check(LIBC.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0))


def _drop_privileges() -> None:
    """Nothing of what its user namespace has given it, for ever."""
    _drop_bounds()
    check(LIBC.capset(*_NO_CAPABILITIES))
    check(LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def _drop_bounds() -> None:
    for capability in range(_CAPABILITIES):
        if LIBC.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            return  # the kernel knows no more


class _Program(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def _filter(instructions: bytes) -> None:
    program = _Program(len(instructions) // 8, instructions)
    check(LIBC.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0))


def _be_first(nursery: _Nursery, program: Program, status: int, pid: bytes) -> None:
    """Start the job's program, bury who has lost his parent, and say in bubblewrap's words how the program ended."""
    nursery.be_called(_INIT)
    os.dup2(status, 3, inheritable=False)
    check(LIBC.syscall(_SYS_CLOSE_RANGE, 4, ctypes.c_uint(0xFFFFFFFF), 0))
    os.write(3, b'{"child-pid": %b}\n' % pid)
    argv, env, directory = program
    os.chdir(directory)
    awaited, code = _spawn(argv, env)
    while awaited:
        buried, how = os.waitpid(-1, 0)
        if buried == awaited:
            code = 128 + os.WTERMSIG(how) if os.WIFSIGNALED(how) else os.WEXITSTATUS(how)
            break
    os.write(3, b'{"exit-code": %d}\n' % code)
    os._exit(0)


def _spawn(argv: list[str], env: dict[str, str]) -> tuple[int, int]:
    """The program's pid; or zero, and the shell's status for one that cannot be run, found as the shell finds it."""
    name = argv[0]
    found = [name] if "/" in name else [f"{folder or '.'}/{name}" for folder in env.get("PATH", "").split(":")]
    refused: OSError = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    for path in found:
        try:
            return os.posix_spawn(path, argv, env, setsid=True), 0
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            if error.errno == errno.ENOEXEC:
                return os.posix_spawn("/bin/sh", ["/bin/sh", path, *argv[1:]], env, setsid=True), 0
            if error.errno in _LACKS:
                raise
            refused = error
            if error.errno != errno.EACCES:
                break
    os.write(2, f"{name}: {refused.strerror}\n".encode(errors="replace"))
    return 0, NOT_FOUND if refused.errno == errno.ENOENT else NOT_EXECUTABLE


def _command_line() -> tuple[int, int]:
    """Where this process keeps it, and its length."""
    file = os.open("/proc/self/stat", os.O_RDONLY | os.O_CLOEXEC)
    fields = os.read(file, 4096).rpartition(b")")[2].split()
    os.close(file)
    start, end = int(fields[45]), int(fields[46])
    return start, end - start
