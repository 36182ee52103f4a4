"""Gathers what a run needs before it can start: workspace, log, uid, cgroup, gang network, software, view.

Whatever was gathered is given back in reverse order, whether the run is started or its preparation fails.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from scheduler.node import bundle
from scheduler.node.cgroups import Caps, CgroupTree
from scheduler.node.config import Environment, NodeConfig
from scheduler.node.devices import device_files, problem_with
from scheduler.node.environment import job_environment
from scheduler.node.errors import InvalidRun, MissingHere, NodeFailed, StartFailed
from scheduler.node.fitness import is_nodes_own
from scheduler.node.gangs import GangNetworks
from scheduler.node.identities import UidPool
from scheduler.node.isolation import try_again
from scheduler.node.launched import Launched, remove_cgroup
from scheduler.node.logs import LogSink, open_log
from scheduler.node.networks import LoneNetworks
from scheduler.node.nursery import Nursery
from scheduler.node.processes import await_end
from scheduler.node.protocol import Bundle, Network, RunSpec
from scheduler.node.reconcile import nested
from scheduler.node.view import View
from scheduler.node.watching import Allowance, Watch
from scheduler.node.workspace import Way, adopt, give_to, open_directory, relative_parts

_RUN_ID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NOTICE_SIGNALS: Final = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGURG)
_UNPACK_S: Final = 300.0
_SENTENCE_BYTES_MAX: Final = 2000
_SECRET_BYTES_MAX: Final = 64 * 1024
_NAME_BYTES_MAX: Final = 255
"""Of a file, on every file system (NAME_MAX)."""


class Launcher:
    """Prepares runs on this node.

    Args:
        etc: the directory that every sandbox shows as /etc.
        uids: where job uids come from; None when we are not root and jobs run as ourselves.
        networks: of runs that talk to nobody; None where we do not make the sandboxes.
        problem: why no sandbox can be built here; empty if it can.
    """

    def __init__(
        self, config: NodeConfig, etc: Path, cgroups: CgroupTree, uids: UidPool | None, gangs: GangNetworks,
        networks: LoneNetworks | None, nursery: Nursery, problem: str,
    ) -> None:  # fmt: skip
        self._config = config
        self._etc = etc
        self._cgroups = cgroups
        self._uids = uids
        self._gangs = gangs
        self._networks = networks
        self._nursery = nursery
        self._problem = problem
        self._root = Path(config.workspace_root)
        self._allowance = Allowance()

    def check(self, spec: RunSpec) -> None:
        """Refuse what cannot be meant, before anything is made. Raises InvalidRun, NodeFailed."""
        if not _RUN_ID.fullmatch(spec.run_id):
            raise InvalidRun(field="run_id", problem="must be a UUID in lower case")
        if self._problem:
            raise NodeFailed(why=self._problem)
        _check_argv(spec.argv, self._config.limits.argv_bytes)
        for at, share in enumerate(spec.devices):
            if problem := problem_with(share, self._config.devices):
                raise InvalidRun(field=f"devices[{at}]", problem=problem)
        if spec.environment and spec.environment not in self._config.environments:
            raise InvalidRun(field="environment", problem=f"{spec.environment} is not offered by this node")
        if spec.memory_mib <= 0 or spec.pids <= 0:
            raise InvalidRun(field="memory_mib, pids", problem="must be positive")
        if spec.notice_signal and spec.notice_signal not in _NOTICE_SIGNALS:
            raise InvalidRun(field="notice_signal", problem="must be SIGUSR1, SIGUSR2, SIGHUP, SIGURG or 0")
        _check_secrets(spec.secrets)
        self._check_network(spec)
        self._check_paths(spec)

    async def trial(self) -> str:
        """Whether this node can start anything: a sentence when the smallest sandbox cannot be built, else empty."""
        if self._problem:
            return self._problem
        lease = None
        try:
            if os.statvfs(self._root).f_bavail == 0:
                return f"There is no space left in {self._root}."
            lease = self._uids.lease() if self._uids is not None else None
            uid = lease.uid if lease is not None else None
            return await try_again(self._config, self._etc, uid, self._nursery)
        except (OSError, NodeFailed, MemoryError) as error:
            return f"{str(error) or 'No memory is left'}."
        finally:
            if lease is not None:
                lease.release()

    async def prepare(self, spec: RunSpec, log_full: Callable[[OSError], None]) -> Launched:
        """Everything but the processes. Raises InvalidRun, StartFailed, NodeFailed, OSError, CancelledError."""
        self.check(spec)
        with Way(self._root) as way, ExitStack() as lent:
            uid = None
            if self._uids is not None:
                lease = self._uids.lease()
                lent.callback(lease.release)
                uid = lease.uid
            directories: list[int] = []
            for field in _directories(spec):
                directories.append(await self._make_own(way, spec, field, uid))
                lent.callback(os.close, directories[-1])
            if spec.bundle is not None:
                await self._unpack(spec.bundle, directories[0], uid)
            enter_pid = lone_network = None
            if spec.network is Network.NONE and self._networks is not None:
                lone_network = lent.enter_context(self._networks.lend(spec.tenant_id))
            if spec.network is Network.JOB and spec.gang is not None:
                membership = await self._gangs.join(spec.gang)
                lent.callback(membership.leave)
                enter_pid = membership.pid
            caps = Caps(spec.memory_mib, spec.pids, spec.cpu_milli)
            cgroup = self._cgroups.create(spec.run_id, caps)
            if cgroup is not None:
                lent.callback(remove_cgroup, cgroup)
            joins = cgroup.joins if cgroup is not None else ()
            view = self._view(spec, uid, enter_pid, lone_network, joins, directories)
            log = self._open_log(way, spec, log_full)
            memory_bytes = 0 if cgroup is not None else view.memory_bytes
            watch = Watch(directories, self._config.limits, self._allowance, memory_bytes=memory_bytes)
            return Launched(view, log, cgroup, watch, lent.pop_all(), self._config.sandbox, self._nursery)

    def _view(
        self,
        spec: RunSpec,
        uid: int | None,
        enter_pid: int | None,
        lone_network: int | None,
        joins: tuple[str, ...],
        directories: list[int],
    ) -> View:
        limits = self._config.limits
        software = self._config.environments.get(spec.environment, Environment())
        _check_present(spec.environment, software)
        return View(
            argv=spec.argv,
            env=job_environment(spec, self._config, software),
            workspace=spec.workspace,
            checkpoints=spec.checkpoints,
            directories=tuple(directories),
            etc=str(self._etc),
            software=tuple((mount.source, mount.target or mount.source) for mount in software.mounts),
            device_files=device_files(self._config.devices, spec.devices),
            network=spec.network,
            uid=uid,
            enter_pid=enter_pid,
            cgroup_joins=joins,
            pids=spec.pids,
            memory_bytes=spec.memory_mib << 20,
            file_bytes=limits.workspace_bytes,
            tmp_bytes=limits.tmp_bytes,
            shm_bytes=limits.shm_bytes,
            nofile=limits.nofile,
            secrets=spec.secrets,
            lone_network=lone_network,
        )

    async def _make_own(self, way: Way, spec: RunSpec, field: str, uid: int | None) -> int:
        """A descriptor of a directory that the job may write, which is made or taken over from an earlier attempt."""
        parts = relative_parts(self._root, getattr(spec, field), field)
        directory = way.enter(parts, field, create=True)
        if uid is not None and not way.made:
            await adopt(directory, uid)
        give_to(directory, uid if uid is not None else os.geteuid())
        return os.dup(directory)

    async def _unpack(self, archive: Bundle, directory: int, uid: int | None) -> None:
        source = self._open_archive(archive)
        limits = self._config.limits
        bounds = (limits.bundle_bytes, limits.bundle_entries, -1 if uid is None else uid, os.getpid())
        target = os.dup(directory)
        said = os.memfd_create("said", os.MFD_CLOEXEC)
        try:
            process = subprocess.Popen(  # noqa: ASYNC220 - only the start is waited for, on purpose on this thread
                (sys.executable, "-I", "-S", bundle.__file__, str(target), archive.sha256, *map(str, bounds)),
                stdin=source,
                stdout=said,
                stderr=subprocess.DEVNULL,
                pass_fds=(target,),
                env={},
                start_new_session=True,
            )
        finally:
            os.close(source)
            os.close(target)
        try:
            await await_end(process, _UNPACK_S)
        except TimeoutError as error:
            why = f"Unpacking the working directory took longer than {_UNPACK_S} s."
            raise StartFailed(why=why) from error
        os.lseek(said, 0, os.SEEK_SET)
        sentence = os.read(said, _SENTENCE_BYTES_MAX)
        os.close(said)
        if status := process.returncode:
            why = sentence.decode(errors="replace").strip() or f"unpacking left with status {status}"
            if status == -signal.SIGKILL or is_nodes_own(OSError(status - bundle.FAILED_BY, why)):
                raise NodeFailed(why=f"The working directory could not be unpacked: {why}.")
            raise StartFailed(why=f"The working directory was refused: {why}.")

    def _open_archive(self, archive: Bundle) -> int:
        parts = relative_parts(self._root, archive.path, "bundle.path")
        try:
            with open_directory(self._root, parts[:-1], "bundle.path") as folder:
                return os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        except (InvalidRun, FileNotFoundError) as error:  # it was there when the job was taken
            why = f"The upload {archive.sha256} is not in the store as this node sees it."
            raise MissingHere(why=why) from error

    def _open_log(self, way: Way, spec: RunSpec, log_full: Callable[[OSError], None]) -> LogSink:
        parts = relative_parts(self._root, spec.log, "log")
        file = open_log(way.enter(parts[:-1], "log", create=True), parts[-1])
        limits = self._config.limits
        return LogSink(file, bytes_max=limits.log_bytes, bytes_per_s=limits.log_bytes_per_s, on_full=log_full)

    def _check_network(self, spec: RunSpec) -> None:
        if spec.network is Network.HOST and not self._config.host_network:
            raise InvalidRun(field="network", problem="this node does not allow the host's network")
        if spec.network is not Network.JOB:
            return
        if spec.gang is None:
            raise InvalidRun(field="gang", problem="is needed for network job")
        self._gangs.check(spec, spec.gang)

    def _check_paths(self, spec: RunSpec) -> None:
        log = relative_parts(self._root, spec.log, "log")
        for field in _directories(spec):
            own = relative_parts(self._root, getattr(spec, field), field)
            if log[: len(own)] == own:
                raise InvalidRun(
                    field="log", problem=f"lies inside the {field}, where the job could replace it"
                )
        if spec.checkpoints and nested(spec.checkpoints, spec.workspace):
            raise InvalidRun(field="checkpoints", problem="may not share a folder with the workspace")


def _directories(spec: RunSpec) -> tuple[str, ...]:
    """The fields that name what the job may write; its working directory first."""
    return ("workspace", "checkpoints") if spec.checkpoints else ("workspace",)


def _check_present(name: str, software: Environment) -> None:
    """What the operator offers must be there; where it is not, no job can help it. Raises MissingHere."""
    for mount in software.mounts:
        if not os.path.exists(mount.source):  # noqa: PTH110 - asked for every run, and a Path costs more than the look
            raise MissingHere(why=f"Environment {name} is not whole on this node: {mount.source} is not there.")


def _check_argv(argv: tuple[str, ...], bytes_max: int) -> None:
    if not argv or not argv[0]:
        raise InvalidRun(field="argv", problem="names no program")
    if "=" in argv[0]:
        raise InvalidRun(field="argv[0]", problem="may not contain an equals sign")
    if any("\0" in word for word in argv):
        raise InvalidRun(field="argv", problem="contains a NUL")
    size = sum(len(word.encode()) + 1 for word in argv)
    if size > bytes_max:
        raise InvalidRun(field="argv", problem=f"has {size} bytes; at most {bytes_max} are allowed")


def _check_secrets(secrets: dict[str, str]) -> None:
    for name in secrets:
        if (
            not name
            or "/" in name
            or name in {".", ".."}
            or "\0" in name
            or len(name.encode()) > _NAME_BYTES_MAX
        ):
            raise InvalidRun(field=f"secrets.{name}", problem="is not a file name")
    if sum(len(value.encode()) for value in secrets.values()) > _SECRET_BYTES_MAX:
        raise InvalidRun(field="secrets", problem=f"have more than {_SECRET_BYTES_MAX} bytes")
