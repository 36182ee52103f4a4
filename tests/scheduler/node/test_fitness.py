"""A start that fails for the node's own sake is not the job's fault, and the node takes nothing until it can start."""

import ctypes
import errno
import hashlib
import io
import os
import resource
import signal
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from kernel.ids import new_id
from scheduler.node.client import SupervisorClient
from scheduler.node.errors import InvalidRun, NodeFailed, StartFailed
from scheduler.node.fitness import is_nodes_own
from scheduler.node.protocol import (
    UNAVAILABLE,
    Bundle,
    DeviceShare,
    EndReason,
    Report,
    RunSpec,
    RunState,
    SyncRequest,
)
from tests.scheduler.node.harness import DEADLINE_MS, Machine, Node, helper_of, ready_of

_LIBC = ctypes.CDLL(None, use_errno=True)
_PTRACE_SEIZE, _PTRACE_INTERRUPT = 0x4206, 0x4207
_WALL = 0x40000000
"""Of waitpid(2): children that are not ours, too, which a debugger waits for."""


@pytest.mark.parametrize(
    ("error", "nodes_own"),
    [
        (OSError(errno.EMFILE, "Too many open files"), True),
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EAGAIN, "Resource temporarily unavailable"), True),
        (TimeoutError("timed out"), True),
        (ConnectionError("the nursery died"), True),
        (MemoryError(), True),
        (NodeFailed(why="All 5 job uids of this host are in use."), True),
        (OSError(errno.EACCES, "Permission denied"), False),
        (OSError(errno.ENAMETOOLONG, "File name too long"), False),
        (OSError(errno.ENOENT, "No such file or directory"), False),
        (StartFailed(why="The working directory was refused."), False),
        (InvalidRun(field="environment", problem="is not offered by this node"), False),
    ],
)
def test_what_the_next_job_would_meet_too_is_the_nodes_own(error: Exception, *, nodes_own: bool) -> None:
    assert is_nodes_own(error) is nodes_own


class _Line:
    """One connection to a supervisor that may be out of descriptors for another."""

    def __init__(self, client: SupervisorClient, node: Node) -> None:
        self._client = client
        self._node = node

    def sync(self) -> Report:
        report = self._client.sync(
            SyncRequest(self._node.epoch, self._node.lease_ms, tuple(self._node.desired.values()))
        )
        self._node.usage |= {record.id: record for record in report.usage}
        return report

    def until(self, what: str, spec: RunSpec) -> Report:
        """The first report in which the run has ended, or in which something can be started again."""
        while True:
            report = self.sync()
            ended = {run.run_id for run in report.runs if run.state is RunState.ENDED}
            if (what == "ended" and spec.run_id in ended) or (
                what == "works" and report.isolation.level != UNAVAILABLE
            ):
                return report
            assert self._client.wait_for_change(report.seq, DEADLINE_MS).seq != report.seq, what


@contextmanager
def _line(node: Node) -> Iterator[_Line]:
    with node.client() as client:
        client.hello()
        yield _Line(client, node)


def _is_nodes_own(report: Report, spec: RunSpec) -> str:
    """The run's reason, of one that its node could not start and that nobody need pay."""
    status = next(run for run in report.runs if run.run_id == spec.run_id)
    assert (status.end_reason, status.exit_code) == (EndReason.NODE_FAILED, None)
    assert status.started_unix_ms is None
    assert report.isolation.level == UNAVAILABLE
    assert report.isolation.weaknesses[0].startswith("This node could not start a run: ")
    return status.reason


@pytest.mark.slow
def test_a_node_without_descriptors_says_so_and_takes_runs_again_when_it_has_some(node: Node) -> None:
    assert node.process is not None
    pid = node.process.pid
    with _line(node) as line:
        open_now = max(int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir())
        _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (open_now + 2, hard))
        spec = node.spec("/bin/true")
        node.desired[spec.run_id] = spec
        assert "Too many open files" in _is_nodes_own(line.until("ended", spec), spec)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (hard, hard))
        line.until("works", spec)
    assert [record.slot_ms for record in node.records(spec)] == [0]
    assert node.sh("echo ran")[1] == "ran\n"


def _hold(pid: int) -> None:
    """Stop a process as a debugger does, which its parent is not told."""
    for request in (_PTRACE_SEIZE, _PTRACE_INTERRUPT):
        assert _LIBC.ptrace(request, pid, None, None) == 0, ctypes.get_errno()
    os.waitpid(pid, _WALL)


@pytest.mark.slow
@pytest.mark.usefixtures("root")
def test_a_first_process_that_somebody_killed_before_the_job_began_is_the_nodes_loss(node: Node) -> None:
    ready = ready_of(node)
    for one in ready:
        while one.status() != psutil.STATUS_SLEEPING:  # it has its name a moment before it waits
            os.sched_yield()
        _hold(one.pid)
    spec = node.begin(node.spec("/bin/true"))
    while node.status(spec).started_unix_ms is None:
        os.sched_yield()
    for one in ready:
        one.kill()
        os.waitpid(one.pid, _WALL)
    status = node.ended(spec)
    assert (status.end_reason, status.exit_code) == (EndReason.NODE_FAILED, None)
    assert status.reason == "The first process of its sandbox was killed before the job began."
    with _line(node) as line:
        line.until("works", spec)
    assert node.sh("echo ran")[1] == "ran\n"


@pytest.mark.slow
def test_a_helper_that_does_not_answer_costs_no_job_anything(node: Node) -> None:
    assert node.process is not None
    ready = ready_of(node)
    helper_of(node).send_signal(signal.SIGSTOP)
    for one in ready:
        one.kill()
    psutil.wait_procs(ready)
    with _line(node) as line:
        spec = node.spec("/bin/true")
        node.desired[spec.run_id] = spec
        assert _is_nodes_own(line.until("ended", spec), spec) == (
            "The helper that makes processes did not answer for 3 s"
        )
        line.until("works", spec)
    assert node.sh("echo ran")[1] == "ran\n"


@pytest.mark.slow
def test_an_environment_or_an_upload_that_this_node_lacks_is_neither_the_jobs_fault_nor_other_jobs_trouble(
    machine: Machine,
) -> None:
    offered, upload = machine.folder / "offered", machine.folder / "store" / "uploads" / "archive"
    node = machine.node(environments={"late": {"mounts": [{"source": str(offered)}]}})
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz"):
        pass
    bundle = Bundle(str(upload), hashlib.sha256(packed.getvalue()).hexdigest())
    missing = (
        (node.spec("/bin/true", environment="late"), f"not whole on this node: {offered} is not there."),
        (node.spec("/bin/true", bundle=bundle), f"The upload {bundle.sha256} is not in the store"),
    )
    for spec, why in missing:
        status = node.run(spec)
        assert (status.end_reason, status.started_unix_ms) == (EndReason.NODE_FAILED, None)
        assert why in status.reason
    assert node.sync().isolation.level != UNAVAILABLE  # others go on starting here
    offered.mkdir()
    upload.parent.mkdir()
    upload.write_bytes(packed.getvalue())
    for spec, _ in missing:
        again = node.run(replace(spec, run_id=str(new_id()), workspace=f"{spec.workspace}-2"))
        assert (again.end_reason, again.exit_code) == (EndReason.EXITED, 0)


@pytest.mark.slow
def test_a_working_directory_the_disk_has_no_room_for_is_not_the_jobs_fault(machine: Machine) -> None:
    if os.geteuid() != 0:
        return  # nobody else may mount a disk that is small enough
    store = machine.folder / "store"
    store.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(store)], check=True)
    try:
        node = machine.node(limits={"workspace_reserve_bytes": 4096})
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as tar:
            member = tarfile.TarInfo("large")
            member.size = 8 << 20
            tar.addfile(member, io.BytesIO(bytes(member.size)))
        archive = store / "archive"
        archive.write_bytes(packed.getvalue())
        spec = node.spec(
            "/bin/true", bundle=Bundle(str(archive), hashlib.sha256(packed.getvalue()).hexdigest())
        )
        status = node.run(spec)
        assert status.end_reason is EndReason.NODE_FAILED
        assert "No space left on device" in status.reason
        assert node.sync().isolation.level == UNAVAILABLE
        assert node.stop() == 0
    finally:
        subprocess.run(["umount", "--lazy", str(store)], check=True)


@pytest.mark.slow
def test_a_sandbox_that_cannot_show_a_device_that_has_gone_is_not_the_jobs_fault(machine: Machine) -> None:
    if os.geteuid() != 0:
        return  # nobody else may make a device node
    file = machine.folder / "card"
    os.mknod(file, 0o666 | 0o020000, os.makedev(1, 3))
    node = machine.node(devices=[{"index": 0, "model": "sim-a", "files": [str(file)]}])
    spec = node.spec("/bin/true", devices=(DeviceShare(0),))
    assert node.run(spec).exit_code == 0
    Path(file).unlink()
    spec = node.spec("/bin/true", devices=(DeviceShare(0),))
    status = node.run(spec)
    report = node.sync()
    assert status.end_reason is EndReason.NODE_FAILED
    assert report.isolation.level != UNAVAILABLE
    assert [device.healthy for device in report.devices] == [False]
