"""What happens to jobs when the supervisor freezes, its disk fills or its journal is damaged."""

import gzip
import hashlib
import os
import re
import select
import signal
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from scheduler.node.deadman import MARGIN_MS
from scheduler.node.protocol import Bundle, DeviceShare, EndReason, RunState
from tests.scheduler.node.harness import Machine, Node, await_line

pytestmark = pytest.mark.slow

MIB = 1 << 20
LOOP = "echo ready; while :; do sleep 0.1; done"


def test_a_frozen_supervisor_dies_with_its_jobs_soon_after_the_lease(machine: Machine) -> None:
    node = machine.node(limits={"lease_grace_ms": 100})
    spec = node.begin(node.spec("/bin/sh", "-c", LOOP))
    await_line(spec, "ready")
    pid = node.await_state(spec, RunState.RUNNING).pid
    assert pid is not None
    node.lease_ms = 1500
    node.sync()
    assert node.process is not None
    job = os.pidfd_open(pid)
    node.process.send_signal(signal.SIGSTOP)
    assert node.process.wait(timeout=(node.lease_ms + 100 + MARGIN_MS) / 1000 + 60) == -signal.SIGKILL
    assert select.select([job], [], [], 30)[0]
    os.close(job)
    node.start()
    assert node.status(spec).end_reason is EndReason.SUPERVISOR_LOST


def test_a_frozen_supervisor_that_thaws_in_time_goes_on(node: Node) -> None:
    spec = node.begin(node.spec("/bin/sh", "-c", LOOP))
    await_line(spec, "ready")
    assert node.process is not None
    node.process.send_signal(signal.SIGSTOP)
    node.process.send_signal(signal.SIGCONT)
    assert node.status(spec).state is RunState.RUNNING
    node.desired.clear()
    node.ended(spec)


def test_a_supervisor_that_is_late_for_the_end_of_a_grace_takes_no_other_run_along(node: Node) -> None:
    staying = node.begin(node.spec("/bin/sh", "-c", LOOP))
    leaving = node.begin(node.spec("/bin/sh", "-c", f"trap '' TERM; {LOOP}", grace_ms=500))
    for spec in (staying, leaving):
        await_line(spec, "ready")
    del node.desired[leaving.run_id]
    node.sync()
    assert node.process is not None
    supervisor = os.pidfd_open(node.process.pid)
    node.process.send_signal(signal.SIGSTOP)
    late_s = (leaving.grace_ms + MARGIN_MS) / 1000 + 1
    assert not select.select([supervisor], [], [], late_s)[0]
    os.close(supervisor)
    node.process.send_signal(signal.SIGCONT)
    assert node.ended(leaving).end_reason is EndReason.STOPPED
    assert node.status(staying).state is RunState.RUNNING
    node.desired.clear()
    node.ended(staying)


def test_what_unpacks_a_working_directory_ends_with_the_supervisor(node: Node) -> None:
    archive = gzip.compress(bytes(256 * 1024 * 1024), compresslevel=1)
    path = node.folder / "store" / "archive"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(archive)
    spec = node.spec("/bin/true", bundle=Bundle(str(path), hashlib.sha256(archive).hexdigest()))
    node.begin(spec)
    assert node.process is not None
    children = Path(f"/proc/{node.process.pid}/task/{node.process.pid}/children")
    unpacking: list[Path] = []
    while not unpacking:
        places = [Path("/proc", pid) for pid in children.read_text().split()]
        unpacking = [place for place in places if b"bundle.py" in (place / "cmdline").read_bytes()]
    pid = int(unpacking[0].name)
    process = os.pidfd_open(pid)
    while str(512 * 1024 * 1024) not in (unpacking[0] / "limits").read_text():
        os.sched_yield()  # it has not begun to read
    os.kill(pid, signal.SIGSTOP)
    node.kill()
    assert select.select([process], [], [], 30)[0]
    os.close(process)
    node.start()


def test_a_frozen_job_is_stopped_all_the_same(node: Node) -> None:
    spec = node.begin(node.spec("/bin/sh", "-c", LOOP + "\n", grace_ms=200))
    await_line(spec, "ready")
    pid = node.await_state(spec, RunState.RUNNING).pid
    assert pid is not None
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        os.kill(int(child), signal.SIGSTOP)
    node.desired.clear()
    assert node.ended(spec).end_reason is EndReason.STOPPED


def test_a_sandbox_killed_from_outside_is_reported_as_killed(node: Node) -> None:
    spec = node.begin(node.spec("/bin/sh", "-c", LOOP))
    await_line(spec, "ready")
    pid = node.await_state(spec, RunState.RUNNING).pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    status = node.ended(spec)
    assert (status.end_reason, status.signal) == (EndReason.EXITED, 9)


def test_a_run_whose_start_was_interrupted_by_a_kill_is_not_started_again_if_it_is_in_the_journal(
    machine: Machine,
) -> None:
    node = machine.node()
    specs = [node.spec("/bin/sh", "-c", "echo x; sleep 100") for _ in range(8)]
    for spec in specs:
        node.desired[spec.run_id] = spec
    node.sync()
    node.kill()
    node.start()
    report = node.sync()
    lost = {run.run_id for run in report.runs if run.state is RunState.ENDED}
    node.desired = {spec.run_id: spec for spec in specs if spec.run_id not in lost}
    for spec in node.desired.values():
        await_line(spec, "x")
    node.desired.clear()
    node.sync()
    for spec in specs:
        node.ended(spec)
        if Path(spec.log).exists():
            assert Path(spec.log).read_text().count("x") <= 1


@pytest.fixture
def small_disk(machine: Machine) -> Iterator[Path]:
    """A file system of 16 MiB for the journal, where we may mount one."""
    folder = machine.folder / "small"
    folder.mkdir()
    if os.geteuid() == 0:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", str(folder)], check=True)
    yield folder
    for node in machine.nodes:
        if node.process is not None and node.process.poll() is None:
            node.stop()
    if os.geteuid() == 0:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_stops_the_jobs_and_their_ends_are_still_written(
    machine: Machine, small_disk: Path
) -> None:
    node = machine.node(state_directory=str(small_disk / "state"), heartbeat_ms=100)
    spec = node.begin(node.spec("/bin/sh", "-c", LOOP, devices=(DeviceShare(0),)))
    await_line(spec, "ready")
    if os.geteuid() != 0:
        node.desired.clear()
        assert node.ended(spec).end_reason is EndReason.STOPPED
        return
    fill = small_disk / "fill"
    with fill.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1024))
        except OSError:
            pass
    status = node.ended(spec)
    assert status.end_reason is EndReason.JOURNAL_FULL
    assert status.reason == "The node can no longer write its journal: No space left on device."
    records = node.records(spec)
    ends = [record.offset_ms + record.duration_ms for record in records]
    assert [record.offset_ms for record in records] == [0, *ends[:-1]]  # nothing of its time is lost
    assert [record.final for record in records] == [False] * (len(records) - 1) + [True]
    refused = node.run(node.spec("/bin/sh", "-c", "echo ran"))
    assert (refused.end_reason, refused.pid) == (EndReason.JOURNAL_FULL, None)
    fill.unlink()
    assert node.sh("echo ran")[1] == "ran\n"  # there is room for last words again
    assert node.stop() == 0
    node.start()
    assert node.status(spec).end_reason is EndReason.JOURNAL_FULL


def test_of_two_nodes_on_one_full_disk_the_larger_run_goes_and_the_other_goes_on(
    machine: Machine, small_disk: Path
) -> None:
    if os.geteuid() != 0:
        return  # nobody else may mount a disk that is small enough
    facts: dict[str, object] = {
        "workspace_root": str(small_disk),
        "limits": {"workspace_reserve_bytes": 9 * MIB},
    }
    nodes = [machine.node(name, **facts) for name in ("a", "b")]
    held = [
        node.begin(node.spec("/bin/sh", "-c", f"head -c {size}M /dev/zero > /job/x; echo ready; sleep 1000"))
        for node, size in zip(nodes, (2, 3), strict=True)
    ]
    for spec in held:
        await_line(spec, "ready")
    (small_disk / "others").write_bytes(bytes(3 * MIB))
    assert nodes[1].ended(held[1]).end_reason is EndReason.DISK_FULL
    with nodes[0].client() as client:
        before = nodes[0].sync()
        assert (
            client.wait_for_change(before.seq, 2500).seq == before.seq
        )  # the next one would go after a second
    assert nodes[0].status(held[0]).state is RunState.RUNNING


FREEZER = Path("/sys/fs/cgroup/freezer")


@contextmanager
def frozen(pids: Iterable[int], name: str) -> Iterator[None]:
    """Processes that no signal reaches while the block lasts, as if they waited for a broken device."""
    group = FREEZER / name
    group.mkdir()
    try:
        for pid in pids:
            (group / "cgroup.procs").write_text(str(pid))
        (group / "freezer.state").write_text("FROZEN")
        yield
    finally:
        (group / "freezer.state").write_text("THAWED")
        while (group / "cgroup.procs").read_text():
            os.sched_yield()
        group.rmdir()


def test_a_run_that_cannot_be_ended_costs_its_device_and_the_next_run_its_start_not_its_time(
    machine: Machine,
) -> None:
    if not os.access(FREEZER / "cgroup.procs", os.W_OK):
        return  # nothing else keeps a process from being ended at will
    node = machine.node(limits={"unkillable_ms": 200})
    first = node.begin(node.spec("/bin/sh", "-c", LOOP, devices=(DeviceShare(1),), grace_ms=0))
    await_line(first, "ready")
    pid = node.await_state(first, RunState.RUNNING).pid
    assert pid is not None
    with frozen([pid], f"hub-test-{pid}"):
        node.desired.clear()
        second = node.begin(node.spec("/bin/true", devices=(DeviceShare(1),)))
        held = node.ended(second)
        assert (held.end_reason, held.pid) == (EndReason.DEVICE_HELD, None)
        assert re.match(rf"Process {pid} cannot be ended: run {first.run_id} .* still holds", held.reason)
        assert [record.duration_ms for record in node.records(second)] == [0]
        ill = [device for device in node.sync().devices if not device.healthy]
        assert [(device.index, device.reason) for device in ill] == [(1, f"Process {pid} cannot be ended.")]
        assert node.run(node.spec("/bin/true", devices=(DeviceShare(0),))).exit_code == 0
    assert node.ended(first).end_reason is EndReason.STOPPED
    assert all(device.healthy for device in node.sync().devices)
    assert node.run(node.spec("/bin/true", devices=(DeviceShare(1),))).exit_code == 0


def test_a_supervisor_started_anew_keeps_the_device_that_a_leftover_of_its_predecessor_holds(
    machine: Machine,
) -> None:
    if not os.access(FREEZER / "cgroup.procs", os.W_OK):
        return  # nothing else keeps a process from being ended at will
    node = machine.node()
    first = node.begin(node.spec("/bin/sh", "-c", LOOP, devices=(DeviceShare(1),)))
    await_line(first, "ready")
    pid = node.await_state(first, RunState.RUNNING).pid
    assert pid is not None
    with frozen([pid], f"hub-test-{pid}"):
        for _ in range(2):  # the second one has heard of it from the first alone
            node.kill()
            node.start()
            assert node.status(first).end_reason is EndReason.SUPERVISOR_LOST
            ill = [device for device in node.sync().devices if not device.healthy]
            assert [(device.index, device.reason) for device in ill] == [(1, f"Process {pid} cannot be ended.")]
        held = node.run(node.spec("/bin/true", devices=(DeviceShare(1),)))
        assert (held.end_reason, held.pid) == (EndReason.DEVICE_HELD, None)
        assert f"run {first.run_id} of an earlier supervisor was killed" in held.reason
        assert node.run(node.spec("/bin/true", devices=(DeviceShare(0),))).exit_code == 0
    await_end(pid)
    assert all(device.healthy for device in node.sync().devices)
    assert node.run(node.spec("/bin/true", devices=(DeviceShare(1),))).exit_code == 0


def await_end(pid: int) -> None:
    """Wait until a process that was killed is gone."""
    with suppress(ProcessLookupError):
        process = os.pidfd_open(pid)
        assert select.select([process], [], [], 30)[0]
        os.close(process)
