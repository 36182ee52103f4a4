"""What a job's process tree can see and take, whoever makes its sandbox."""

import resource
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from scheduler.node.environment import loader_variables
from scheduler.node.nursery import Launch
from scheduler.node.protocol import Network

INSIDE_UID: Final = 1000
HOSTNAME: Final = "hub"

RESOLVER: Final = "/etc/resolv.conf"
"""The host's own is shown to who has the host's network."""

PIDS_OF_THE_SANDBOX: Final = 8

NO_CORE_AT_ALL: Final = 1
"""Bytes of a core dump: too few for a file, and the one limit with which no crash handler of the host is started
either (with zero it is: core(5), "Piping core dumps to a program")."""


@dataclass(frozen=True, slots=True)
class View:
    """Everything that distinguishes one run's sandbox from another's; all paths are host paths.

    `uid` is the host uid the job runs as, or None to stay who we are. `enter_pid` is a process whose network
    namespace the job joins. `lone_network` is a descriptor of one that it has for itself; None for a new one, and
    wherever root does not make the sandbox. `directories` are descriptors of the workspace and, if there are, the
    checkpoints: what was made and looked at under these names, whatever has them now.
    """

    argv: tuple[str, ...]
    env: dict[str, str]
    workspace: str
    checkpoints: str
    directories: tuple[int, ...]
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
    lone_network: int | None = None


def command(view: View) -> tuple[str, ...]:
    """The job's command as programs of ours start it.

    `env` says with 126 and 127 what cannot be run, and takes what nothing of ours may load. Without a uid of its own
    the job shares its user's process count, so that limit is set inside, where the kernel counts per user namespace.
    """
    pids = view.pids + PIDS_OF_THE_SANDBOX
    inside = () if view.uid is not None else ("/usr/bin/prlimit", f"--nproc={pids}")
    loaders = (f"{name}={value}" for name, value in loader_variables(view.env).items())
    return (*inside, "/usr/bin/env", "--", *loaders, *view.argv)


def plain(
    view: View, argv: tuple[str, ...], env: Mapping[str, str], directory: str, descriptors: tuple[int, ...]
) -> Launch:
    """A request to become this command, under the view's limits and as its user."""
    # An ordinary user may enter the network only together with the user namespace that owns it.
    kinds = ("net",) if view.uid is not None else ("user", "net")
    namespaces = [f"/proc/{view.enter_pid}/ns/{kind}" for kind in kinds] if view.enter_pid is not None else []
    joins, limits = list(view.cgroup_joins), resource_limits(view)
    return Launch((list(argv), dict(env), directory, joins, namespaces, limits, view.uid), descriptors)


def resource_limits(view: View) -> list[tuple[int, int]]:
    """(resource, value) pairs, soft and hard. Without cgroups each process's memory is limited instead."""
    limits = [
        (int(resource.RLIMIT_CORE), NO_CORE_AT_ALL),
        (int(resource.RLIMIT_NOFILE), _within_hard_limit(resource.RLIMIT_NOFILE, view.nofile)),
        (int(resource.RLIMIT_FSIZE), view.file_bytes),
    ]
    if view.uid is not None:
        limits.append((int(resource.RLIMIT_NPROC), view.pids + PIDS_OF_THE_SANDBOX))
    if not view.cgroup_joins:
        limits.append((int(resource.RLIMIT_DATA), view.memory_bytes))
    return limits


def _within_hard_limit(kind: int, wanted: int) -> int:
    hard = resource.getrlimit(kind)[1]
    return wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
