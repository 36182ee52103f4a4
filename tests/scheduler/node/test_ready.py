"""Processes made ahead of their runs: used when they are ready, missed by nobody when they are not, and never left."""

import asyncio
import errno
import os
import select
import signal
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from scheduler.node import becoming
from scheduler.node.config import Limits, NodeConfig, SandboxMode
from scheduler.node.enclosure import enclosed, make_room
from scheduler.node.etc import make_etc
from scheduler.node.isolation import probe_view
from scheduler.node.launched import Launched
from scheduler.node.logs import LogSink
from scheduler.node.nursery import Nursery, Room, await_child
from scheduler.node.protocol import DeviceShare, EndReason, RunState
from scheduler.node.watching import Allowance, Watch
from tests.leftovers import words
from tests.scheduler.node.harness import (
    Machine,
    Node,
    await_line,
    children_of,
    helper_of,
    open_descriptors,
    ready_of,
)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("root")]

UID = 712_346
DEVICES = 4
"""Of a node of these tests; so many wait."""


def test_a_run_is_given_to_a_process_that_was_there_before(node: Node) -> None:
    ready = ready_of(node)
    spec = node.begin(node.spec("/bin/sh", "-c", "echo ready; while :; do sleep 0.1; done"))
    await_line(spec, "ready")
    pid = node.await_state(spec, RunState.RUNNING).pid
    assert pid in [one.pid for one in ready]
    assert psutil.Process(pid).cmdline()[0] == psutil.Process(pid).name() == "hub-init"
    assert {one.pid for one in ready_of(node)} > {one.pid for one in ready} - {pid}
    assert len(children_of(node, "hub-ready")) == DEVICES
    node.desired.clear()
    assert node.ended(spec).end_reason is EndReason.STOPPED


def test_those_that_wait_hold_nothing_and_are_no_run(node: Node) -> None:
    status, _ = node.sh("true")
    assert status.exit_code == 0
    for one in ready_of(node):
        held = {int(file.name): str(file.readlink()) for file in Path(f"/proc/{one.pid}/fd").iterdir()}
        beyond = {target.split(":")[0] for number, target in held.items() if number > 2}
        assert held[0] == "/dev/null"
        assert beyond == {"/dev/null", "anon_inode", "socket"}  # the supervisor's pidfd, and the line
        assert len([target for target in held.values() if target.startswith("socket:")]) == 1
        mounts = Path(f"/proc/{one.pid}/mountinfo").read_text()
        assert "tenant" not in mounts
        assert node.config["state_directory"] not in Path(f"/proc/{one.pid}/environ").read_text()
        groups = Path(f"/proc/{one.pid}/cgroup").read_text()
        assert node.process is not None
        assert groups == Path(f"/proc/{node.process.pid}/cgroup").read_text()
    assert [run.run_id for run in node.sync().runs if run.state is not RunState.ENDED] == []


def test_those_that_wait_die_with_their_supervisor(node: Node) -> None:
    ready = ready_of(node)
    node.kill()
    assert not psutil.wait_procs(ready, timeout=60)[1]
    node.start()


def test_those_that_wait_end_in_order_with_their_supervisor(node: Node) -> None:
    ready = ready_of(node)
    assert node.stop() == 0
    assert not [one for one in ready if one.is_running()]


def test_one_that_dies_while_it_waits_is_buried_and_no_run_is_given_to_it(node: Node) -> None:
    assert node.process is not None
    ready = ready_of(node)
    for one in ready:
        one.kill()
    assert not psutil.wait_procs(ready, timeout=60)[1]  # which a child that nobody has waited for is not
    status, said = node.sh("echo ran")
    assert (status.exit_code, said) == (0, "ran\n")
    assert not {one.pid for one in ready_of(node)} & {one.pid for one in ready}


def test_one_that_was_stopped_is_passed_over_until_it_may_go_on(node: Node) -> None:
    ready = ready_of(node)
    for one in ready[:-1]:
        one.suspend()
    first, second, third = (node.run(node.spec("/bin/true")) for _ in range(3))
    assert {first.exit_code, second.exit_code, third.exit_code} == {0}
    stopped = {one.pid for one in ready[:-1]}
    assert first.pid == ready[-1].pid
    assert not {second.pid, third.pid} & stopped
    for one in ready[:-1]:
        one.resume()
    again = node.run(node.spec("/bin/true"))
    assert (again.exit_code, again.pid) == (0, ready[0].pid)


def test_where_all_were_stopped_one_is_made_at_once(node: Node) -> None:
    ready = ready_of(node)
    for one in ready:
        one.suspend()
    status, said = node.sh("echo ran")
    assert (status.exit_code, said) == (0, "ran\n")
    assert status.pid not in [one.pid for one in ready]


def test_those_of_a_dead_helper_are_still_used(node: Node) -> None:
    assert node.process is not None
    ready = ready_of(node)
    helper = helper_of(node)
    helper.kill()
    spec = node.spec("/bin/cat", "/proc/self/uid_map")
    status = node.run(spec)
    assert (status.exit_code, status.pid in [one.pid for one in ready]) == (0, True)
    assert len(ready_of(node)) == DEVICES
    assert helper_of(node).pid != helper.pid


def test_a_job_sees_none_of_those_that_wait_and_ends_none(node: Node) -> None:
    ready = ready_of(node)
    script = "cat /proc/[0-9]*/comm | sort -u; trap '' TERM; kill -TERM -1; kill -KILL -1"
    status, said = node.sh(script)
    assert status.exit_code is not None
    assert "hub-init" in said
    assert "hub-ready" not in said
    left = [one.pid for one in ready_of(node)]
    assert len({one.pid for one in ready} - set(left)) == 1  # the one that became the job


def test_a_job_with_a_device_keeps_its_terminals_and_shared_memory(machine: Machine) -> None:
    devices = [{"index": index, "model": "a", "files": ["/dev/full"]} for index in range(DEVICES)]
    node = machine.node(devices=devices)
    ready = ready_of(node)
    script = (
        "echo x > /dev/shm/x && cat /dev/shm/x; echo y > /tmp/y && cat /tmp/y; stat -c %t:%T /dev/full; mkdir /dev/z; "
        "script -qc 'echo a terminal' /dev/null < /dev/null | tr -d '\\r'"
    )
    spec = node.spec("/bin/sh", "-c", script, devices=(DeviceShare(1),))
    status = node.run(spec)
    said = Path(spec.log).read_text().splitlines()
    assert status.pid in [one.pid for one in ready]
    assert said[:2] == ["x", "y"]
    assert "1:7" in said
    assert "a terminal" in said
    assert "Read-only file system" in "\n".join(said)


def test_what_a_job_writes_to_its_memory_folders_is_its_own_memory(node: Node) -> None:
    ready_of(node)
    script = "head -c 200M /dev/zero > /dev/shm/much; echo whole"
    status, said = node.sh(script, memory_mib=64)
    assert "whole" not in said
    assert status.end_reason is EndReason.OOM


def test_nobody_waits_where_there_is_no_sandbox(machine: Machine) -> None:
    node = machine.node(sandbox="process")
    assert node.sh("echo ran")[1] == "ran\n"
    assert not children_of(node, "hub-ready")


class _Counting(Nursery):
    """Remembers whom it has made ahead."""

    def __init__(self, room: Room) -> None:
        super().__init__(room)
        self.made: list[int] = []

    def make_ready(self) -> int:
        self.made.append(super().make_ready())
        return self.made[-1]


@contextmanager
def _a_nursery(folder: Path, **changes: int) -> Iterator[tuple[_Counting, Path]]:
    folder.chmod(0o755)
    state = folder / "state"
    state.mkdir()
    config = NodeConfig("n", "h", state_directory=str(state), workspace_root="/", host_run_directory="/")
    etc = make_etc(state)
    room = replace(make_room(config, etc), **changes)
    with closing(_Counting(room)) as nursery:
        yield nursery, etc


def _start(nursery: Nursery, folder: Path, etc: Path, *, anew: bool = False) -> tuple[int, int, str]:
    """Start the smallest run; its pid, its first process's status, and what it said."""
    workspace = folder / "workspace"
    workspace.mkdir(exist_ok=True)
    os.chown(workspace, UID, UID)
    directory = os.open(workspace, os.O_RDONLY | os.O_DIRECTORY)
    output, status = os.memfd_create("said"), os.memfd_create("status")
    try:
        with enclosed(probe_view("", directory, str(etc), UID), status) as launch:
            pid = nursery.start(launch, output, anew=anew)
        left = await_child(pid)
        return pid, left, os.pread(output, 4096, 0).decode()
    finally:
        for file in (directory, output, status):
            os.close(file)


def _await_ready(pid: int) -> None:
    while Path(f"/proc/{pid}/comm").read_text() != "hub-ready\n":
        os.sched_yield()


def test_a_trial_of_the_node_is_made_anew(machine: Machine) -> None:
    with _a_nursery(machine.folder) as (nursery, etc):
        waits = nursery.make_ready()
        _await_ready(waits)
        assert _start(nursery, machine.folder, etc, anew=True)[0] != waits
        assert psutil.pid_exists(waits)


def test_one_that_is_not_ready_is_left_alone(machine: Machine) -> None:
    with _a_nursery(machine.folder) as (nursery, etc):
        while True:
            waits = nursery.make_ready()
            os.kill(waits, signal.SIGSTOP)
            os.waitid(os.P_PID, waits, os.WSTOPPED | os.WNOWAIT)
            if Path(f"/proc/{waits}/comm").read_text() != "hub-ready\n":
                break
            os.kill(waits, signal.SIGKILL)  # it was faster; whoever is dead is passed over, too
            os.waitid(os.P_PID, waits, os.WEXITED | os.WNOWAIT)
        pid, left, said = _start(nursery, machine.folder, etc)
        assert (left, said) == (0, "")
        assert pid != waits
        os.kill(waits, signal.SIGCONT)
        _await_ready(waits)
        assert _start(nursery, machine.folder, etc) == (waits, 0, "")


def test_one_that_cannot_be_furnished_is_no_use_and_one_made_for_a_run_says_why(machine: Machine) -> None:
    with _a_nursery(machine.folder, tmp_bytes=-1) as (nursery, etc):
        waits = nursery.make_ready()
        handle = os.pidfd_open(waits)
        select.select([handle], [], [])
        os.close(handle)
        pid, left, said = _start(nursery, machine.folder, etc)
        assert pid != waits
        assert (left, said) == (1, "mount: [Errno 22] Invalid argument: '/tmp'\n")


def test_those_that_cannot_be_furnished_are_not_made_without_end(machine: Machine) -> None:
    async def filled(nursery: _Counting) -> None:
        nursery.keep_ready(2)
        while len(nursery.made) < 2 or any(map(psutil.pid_exists, nursery.made)):  # noqa: ASYNC110 - children's ends
            await asyncio.sleep(0)
        for _ in range(100):  # rounds of the loop, in which more would be made
            await asyncio.sleep(0)
        assert len(nursery.made) == 2
        nursery.close()

    with _a_nursery(machine.folder, tmp_bytes=-1) as (nursery, _):
        asyncio.run(filled(nursery))


def _refuse_on_this_thread(call: int, number: int) -> None:
    """Have the kernel answer this thread's system call with an error, as where it has no memory for it."""
    words = ((0x20, 0, 0, 0), (0x15, 0, 1, call), (0x06, 0, 0, 0x50000 | number), (0x06, 0, 0, 0x7FFF0000))
    program = b"".join(struct.pack("=HBBI", *word) for word in words)
    becoming.LIBC.prctl(38, 1, 0, 0, 0)
    becoming._filter(program)  # noqa: SLF001 - the one way in which the project loads a filter


def test_one_whose_end_nobody_would_hear_of_is_not_made(machine: Machine) -> None:
    def make(nursery: Nursery) -> None:
        _refuse_on_this_thread({"x86_64": 233, "aarch64": 21}[os.uname().machine], errno.ENOSPC)  # epoll_ctl
        nursery.make_ready()

    with _a_nursery(machine.folder) as (nursery, etc), ThreadPoolExecutor(1) as pool:
        first = nursery.make_ready()
        before = {child.pid for child in psutil.Process().children()}
        with pytest.raises(OSError, match="No space left"):
            pool.submit(make, nursery).result()
        assert {child.pid for child in psutil.Process().children()} == before
        _await_ready(first)
        assert [_start(nursery, machine.folder, etc)[1:] for _ in range(2)] == [(0, ""), (0, "")]


def test_a_start_whose_process_cannot_be_watched_leaves_nobody_and_no_descriptor(machine: Machine) -> None:
    directory = os.open(machine.folder, os.O_RDONLY | os.O_DIRECTORY)

    async def start(nursery: Nursery, etc: Path) -> None:
        _refuse_on_this_thread(434, errno.ENOMEM)  # pidfd_open
        children, before = {child.pid for child in psutil.Process().children()}, open_descriptors()
        limits = Limits()
        log = LogSink(os.memfd_create("log"), bytes_max=1000, bytes_per_s=1000, on_full=lambda _: None)
        watch = Watch([directory], limits, Allowance(), memory_bytes=0)
        view = probe_view("", directory, str(etc), UID)
        launched = Launched(view, log, None, watch, ExitStack(), SandboxMode.NAMESPACES, nursery)
        with pytest.raises(OSError, match="Cannot allocate memory"):
            launched.start(lambda _: None)
        launched.discard()
        assert open_descriptors() == before
        assert {child.pid for child in psutil.Process().children()} == children

    with _a_nursery(machine.folder) as (nursery, etc), ThreadPoolExecutor(1) as pool:
        assert _start(nursery, machine.folder, etc)[1:] == (0, "")  # its helper is there from now on
        pool.submit(lambda: asyncio.run(start(nursery, etc))).result()
    os.close(directory)


def test_a_nursery_that_is_closed_leaves_nobody(machine: Machine) -> None:
    with _a_nursery(machine.folder) as (nursery, _):
        waiting = [psutil.Process(nursery.make_ready()) for _ in range(3)]
    assert not [one for one in waiting if one.is_running()]
    assert not [words(child) for child in psutil.Process().children() if child.name().startswith("hub-")]
