"""The sandbox as root's supervisor makes it: composes what the nursery (`becoming.py`) builds it from.

What only this job is shown is opened here, as copies of mounts that nobody else sees; the new process attaches them in
its own mount namespace, where it has nothing else of the host, and so no path of the host is walked by it. Everything
but the copies travels in memory: neither `ps` nor /proc/1/cmdline inside tells where things lie.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from scheduler.node.becoming import DESCRIPTORS_MAX
from scheduler.node.config import NodeConfig
from scheduler.node.environment import CHECKPOINTS, JOB_HOME
from scheduler.node.errors import MissingHere, StartFailed
from scheduler.node.mounts import detached
from scheduler.node.networks import lone_network
from scheduler.node.nursery import Launch, Room
from scheduler.node.protocol import Network
from scheduler.node.seccomp import job_filter
from scheduler.node.view import HOSTNAME, INSIDE_UID, RESOLVER, View, resource_limits

_DEVICES: Final = "/dev/"
_DESCRIPTORS_OF_OURS: Final = 4
"""Output, request, status and the network."""


def make_room(config: NodeConfig, etc: Path) -> Room:
    """What all sandboxes of this node have in common; places at which any job may be shown something are, too."""
    tree = Path(config.state_directory) / "tree"
    tree.mkdir(exist_ok=True)
    mounts = [mount for software in config.environments.values() for mount in software.mounts]
    files = [mount.target or mount.source for mount in mounts if Path(mount.source).is_file()]
    folders = [mount.target or mount.source for mount in mounts if not Path(mount.source).is_file()]
    devices = [file for device in config.devices for file in device.files if not file.startswith(_DEVICES)]
    limits = config.limits
    return Room(
        etc=etc,
        tree=tree,
        folders=tuple(sorted({*folders})),
        files=tuple(sorted({*files, *devices})),
        hostname=HOSTNAME,
        tmp_bytes=limits.tmp_bytes,
        shm_bytes=limits.shm_bytes,
    )


@contextmanager
def enclosed(view: View, status_fd: int) -> Iterator[Launch]:
    """The sandbox's request; its descriptors are closed when the block ends, but for `status_fd`.

    Its first process writes to `status_fd` what bubblewrap does. Raises StartFailed, MissingHere, OSError.
    """
    assert view.uid is not None  # noqa: S101 - who has no uids to give asks bubblewrap
    with ExitStack() as opened:

        def keep(handle: int) -> int:
            opened.callback(os.close, handle)
            return handle

        joins = [keep(os.open(path, os.O_WRONLY | os.O_CLOEXEC)) for path in view.cgroup_joins]
        network = keep(_network(view))
        shown = list(_shown(view))
        if len(shown) > (most := DESCRIPTORS_MAX - _DESCRIPTORS_OF_OURS - len(joins)):
            raise StartFailed(why=f"A sandbox can show at most {most} folders and files.")
        mounts = [keep(_copy(source, opening)) for source, _, opening in shown]
        devices = [file.removeprefix(_DEVICES) for file in view.device_files if file.startswith(_DEVICES)]
        request = (
            (list(view.argv), view.env, JOB_HOME),
            len(joins),
            ([place for _, place, _ in shown], devices, view.secrets),
            (resource_limits(view), view.uid, INSIDE_UID, job_filter()),
        )
        yield Launch(request, (status_fd, network, *joins, *mounts))


def _shown(view: View) -> Iterator[tuple[str, str, dict[str, bool]]]:
    """Source, place inside, and how it is opened; in the order in which they are attached."""
    for source, place in view.software:
        yield source, place, {}
    for file in view.device_files:
        # A device is written to all the same, and its times are not touched; a folder of a driver's may hold more.
        yield file, file, {"writable": Path(file).is_dir(), "device": True}
    if view.network is Network.HOST and Path(RESOLVER).exists():
        yield RESOLVER, RESOLVER, {}
    for place, directory in zip((JOB_HOME, CHECKPOINTS), view.directories, strict=False):
        yield f"/proc/self/fd/{directory}", place, {"writable": True}


def _network(view: View) -> int:
    """A descriptor of the one it is in: the host's, its gang's, or one without anybody else."""
    other = "self" if view.network is Network.HOST else view.enter_pid
    if other is not None:
        return os.open(f"/proc/{other}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    return lone_network() if view.lone_network is None else os.dup(view.lone_network)


def _copy(source: str, opening: dict[str, bool]) -> int:
    try:
        return detached(source, **opening)
    except FileNotFoundError as error:
        raise MissingHere(why=f"{source}, which the job is to see, is not there on this node.") from error
