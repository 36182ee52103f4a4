"""The sandbox of an ordinary user's supervisor: composes the command line of bubblewrap that builds it.

An ordinary user can make namespaces only inside a user namespace, which distributions let bubblewrap make where they
let nobody else (AppArmor's profile), and all jobs are his. bubblewrap's arguments travel in memory files, so that
neither `ps` nor /proc/1/cmdline inside tells where things lie. The launched process ends with the supervisor,
bubblewrap's processes end with their parents.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from scheduler.node.becoming import DESCRIPTORS_MAX, FIRST_DESCRIPTOR
from scheduler.node.environment import CHECKPOINTS, JOB_HOME, loader_variables
from scheduler.node.errors import StartFailed
from scheduler.node.nursery import Launch, memory_file
from scheduler.node.protocol import Network
from scheduler.node.seccomp import job_filter
from scheduler.node.view import HOSTNAME, INSIDE_UID, RESOLVER, View, command, plain

_LINKS: Final = (("usr/bin", "/bin"), ("usr/sbin", "/sbin"), ("usr/lib", "/lib"), ("usr/lib64", "/lib64"))

SECRETS_MAX: Final = DESCRIPTORS_MAX - 5
"""Each has a descriptor; so have the output, the request, the status, the arguments and the filter."""

_MemoryFile = Callable[[bytes], int]


@contextmanager
def wrapped(view: View, status_fd: int) -> Iterator[Launch]:
    """The command that runs the view; its descriptors are closed when the block ends, but for `status_fd`.

    bubblewrap writes its JSON status (pid of the sandbox's first process, exit code) to `status_fd`.
    Raises StartFailed, OSError.
    """
    opened: list[int] = []

    def passed(data: bytes) -> int:
        opened.append(memory_file(data))
        return FIRST_DESCRIPTOR + len(opened)

    if len(view.secrets) > SECRETS_MAX:
        raise StartFailed(why=f"A sandbox can show at most {SECRETS_MAX} secrets.")
    try:
        inner = passed(_packed(_inner(view, passed)))
        argv = ("/usr/bin/bwrap", "--args", str(inner), "--", *command(view))
        yield plain(view, argv, {}, "/", (status_fd, *opened))
    finally:
        for handle in opened:
            os.close(handle)


def _inner(view: View, passed: _MemoryFile) -> list[str]:
    words = [
        *("--unshare-user", "--uid", str(INSIDE_UID), "--gid", str(INSIDE_UID), "--unshare-pid"),
        *("--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try", "--hostname", HOSTNAME),
        *("--new-session", "--die-with-parent", "--cap-drop", "ALL"),
        *(("--unshare-net",) if view.network is Network.NONE else ()),
        *("--ro-bind", "/usr", "/usr"),
        *(word for source, target in _LINKS for word in ("--symlink", source, target)),
        *("--proc", "/proc", "--dev", "/dev"),
        *("--perms", "1777", "--size", str(view.shm_bytes), "--tmpfs", "/dev/shm"),  # noqa: S108 - inside
        *(word for file in view.device_files for word in ("--dev-bind", file, file)),
        *("--remount-ro", "/dev"),
        *("--perms", "1777", "--size", str(view.tmp_bytes), "--tmpfs", "/tmp"),  # noqa: S108 - inside
        *("--ro-bind", view.etc, "/etc"),
    ]
    if view.network is Network.HOST and Path(RESOLVER).exists():
        words += ["--ro-bind", RESOLVER, RESOLVER]
    for source, target in view.software:
        words += ["--ro-bind", source, target]
    words += ["--perms", "0755", "--dir", "/run/secrets"]
    for name, value in view.secrets.items():
        handle = passed(value.encode())
        words += ["--perms", "0400", "--ro-bind-data", str(handle), f"/run/secrets/{name}"]
    words += ["--bind", view.workspace, JOB_HOME]
    if view.checkpoints:
        words += ["--bind", view.checkpoints, CHECKPOINTS]
    words += ["--remount-ro", "/", "--chdir", JOB_HOME]
    # The job gets these only after the programs of ours that come in between.
    later = loader_variables(view.env)
    for name, value in view.env.items():
        if name not in later:
            words += ["--setenv", name, value]
    words += ["--seccomp", str(passed(job_filter()))]
    return [*words, "--json-status-fd", str(FIRST_DESCRIPTOR)]


def _packed(words: Iterable[str]) -> bytes:
    # The one place through which everything passes that could smuggle an argument of bubblewrap's.
    words = list(words)
    packed = "".join(f"{word}\0" for word in words)
    if packed.count("\0") != len(words):
        raise StartFailed(why="A name, variable or path of the run contains a NUL.")
    return os.fsencode(packed)
