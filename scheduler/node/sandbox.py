"""What a job's process tree can see: composes the command line that builds the sandbox around it.

Nothing of the host is shown but what is listed here: /usr and the environment read-only, /job, private /tmp and
/dev/shm of bounded size, a minimal /dev with the allocated devices, a fresh /proc, and an /etc of our own.

Launched by root, the job's own uid cannot enter the folders (often mode 0700) where its parts lie. So they are
first bound to neutral places in a mount namespace of the child's own (`becoming`), which has nothing else of the host,
then it changes its uid, and bubblewrap makes the other namespaces from there and becomes the job's program.

bubblewrap's arguments travel in memory files, so that neither `ps` nor /proc/1/cmdline inside tells where
things lie. The launched process ends with the supervisor, bubblewrap's processes end with their parents.
"""

import errno
import os
import resource
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from scheduler.node.becoming import DESCRIPTORS_MAX, FIRST_DESCRIPTOR
from scheduler.node.environment import CHECKPOINTS, JOB_HOME, loader_variables
from scheduler.node.errors import StartFailed
from scheduler.node.nursery import Becoming, Launch
from scheduler.node.protocol import Network
from scheduler.node.seccomp import job_filter

INSIDE_UID: Final = 1000
HOSTNAME: Final = "hub"

STAGE_PLACES: Final = 64

SECRETS_MAX: Final = DESCRIPTORS_MAX - 3
"""Each has a descriptor; so have the status, the arguments and the filter."""
_PIDS_OF_THE_SANDBOX: Final = 8

NOT_FOUND: Final = 127
NOT_EXECUTABLE: Final = 126

NO_CORE_AT_ALL: Final = 1
"""Bytes of a core dump: too few for a file, and the one limit with which no crash handler of the host is started
either (with zero it is: core(5), "Piping core dumps to a program")."""

_STAGED: Final = "/tmp"  # noqa: S108 - in a root of the job's own
_DEVICES: Final = "/dev"
_RESOLVER: Final = Path("/etc/resolv.conf")
_LINKS: Final = (("usr/bin", "/bin"), ("usr/sbin", "/sbin"), ("usr/lib", "/lib"), ("usr/lib64", "/lib64"))

_MemoryFile = Callable[[bytes], int]


@dataclass(frozen=True, slots=True)
class View:
    """Everything that distinguishes one run's sandbox from another's; all paths are host paths.

    `uid` is the host uid the job runs as, or None to stay who we are. `enter_pid` is a process whose network
    namespace the job joins.
    """

    argv: tuple[str, ...]
    env: dict[str, str]
    workspace: str
    checkpoints: str
    etc: str
    stage: str
    software: tuple[tuple[str, str], ...]
    device_files: tuple[str, ...]
    network: Network
    uid: int | None
    enter_pid: int | None
    cgroup_joins: tuple[str, ...]
    pids: int
    memory_bytes: int
    file_bytes: int
    tmp_bytes: int
    shm_bytes: int
    nofile: int
    secrets: dict[str, str] = field(default_factory=dict)


@contextmanager
def compose(view: View, status_fd: int) -> Iterator[Launch]:
    """The command that runs the view; its descriptors are closed when the block ends, but for `status_fd`.

    bubblewrap writes its JSON status (pid of the sandbox's first process, exit code) to `status_fd`.
    Raises StartFailed, OSError.
    """
    opened: list[int] = []

    def memory_file(data: bytes) -> int:
        handle = os.memfd_create("hub", os.MFD_CLOEXEC)
        opened.append(handle)
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(handle, rest) :]
        os.lseek(handle, 0, os.SEEK_SET)
        return FIRST_DESCRIPTOR + len(opened)

    if len(view.secrets) > SECRETS_MAX:
        raise StartFailed(why=f"A sandbox can show at most {SECRETS_MAX} secrets.")
    try:
        staged = _Stage(view.stage, view.etc) if view.uid is not None else None
        inner = memory_file(_packed(_inner(view, staged, memory_file)))
        command = view.argv if staged is not None else _command(view)
        argv = ("/usr/bin/bwrap", "--args", str(inner), "--", *command)
        binds = tuple(staged.binds) if staged is not None else ()
        yield Launch(argv, {}, "/", (status_fd, *opened), _become(view, binds))
    finally:
        for handle in opened:
            os.close(handle)


def unconfined(view: View) -> Launch:
    """The command without a sandbox, for nodes whose operator chose that."""
    return Launch(_command(view), view.env, view.workspace, (), _become(view, ()))


class _Stage:
    """The root of the job's mount namespace before there is a sandbox: neutral names of what that shows."""

    def __init__(self, folder: str, etc: str) -> None:
        self.folder = folder
        self.binds = [("/usr", f"{folder}/usr"), ("/proc", f"{folder}/proc"), (etc, f"{folder}/etc")]
        self._places = {"d": 0, "f": 0}

    def place(self, source: str) -> str:
        kind = "d" if Path(source).is_dir() else "f"
        number = self._places[kind]
        if number >= STAGE_PLACES:
            raise StartFailed(why=f"A sandbox can show at most {STAGE_PLACES} folders and as many files.")
        self._places[kind] += 1
        self.binds.append((source, f"{self.folder}{_STAGED}/{kind}{number}"))
        return f"{_STAGED}/{kind}{number}"


def make_stage(state_directory: Path) -> Path:
    """The root of jobs' first mount namespaces, below the state directory: links, and empty places to bind to."""
    stage = state_directory / "stage"
    staged = stage / _STAGED.strip("/")
    for folder in (stage, staged, *(stage / name for name in ("usr", "proc", "etc", "dev"))):
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)
    for target, link in _LINKS:
        with suppress(FileExistsError):
            (stage / link.strip("/")).symlink_to(target)
    for number in range(STAGE_PLACES):
        (staged / f"d{number}").mkdir(exist_ok=True)
        (staged / f"f{number}").touch()
    return stage


def _inner(view: View, staged: _Stage | None, memory_file: _MemoryFile) -> list[str]:
    def show(option: str, source: str, target: str) -> tuple[str, str, str]:
        return (option, staged.place(source) if staged else source, target)

    words = [
        *("--unshare-user", "--uid", str(INSIDE_UID), "--gid", str(INSIDE_UID), "--unshare-pid"),
        *("--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try", "--hostname", HOSTNAME),
        *("--new-session", "--die-with-parent", "--cap-drop", "ALL"),
        *(("--unshare-net",) if view.network is Network.NONE else ()),
        *("--ro-bind", "/usr", "/usr"),
        *(word for source, target in _LINKS for word in ("--symlink", source, target)),
        *("--proc", "/proc"),
        *(("--dev-bind", _DEVICES, "/dev") if staged else ("--dev", "/dev")),
        *("--perms", "1777", "--size", str(view.shm_bytes), "--tmpfs", "/dev/shm"),  # noqa: S108 - inside
        *(word for file in view.device_files for word in show("--dev-bind", file, file)),
        *(() if staged else ("--remount-ro", "/dev")),
        *("--perms", "1777", "--size", str(view.tmp_bytes), "--tmpfs", "/tmp"),  # noqa: S108 - inside
        *("--ro-bind", "/etc" if staged else view.etc, "/etc"),
        *(
            show("--ro-bind", str(_RESOLVER), str(_RESOLVER))
            if view.network is Network.HOST and _RESOLVER.exists()
            else ()
        ),
        *(word for source, target in view.software for word in show("--ro-bind", source, target)),
        *("--perms", "0755", "--dir", "/run/secrets"),
    ]
    for name, value in view.secrets.items():
        handle = memory_file(value.encode())
        words += ["--perms", "0400", "--ro-bind-data", str(handle), f"/run/secrets/{name}"]
    words += show("--bind", view.workspace, JOB_HOME)
    if view.checkpoints:
        words += show("--bind", view.checkpoints, CHECKPOINTS)
    words += ["--remount-ro", "/", "--chdir", JOB_HOME]
    # An ordinary user's jobs get these only after the programs of ours that come in between.
    later = {} if staged else loader_variables(view.env)
    for name, value in view.env.items():
        if name not in later:
            words += ["--setenv", name, value]
    words += ["--seccomp", str(memory_file(job_filter()))]
    return [*words, "--json-status-fd", str(FIRST_DESCRIPTOR)]


def unexecuted(argv: tuple[str, ...], said: str) -> int | None:
    """The shell's status for a program that bubblewrap could not become, from its last words; else None.

    To be asked only where bubblewrap tells no exit code: then nothing of the job's has run, and the words are its own.
    """
    blamed, _, reason = said.rpartition(": ")
    if not blamed or not f"bwrap: execvp {argv[0]}".endswith(blamed):
        return None
    return NOT_FOUND if reason == os.strerror(errno.ENOENT) else NOT_EXECUTABLE


def _become(view: View, binds: tuple[tuple[str, str], ...]) -> Becoming:
    return Becoming(
        cgroup_joins=view.cgroup_joins,
        namespaces=_namespaces(view),
        binds=binds,
        root=view.stage,
        devices=f"{view.stage}{_DEVICES}",
        device_files=tuple(
            file.removeprefix(f"{_DEVICES}/") for file in view.device_files if file.startswith(f"{_DEVICES}/")
        ),
        limits=_resource_limits(view),
        uid=view.uid,
    )


def _namespaces(view: View) -> tuple[str, ...]:
    # An ordinary user may enter the network only together with the user namespace that owns it.
    if view.enter_pid is None:
        return ()
    kinds = ("net",) if view.uid is not None else ("user", "net")
    return tuple(f"/proc/{view.enter_pid}/ns/{kind}" for kind in kinds)


def _resource_limits(view: View) -> tuple[tuple[int, int], ...]:
    # Without cgroups each process's memory is limited instead.
    limits = [
        (resource.RLIMIT_CORE, NO_CORE_AT_ALL),
        (resource.RLIMIT_NOFILE, _within_hard_limit(resource.RLIMIT_NOFILE, view.nofile)),
        (resource.RLIMIT_FSIZE, view.file_bytes),
    ]
    if view.uid is not None:
        limits.append((resource.RLIMIT_NPROC, view.pids + _PIDS_OF_THE_SANDBOX))
    if not view.cgroup_joins:
        limits.append((resource.RLIMIT_DATA, view.memory_bytes))
    return tuple(limits)


def _within_hard_limit(kind: int, wanted: int) -> int:
    hard = resource.getrlimit(kind)[1]
    return wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)


def _command(view: View) -> tuple[str, ...]:
    # `env` says with 126 and 127 what cannot be run, and takes what nothing of ours may load.
    # Without a uid of its own the job shares its user's process count, so that limit is set inside, where the
    # kernel counts per user namespace.
    pids = view.pids + _PIDS_OF_THE_SANDBOX
    inside = () if view.uid is not None else ("/usr/bin/prlimit", f"--nproc={pids}")
    loaders = (f"{name}={value}" for name, value in loader_variables(view.env).items())
    return (*inside, "/usr/bin/env", "--", *loaders, *view.argv)


def _packed(words: Iterable[str]) -> bytes:
    # The one place through which everything passes that could smuggle an argument of bubblewrap's.
    words = list(words)
    packed = "".join(f"{word}\0" for word in words)
    if packed.count("\0") != len(words):
        raise StartFailed(why="A name, variable or path of the run contains a NUL.")
    return os.fsencode(packed)
