"""Finds out at start how well this machine can keep tenants apart, by building one sandbox and looking.

`full`: own uid, namespaces, system call filter and cgroups. `user`: namespaces and filter, but one uid for all
jobs or no cgroups. `process`: no sandbox, by the operator's choice. `unavailable`: no sandbox can be built
and none was waived, so every run is refused.
"""

import os
import platform
import select
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from scheduler.node.config import NodeConfig, SandboxMode
from scheduler.node.nursery import Nursery, abandon, await_child
from scheduler.node.protocol import UNAVAILABLE, Isolation, Network
from scheduler.node.sandbox import View, compose, make_stage
from scheduler.node.seccomp import ARCHITECTURES

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
    workspace = Path(config.state_directory) / "probe"
    shutil.rmtree(workspace, ignore_errors=True)
    workspace.mkdir()
    if uid is not None:
        os.chown(workspace, uid, uid)
    stage = make_stage(Path(config.state_directory))
    view = probe_view(str(workspace), str(etc), str(stage), uid)
    output = os.memfd_create("said", os.MFD_CLOEXEC)
    try:
        with Path(os.devnull).open("wb") as status, compose(view, status.fileno()) as launch:
            left = _await_end(nursery.start(launch, output))
        os.lseek(output, 0, os.SEEK_SET)
        said = os.read(output, _SAID_BYTES).decode(errors="replace").strip()
    except OSError as error:
        return f"{error}."
    finally:
        os.close(output)
        shutil.rmtree(workspace, ignore_errors=True)
    return "" if left == 0 else f"{said or f'the trial left with status {left}'}."


def _await_end(pid: int) -> int:
    handle = os.pidfd_open(pid)
    try:
        if select.select([handle], [], [], _PROBE_S)[0]:
            return await_child(pid)
        abandon(pid)
        raise TimeoutError(f"the trial took longer than {_PROBE_S} s")
    finally:
        os.close(handle)


def probe_view(workspace: str, etc: str, stage: str, uid: int | None) -> View:
    """The smallest run there is."""
    return View(
        argv=("/usr/bin/true",),
        env={},
        workspace=workspace,
        checkpoints="",
        etc=etc,
        stage=stage,
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
