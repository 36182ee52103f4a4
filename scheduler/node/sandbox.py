"""What a job's process tree can see: composes the command line that builds the sandbox around it.

Nothing of the host is shown but what is listed here: /usr and the environment read-only, /job, private /tmp and
/dev/shm of bounded size, a minimal /dev with the allocated devices, a fresh /proc, and an /etc of our own.

Launched by root it takes two steps, because the job's own uid cannot enter the folders (often mode 0700) where
its parts lie: an outer bubblewrap mounts them at neutral places as root, setpriv becomes the job's uid, and the
inner bubblewrap makes the namespaces. Launched by an ordinary user there is only the inner one.

Arguments travel in memory files, so that neither `ps` nor /proc/1/cmdline inside tells where things lie. The
first link of the chain ends with the supervisor (PR_SET_PDEATHSIG, then a check that the parent is still
there), and each bubblewrap ends with its parent.
"""

import os
import resource
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from scheduler.node.environment import JOB_HOME, loader_variables
from scheduler.node.protocol import Network

INSIDE_UID: Final = 1000
HOSTNAME: Final = "hub"

_STAGE: Final = "/stage"
_RESOLVER: Final = Path("/etc/resolv.conf")
_LINKS: Final = (("usr/bin", "/bin"), ("usr/sbin", "/sbin"), ("usr/lib", "/lib"), ("usr/lib64", "/lib64"))
_GATE: Final = (
    'test "$PPID" = "$1" || exit 1; shift; '
    'while test "$1" != --; do echo $$ > "$1" || exit 1; shift; done; shift; exec "$@"'
)

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
    etc: str
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
    seccomp: bytes = b""


@dataclass(frozen=True, slots=True)
class Launch:
    """A command line and the descriptors it needs; to be started with an empty environment."""

    argv: tuple[str, ...]
    descriptors: tuple[int, ...]


@contextmanager
def compose(view: View, supervisor_pid: int, status_fd: int) -> Iterator[Launch]:
    """The command that runs the view; its descriptors are closed when the block ends.

    bubblewrap writes its JSON status (pid of the sandbox's first process, exit code) to `status_fd`.
    """
    opened: list[int] = []

    def memory_file(data: bytes) -> int:
        handle = os.memfd_create("hub", os.MFD_CLOEXEC)
        opened.append(handle)
        with os.fdopen(os.dup(handle), "wb") as file:
            file.write(data)
        os.lseek(handle, 0, os.SEEK_SET)
        return handle

    try:
        staged = _Stage() if view.uid is not None else None
        inner = _inner(view, staged, status_fd, memory_file)
        command = ["/usr/bin/bwrap", "--args", str(memory_file(_packed(inner))), "--", *_command(view)]
        if staged is not None:
            command = [
                *("/usr/bin/bwrap", "--args", str(memory_file(_packed(_outer(staged)))), "--"),
                *_become(view.uid),
                *command,
            ]
        yield Launch(
            (*gate(supervisor_pid, view.cgroup_joins), *_enter(view), *_resource_limits(view), *command),
            (status_fd, *opened),
        )
    finally:
        for handle in opened:
            os.close(handle)


def gate(supervisor_pid: int, cgroup_joins: Iterable[str]) -> tuple[str, ...]:
    """The first link: dies with the supervisor, refuses to go on without it, joins the run's cgroups."""
    return (
        *("/usr/bin/setpriv", "--pdeathsig", "KILL", "/bin/sh", "-c", _GATE, "sh", str(supervisor_pid)),
        *cgroup_joins,
        "--",
    )


def unconfined(view: View, supervisor_pid: int) -> tuple[str, ...]:
    """The command without a sandbox, for nodes whose operator chose that; to be started in the workspace."""
    uid = _become(view.uid) if view.uid is not None else ()
    return (*gate(supervisor_pid, view.cgroup_joins), *_resource_limits(view), *uid, *_command(view))


class _Stage:
    """Neutral names, in the outer sandbox, of the host paths that the inner one shows."""

    def __init__(self) -> None:
        self.binds: list[tuple[str, str, str]] = []

    def place(self, option: str, source: str) -> str:
        name = f"{_STAGE}/{len(self.binds)}"
        self.binds.append((option, source, name))
        return name


def _inner(view: View, staged: _Stage | None, status_fd: int, memory_file: _MemoryFile) -> list[str]:
    def show(option: str, source: str, target: str) -> tuple[str, str, str]:
        return (option, staged.place(option, source) if staged else source, target)

    words = [
        *("--unshare-user", "--uid", str(INSIDE_UID), "--gid", str(INSIDE_UID), "--unshare-pid"),
        *("--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try", "--hostname", HOSTNAME),
        *("--new-session", "--die-with-parent", "--cap-drop", "ALL"),
        *(("--unshare-net",) if view.network is Network.NONE else ()),
        *("--ro-bind", "/usr", "/usr"),
        *(word for source, target in _LINKS for word in ("--symlink", source, target)),
        *("--proc", "/proc", "--dev", "/dev"),
        *("--perms", "1777", "--size", str(view.shm_bytes), "--tmpfs", "/dev/shm"),  # noqa: S108 - inside
        *(word for file in view.device_files for word in show("--dev-bind", file, file)),
        *("--remount-ro", "/dev"),
        *("--perms", "1777", "--size", str(view.tmp_bytes), "--tmpfs", "/tmp"),  # noqa: S108 - inside
        *show("--ro-bind", view.etc, "/etc"),
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
    words += [*show("--bind", view.workspace, JOB_HOME), "--remount-ro", "/", "--chdir", JOB_HOME]
    loaders = loader_variables(view.env)
    for name, value in view.env.items():
        if name not in loaders:
            words += ["--setenv", name, value]
    if view.seccomp:
        words += ["--seccomp", str(memory_file(view.seccomp))]
    return [*words, "--json-status-fd", str(status_fd)]


def _outer(staged: _Stage) -> list[str]:
    return [
        *("--die-with-parent", "--ro-bind", "/usr", "/usr", "--bind", "/proc", "/proc"),
        *("--dev-bind", "/dev", "/dev", "--dir", "/tmp"),  # noqa: S108 - inside
        *(word for source, target in _LINKS for word in ("--symlink", source, target)),
        *("--perms", "0755", "--dir", _STAGE),
        *(word for bind in staged.binds for word in bind),
    ]


def _become(uid: int | None) -> tuple[str, ...]:
    return (
        *("/usr/bin/setpriv", "--pdeathsig", "KILL", "--reuid", str(uid), "--regid", str(uid)),
        *("--clear-groups", "--inh-caps=-all", "--bounding-set=-all"),
    )


def _enter(view: View) -> tuple[str, ...]:
    if view.enter_pid is None:
        return ()
    if view.uid is not None:
        return ("/usr/bin/nsenter", f"--net=/proc/{view.enter_pid}/ns/net", "--")
    return (
        "/usr/bin/nsenter",
        "--user",
        "--net",
        "--preserve-credentials",
        "--target",
        str(view.enter_pid),
        "--",
    )


def _resource_limits(view: View) -> tuple[str, ...]:
    nofile = _within_hard_limit(resource.RLIMIT_NOFILE, view.nofile)
    processes = (f"--nproc={view.pids + 8}",) if view.uid is not None else ()
    return (
        *("/usr/bin/prlimit", "--core=0", f"--nofile={nofile}", f"--fsize={view.file_bytes}"),
        *processes,
    )


def _within_hard_limit(kind: int, wanted: int) -> int:
    hard = resource.getrlimit(kind)[1]
    return wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)


def _command(view: View) -> tuple[str, ...]:
    # Without a uid of its own the job shares its user's process count, so the limit is set inside, where the
    # kernel counts per user namespace; without a cgroup each process's memory is limited instead.
    limits = [] if view.uid is not None else [f"--nproc={view.pids + 8}"]
    if not view.cgroup_joins:
        limits.append(f"--data={view.memory_bytes}")
    inside = ("/usr/bin/prlimit", *limits) if limits else ()
    loaders = (f"{name}={value}" for name, value in loader_variables(view.env).items())
    return (*inside, "/usr/bin/env", "--", *loaders, *view.argv)


def _packed(words: Iterable[str]) -> bytes:
    return b"".join(os.fsencode(word) + b"\0" for word in words)
