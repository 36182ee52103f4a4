"""The nursery: a small program that makes the first process of each job, so that the supervisor need not copy itself.

Run by file, without the hub's packages and without most of Python's, because every page it has is copied for each job.
It is asked by the supervisor over its standard input and answers with the pid of a new process, which is the
supervisor's child, not this program's (CLONE_PARENT): the supervisor waits for it, and it dies with the supervisor. The
new process waits for a word at its gate, reads itself what it is to become, so that this program never holds anything
of a tenant's, and then

- becomes another program (a job without a sandbox, or bubblewrap for an ordinary user's), or
- where root has given this program a `Room`, becomes the first process of a sandbox, starts the job's program in it and
  says how that ended. It is made in process and mount namespaces of its own, whose root is the room: a directory tree
  with /usr and the few files of /etc that every job sees. This program lives there, too, and has nothing of the host.

Whatever fails in a new process is said on its standard error, which is the job's log, and ends it.
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
import stat

TYPE_CHECKING = False  # typing itself would be a third of this program's memory
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Room = tuple[str, str, list[str], list[str]]
    """What every sandbox shows as /etc, an empty directory for the tree, and what else the tree has: folders, files."""
    Plain = tuple[list[str], dict[str, str], str, list[str], list[str], list[tuple[int, int]], int | None]
    Program = tuple[list[str], dict[str, str], str]
    """Its words, its environment and its directory inside."""
    Around = tuple[str, bool, int]
    """The host's name inside, whether its network is the host's, and how many cgroups are joined."""
    Furniture = tuple[list[str], list[str], tuple[int, int], dict[str, str]]
    """Places of the mounts that go with it, device files below /dev, bytes of /tmp and of /dev/shm, secrets."""
    Bounds = tuple[list[tuple[int, int]], int, int, bytes]
    """Resource limits, the uid outside and inside, and the filter of system calls."""
    Enclosed = tuple[Program, Around, Furniture, Bounds]
    Steps = tuple[tuple[str, Callable[[], object]], ...]

FAILED = 1
NOT_FOUND = 127
NOT_EXECUTABLE = 126

DESCRIPTORS_MAX = 250
"""So many can travel with a request."""

FIRST_DESCRIPTOR = 300
"""A plain request's descriptors get this number and the following ones in the new process; all others are closed."""

INIT_NAME = b"hub-init"
"""What the first process of a sandbox is called: it has this program's command line to begin with."""

ROOM_BYTES_MAX = 1 << 20
ANSWER_BYTES = 8

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NAME = 1, 4, 15
_PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 22, 24, 38
_SECCOMP_MODE_FILTER = 2
_CAPABILITIES = 64
_NO_CAPABILITIES = b"\x22\x05\x08\x20" + bytes(4), bytes(24)
"""Version 3 of capset(2)'s header, and three empty sets."""
_CLONE_PARENT, _CLONE_NEWNS, _CLONE_NEWCGROUP = 0x8000, 0x20000, 0x2000000
_CLONE_NEWUTS, _CLONE_NEWIPC, _CLONE_NEWUSER = 0x4000000, 0x8000000, 0x10000000
_CLONE_NEWPID, _CLONE_NEWNET = 0x20000000, 0x40000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8
_MS_BIND, _MS_MOVE, _MS_REC, _MS_PRIVATE = 0x1000, 0x2000, 0x4000, 0x40000
_MNT_DETACH = 2
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_MOVE_MOUNT_F_EMPTY_PATH, _MOVE_MOUNT_T_SYMLINKS = 4, 16
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID, _MOUNT_ATTR_NODEV = 1, 2, 4
_SIOCSIFFLAGS = 0x8914
_LOOPBACK_UP = b"lo".ljust(16, b"\0") + (0x41).to_bytes(2, "little") + bytes(22)  # an `ifreq`
_POLLIN = 1

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
_LACKS = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
"""Whichever program it is, none can be started while this lasts."""

_TERMINALS = "newinstance,ptmxmode=0666,mode=0620,max=64"
"""A job's own terminals: without a bound one job could open all that the machine has (kernel.pty.max)."""

_SYS_CLONE = {"x86_64": 56, "aarch64": 220}[os.uname().machine]
_SYS_MOVE_MOUNT, _SYS_CLOSE_RANGE, _SYS_MOUNT_SETATTR = 429, 436, 442
"""These three have the same number everywhere."""

_LIBC = ctypes.CDLL(None, use_errno=True)


class _Nursery:
    """What every new process inherits."""

    def __init__(self, room: Room | None) -> None:
        self.supervisor = os.pidfd_open(os.getppid())
        self.encloses = room is not None
        self.command_line = _command_line()
        self.trouble = ""
        _end_with(self.supervisor)
        _prepare()
        try:
            if room is not None:
                _make_room(*room)
        except OSError as error:
            self.trouble = f"mount: {error}\n"

    def make(self) -> int:
        """Make a process; zero in it. Below zero: the number of the error."""
        apart = _CLONE_NEWPID | _CLONE_NEWNS if self.encloses and not self.trouble else 0
        pid = _LIBC.syscall(_SYS_CLONE, _CLONE_PARENT | apart | _signal.SIGCHLD, 0, 0, 0, 0)
        return int(pid) if pid >= 0 else -ctypes.get_errno()


def serve(line: _socket.socket) -> None:
    """Answer requests until the supervisor hangs up. The first message says what is in the room, if there is one."""
    described = line.recv(ROOM_BYTES_MAX)
    if not described:
        return
    nursery = _Nursery(marshal.loads(described))  # noqa: S302 - written by the supervisor
    while True:
        descriptors = _receive(line)
        if not descriptors:
            return
        pid = nursery.make()
        if pid == 0:
            _begin(nursery, descriptors)
        line.sendall(pid.to_bytes(ANSWER_BYTES, "little", signed=True))
        for descriptor in descriptors:
            os.close(descriptor)
        if nursery.trouble:
            return  # the next one may have more luck


def _prepare() -> None:
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


def _receive(line: _socket.socket) -> list[int]:
    """The descriptors of one request; none when the supervisor has hung up."""
    room = _socket.CMSG_SPACE(4 * (DESCRIPTORS_MAX + 3))
    _, ancillary, _, _ = line.recvmsg(1, room, _socket.MSG_CMSG_CLOEXEC)
    descriptors = []
    for level, kind, raw in ancillary:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            whole = memoryview(raw)[: len(raw) // 4 * 4]
            descriptors += whole.cast("i").tolist()
    return descriptors


def _begin(nursery: _Nursery, descriptors: list[int]) -> None:
    """In the new process: become what the request says; never returns."""
    step = "start"
    try:
        gate, output, asked, *passed = descriptors
        os.dup2(output, 1)
        os.dup2(output, 2)
        pid = os.read(gate, 16)
        if not pid:
            os._exit(FAILED)  # the supervisor never heard of us
        if nursery.trouble:
            os.write(2, nursery.trouble.encode())
            os._exit(FAILED)
        request = marshal.loads(os.pread(asked, os.fstat(asked).st_size, 0))  # noqa: S302 - the supervisor's
        steps = _enclosing if nursery.encloses else _becoming
        for name, act in steps(nursery, request, passed, pid):
            step = name
            act()
    except BaseException as error:  # noqa: BLE001 - whatever it was, it is said
        os.write(2, f"{step}: {error}\n".encode())
    os._exit(FAILED)


def _becoming(nursery: _Nursery, request: Plain, passed: list[int], _: bytes) -> Steps:
    argv, env, directory, joins, namespaces, limits, uid = request
    return (
        ("parent", lambda: _end_with(nursery.supervisor)),
        ("start", lambda: _detach(directory)),
        ("cgroup", lambda: _join([os.open(path, os.O_WRONLY | os.O_CLOEXEC) for path in joins])),
        ("namespace", lambda: _enter([os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in namespaces])),
        ("limit", lambda: _limit(limits)),
        ("uid", lambda: _change_uid(uid)),
        ("parent", lambda: _end_with(nursery.supervisor)),
        ("start", lambda: _keep(passed)),
        ("program", lambda: os.execve(argv[0], argv, env)),  # noqa: S606 - that is its whole purpose
    )


def _enclosing(nursery: _Nursery, request: Enclosed, passed: list[int], pid: bytes) -> Steps:
    program, (hostname, is_hosts, joins), (places, devices, sizes, secrets), bounds = request
    limits, uid, inside, banned = bounds
    status, *others = passed
    joined, entered = others[:joins], others[joins : len(others) - len(places)]
    mounts = others[len(others) - len(places) :]
    return (
        ("parent", lambda: _end_with(nursery.supervisor)),
        ("start", lambda: _detach("/")),
        ("cgroup", lambda: _join(joined)),
        ("namespace", lambda: _separate(entered, hostname, alone=not is_hosts)),
        ("mount", lambda: _furnish(list(zip(mounts, places, strict=True)), devices, *sizes)),
        ("secrets", lambda: _tell(secrets, uid)),
        ("limit", lambda: _limit(limits)),
        ("uid", lambda: _change_uid(uid)),
        ("user namespace", lambda: _be_called(inside, uid)),
        ("privileges", _drop_privileges),
        ("parent", lambda: _end_with(nursery.supervisor)),
        ("filter", lambda: _filter(banned)),
        ("program", lambda: _be_first(nursery, program, status, pid)),
    )


def _end_with(supervisor: int) -> None:
    """Die when the supervisor does, which whoever changes identity must ask for again."""
    _check(_LIBC.prctl(_PR_SET_PDEATHSIG, _signal.SIGKILL, 0, 0, 0))
    asked = supervisor.to_bytes(4, "little") + _POLLIN.to_bytes(2, "little") + bytes(2)
    if _LIBC.poll(ctypes.create_string_buffer(asked, len(asked)), 1, 0) != 0:
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
        _check(_LIBC.setns(file, 0))
        os.close(file)


def _separate(entered: Sequence[int], hostname: str, *, alone: bool) -> None:
    """Namespaces of its own, or entered; the cgroup one begins where it is now."""
    network = _CLONE_NEWNET if alone and not entered else 0
    _check(_LIBC.unshare(_CLONE_NEWIPC | _CLONE_NEWUTS | _CLONE_NEWCGROUP | network))
    _enter(entered)
    name = hostname.encode()
    _check(_LIBC.sethostname(name, len(name)))
    if network:
        interfaces = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
        _check(_LIBC.ioctl(interfaces.fileno(), _SIOCSIFFLAGS, _LOOPBACK_UP))
        interfaces.close()


def _make_room(etc: str, tree: str, folders: Sequence[str], files: Sequence[str]) -> None:
    """Leave the host: from here on the root is a read-only tree with nothing of it but /usr."""
    _check(_LIBC.unshare(_CLONE_NEWNS))
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
    _check(_LIBC.pivot_root(b".", b"."), tree)
    _check(_LIBC.umount2(b".", _MNT_DETACH))
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


def _furnish(mounts: Sequence[tuple[int, str]], shown: Sequence[str], tmp_bytes: int, shm_bytes: int) -> None:
    """What a job has for itself, in the room that it shares with nobody any more."""
    flags = _MS_NOSUID | _MS_NODEV
    _mount("proc", "/proc", flags | _MS_NOEXEC, "proc")
    if shown:
        _make_devices("/tmp", shown)  # noqa: S108 - a place where the devices of the room are still seen
        _mount("/tmp", "/dev", _MS_MOVE)  # noqa: S108 - the same
    _mount("devpts", "/dev/pts", _MS_NOSUID | _MS_NOEXEC, "devpts", _TERMINALS)
    _mount("tmpfs", "/dev/shm", flags, "tmpfs", f"mode=1777,size={shm_bytes}")  # noqa: S108 - its own
    _mount("tmpfs", "/tmp", flags, "tmpfs", f"mode=1777,size={tmp_bytes}")  # noqa: S108 - its own
    for mount, place in mounts:
        if place.startswith("/tmp/"):  # noqa: S108 - which hides what the room has there
            _make_place(place, is_file=not stat.S_ISDIR(os.fstat(mount).st_mode))
        where = os.fsencode(place)
        how = _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_SYMLINKS
        _check(_LIBC.syscall(_SYS_MOVE_MOUNT, mount, b"", _AT_FDCWD, where, how), place)
    if shown:
        _make_read_only("/dev")


def _tell(secrets: Mapping[str, str], uid: int) -> None:
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
    os.mkdir(f"{place}/shm")  # noqa: PTH102 - the same
    os.mkdir(f"{place}/pts")  # noqa: PTH102 - the same


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


def _be_called(inside: int, uid: int) -> None:
    """A user namespace that knows one user, by another number."""
    _check(_LIBC.unshare(_CLONE_NEWUSER))
    # Who has changed his identity owns his files in /proc only while others could look into him; there are none yet.
    _check(_LIBC.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0))
    known = f"{inside} {uid} 1"
    for name, text in (("setgroups", "deny"), ("gid_map", known), ("uid_map", known)):
        file = os.open(f"/proc/self/{name}", os.O_WRONLY | os.O_CLOEXEC)
        os.write(file, text.encode())
        os.close(file)
    _check(_LIBC.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0))


def _drop_privileges() -> None:
    """Nothing of what its user namespace has given it, for ever."""
    _drop_bounds()
    _check(_LIBC.capset(*_NO_CAPABILITIES))
    _check(_LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def _drop_bounds() -> None:
    for capability in range(_CAPABILITIES):
        if _LIBC.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            return  # the kernel knows no more


class _Program(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def _filter(instructions: bytes) -> None:
    program = _Program(len(instructions) // 8, instructions)
    _check(_LIBC.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0))


def _be_first(nursery: _Nursery, program: Program, status: int, pid: bytes) -> None:
    """Start the job's program, bury who has lost his parent, and say in bubblewrap's words how the program ended."""
    start, length = nursery.command_line
    ctypes.memmove(start, INIT_NAME.ljust(length, b"\0")[:length], length)
    _LIBC.prctl(_PR_SET_NAME, INIT_NAME, 0, 0, 0)
    os.dup2(status, 3, inheritable=False)
    _check(_LIBC.syscall(_SYS_CLOSE_RANGE, 4, ctypes.c_uint(0xFFFFFFFF), 0))
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


def _mount(source: str, target: str, flags: int, kind: str | None = None, options: str | None = None) -> None:
    named = None if kind is None else kind.encode()
    said = None if options is None else options.encode()
    done = _LIBC.mount(os.fsencode(source), os.fsencode(target), named, ctypes.c_ulong(flags), said)
    _check(done, target if kind else source)


def _make_read_only(path: str, flags: int = 0, also: int = 0) -> None:
    attributes = (_MOUNT_ATTR_RDONLY | also).to_bytes(8, "little") + bytes(24)
    where = os.fsencode(path)
    _check(_LIBC.syscall(_SYS_MOUNT_SETATTR, _AT_FDCWD, where, flags, attributes, len(attributes)), path)


def _check(result: int, path: str | None = None) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)


if __name__ == "__main__":
    serve(_socket.socket(fileno=0))
