"""Finds out at start how well this machine can keep tenants apart, by building one sandbox and looking.

`full`: own uid, namespaces, system call filter and cgroups. `user`: namespaces and filter, but one uid for all
jobs or no cgroups. `process`: no sandbox, by the operator's choice. `unavailable`: no sandbox can be built
and none was waived, so every run is refused.
"""

import asyncio
import os
import platform
import select
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from scheduler.node.config import NodeConfig, SandboxMode
from scheduler.node.nursery import Nursery, abandon, await_child
from scheduler.node.protocol import UNAVAILABLE, Isolation, Network
from scheduler.node.sandbox import compose
from scheduler.node.seccomp import ARCHITECTURES
from scheduler.node.view import View

_PROGRAMS: Final = ("bwrap", "prlimit", "flock", "env")
_PROBE_S: Final = 20
_SAID_BYTES: Final = 4096
_NO_UIDS: Final = "All jobs run under the supervisor's own uid, because it is not root."
_NO_CGROUPS: Final = (
    "Memory is limited per process and process counts per sandbox, because no cgroup can be written."
)
_MEASURED: Final = (
    "The size of a workspace is measured, at once when much is written, and not enforced by the file system; "
    "that of a single file, of /tmp and of /dev/shm is."
)
_NO_SANDBOX: Final = (
    "Jobs see the host's files, processes and network, and what they detach may outlive them: "
    "the operator chose sandbox mode process."
)


@dataclass(frozen=True, slots=True)
class Examination:
    """The isolation to report, and why no run may start; empty if they may."""

    isolation: Isolation
    problem: str


def examine(config: NodeConfig, etc: Path, uid: int | None, nursery: Nursery, *, cgroups: bool) -> Examination:
    """Build a sandbox and look."""
    weaknesses = [] if uid is not None else [_NO_UIDS]
    if not cgroups:
        weaknesses.append(_NO_CGROUPS)
    if config.sandbox is SandboxMode.PROCESS:
        return Examination(Isolation("process", (_NO_SANDBOX, *weaknesses)), "")
    problem = _missing_program() or _try_sandbox(config, etc, uid, nursery)
    if problem:
        sentence = f"No sandbox can be built on this node: {problem}"
        return Examination(Isolation(UNAVAILABLE, (sentence, *weaknesses)), sentence)
    return Examination(Isolation("user" if weaknesses else "full", (*weaknesses, _MEASURED)), "")


def _missing_program() -> str:
    if platform.machine() not in ARCHITECTURES:
        return f"there is no system call filter for {platform.machine()}."
    missing = [name for name in _PROGRAMS if not Path("/usr/bin", name).exists()]
    return f"/usr/bin/{missing[0]} is not installed (packages bubblewrap and util-linux)." if missing else ""


def _try_sandbox(config: NodeConfig, etc: Path, uid: int | None, nursery: Nursery) -> str:
    try:
        with _trial(config, etc, uid, nursery) as trial:
            return trial.verdict(ended=bool(select.select([trial.handle], [], [], _PROBE_S)[0]))
    except OSError as error:
        return f"{error}."


async def try_again(config: NodeConfig, etc: Path, uid: int | None, nursery: Nursery) -> str:
    """Build the smallest sandbox once more, while others run; why that is not possible, else empty."""
    if config.sandbox is SandboxMode.PROCESS:
        return ""
    try:
        with _trial(config, etc, uid, nursery) as trial:
            ended = asyncio.Event()
            asyncio.get_running_loop().add_reader(trial.handle, ended.set)
            try:
                async with asyncio.timeout(_PROBE_S):
                    await ended.wait()
            except TimeoutError:
                pass
            finally:
                asyncio.get_running_loop().remove_reader(trial.handle)
            return trial.verdict(ended=ended.is_set())
    except OSError as error:
        return f"{error}."


class _Trial:
    """The smallest run; `handle` can be read when it has ended."""

    def __init__(self, pid: int, output: int) -> None:
        self.handle = os.pidfd_open(pid)
        self._pid: int | None = pid
        self._output = output

    def verdict(self, *, ended: bool) -> str:
        """Why it failed, else empty."""
        pid, self._pid = self._pid, None
        assert pid is not None  # noqa: S101 - asked once
        if not ended:
            abandon(pid)
            return f"the trial took longer than {_PROBE_S} s."
        left = await_child(pid)
        os.lseek(self._output, 0, os.SEEK_SET)
        said = os.read(self._output, _SAID_BYTES).decode(errors="replace").strip()
        return "" if left == 0 else f"{said or f'the trial left with status {left}'}."

    def close(self) -> None:
        """Leave nothing of it."""
        if self._pid is not None:
            abandon(self._pid)
        os.close(self.handle)


@contextmanager
def _trial(config: NodeConfig, etc: Path, uid: int | None, nursery: Nursery) -> Iterator[_Trial]:
    workspace = Path(config.state_directory) / "probe"
    shutil.rmtree(workspace, ignore_errors=True)
    with ExitStack() as lent:
        lent.callback(shutil.rmtree, workspace, ignore_errors=True)
        workspace.mkdir()
        if uid is not None:
            os.chown(workspace, uid, uid)
        directory = os.open(workspace, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        lent.callback(os.close, directory)
        view = probe_view(str(workspace), directory, str(etc), uid)
        output = os.memfd_create("said", os.MFD_CLOEXEC)
        lent.callback(os.close, output)
        status = lent.enter_context(Path(os.devnull).open("wb"))
        launch = lent.enter_context(compose(view, status.fileno()))
        trial = _Trial(nursery.start(launch, output, anew=True), output)
        lent.callback(trial.close)
        yield trial


def probe_view(workspace: str, directory: int, etc: str, uid: int | None) -> View:
    """The smallest run there is."""
    return View(
        argv=("/usr/bin/true",),
        env={},
        workspace=workspace,
        checkpoints="",
        directories=(directory,),
        etc=etc,
        software=(),
        device_files=(),
        network=Network.NONE,
        uid=uid,
        enter_pid=None,
        cgroup_joins=(),
        pids=64,
        memory_bytes=256 << 20,
        file_bytes=1 << 20,
        tmp_bytes=1 << 20,
        shm_bytes=1 << 20,
        nofile=1024,
    )
