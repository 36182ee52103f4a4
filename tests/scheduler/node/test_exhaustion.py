"""What one tenant exhausts is its own share; the node, its disk and the other tenants go on."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from scheduler.node.protocol import EndReason, RunState
from tests.scheduler.node.harness import Machine, Node, await_line

pytestmark = pytest.mark.slow

MIB = 1024 * 1024


def python(node: Node, program: str, **changes: object):  # noqa: ANN201 - status and log, as Node.sh
    spec = node.spec("python", "-c", program, environment="python", time_limit_ms=300_000, **changes)
    status = node.run(spec)
    return status, Path(spec.log).read_text(errors="replace")


def test_a_fork_bomb_stays_within_its_processes(node: Node) -> None:
    victim = node.begin(node.spec("/bin/sh", "-c", "echo ready; while :; do sleep 0.2; done"))
    await_line(victim, "ready")
    program = """
import os, time
made = 0
try:
    while made < 5000:
        if os.fork() == 0:
            time.sleep(100)
        made += 1
except OSError as error:
    print(made, error.errno)
"""
    _, log = python(node, program, pids=40)
    made, number = map(int, log.split())
    assert made <= 48
    assert number == 11
    assert node.status(victim).state is RunState.RUNNING
    node.desired.clear()
    node.ended(victim)


def test_a_job_has_its_own_terminals_and_leaves_the_machines_to_others(node: Node) -> None:
    program = """
import os, sys, time
opened = []
try:
    while len(opened) < 200:
        opened.append(os.openpty())
except OSError:
    pass
os.write(opened[0][0], b"to and fro\\n")
print(len(opened), os.ttyname(opened[0][1]), os.read(opened[0][1], 100).decode().strip(), flush=True)
time.sleep(1000 if len(sys.argv) > 1 else 0)
"""
    first = node.spec("python", "-c", program, "stay", environment="python")
    node.begin(first)
    await_line(first, "fro")
    _, said = python(node, program)
    assert said == Path(first.log).read_text()
    opened, rest = said.split(maxsplit=1)
    assert rest == "/dev/pts/0 to and fro\n"
    if os.geteuid() == 0:
        assert int(opened) == 64
    node.desired.clear()
    node.ended(first)


def test_a_memory_bomb_is_ended_and_named(node: Node) -> None:
    program = """
held = []
while True:
    held.append(bytearray(b"x") * (8 << 20))
"""
    status, log = python(node, program, memory_mib=128)
    assert status.end_reason is EndReason.OOM or "MemoryError" in log
    assert status.exit_code != 0
    if status.end_reason is EndReason.OOM:
        assert "128 MiB" in status.reason


def test_what_waits_in_sockets_is_bounded_like_other_memory(node: Node) -> None:
    if os.geteuid() != 0:
        return  # nobody counts the memory of the kernel's without a cgroup, which every report says
    program = """
import resource, socket
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
sender, held, data, got = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), [], bytes(32768), 0
sender.setblocking(False)
for _ in range(1500):
    one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    one.bind(("127.0.0.1", 0))
    one.setblocking(False)
    held.append(one)
    for _ in range(6):
        try: sender.sendto(data, one.getsockname())
        except OSError: pass
for one in held:
    try:
        while True: got += len(one.recv(65536))
    except BlockingIOError: pass
print(got)
"""
    status, log = python(node, program, memory_mib=128)
    assert status.end_reason is EndReason.OOM or int(log) <= 64 * MIB


def test_filling_the_disk_is_ended_and_named(machine: Machine) -> None:
    node = machine.node(limits={"workspace_bytes": 32 * MIB})
    status, _ = python(
        node,
        "import time\nfor n in range(100):\n open(f'/job/{n}', 'wb').write(bytes(1 << 20))\ntime.sleep(60)",
    )
    assert status.end_reason is EndReason.DISK_FULL
    assert str(32 * MIB) in status.reason


def test_one_file_larger_than_the_workspace_cannot_be_written(machine: Machine) -> None:
    node = machine.node(limits={"workspace_bytes": 8 * MIB})
    status, _ = node.sh("head -c 100000000 /dev/zero > /job/big")
    assert status.exit_code != 0 or status.end_reason is EndReason.DISK_FULL
    assert (machine.folder / "store").exists()
    assert all(path.stat().st_size <= 8 * MIB for path in (machine.folder / "store").rglob("big"))


def test_what_is_kept_for_the_next_attempt_counts(machine: Machine) -> None:
    node = machine.node(limits={"workspace_bytes": 16 * MIB})
    script = 'for n in $(seq 20); do head -c 1M /dev/urandom > "$HUB_CHECKPOINTS/$n"; done; sleep 60'
    spec = node.spec("/bin/sh", "-c", script)
    status = node.run(replace(spec, checkpoints=f"{spec.workspace}.kept"))
    assert status.end_reason is EndReason.DISK_FULL


def test_files_that_were_deleted_but_stay_open_count(machine: Machine) -> None:
    node = machine.node(limits={"workspace_bytes": 16 * MIB})
    program = """
import os, time
held = []
for n in range(20):
    file = open(f"/job/{n}", "wb", buffering=0)
    os.unlink(f"/job/{n}")
    file.write(os.urandom(1 << 20))
    held.append(file)
time.sleep(60)
"""
    status, _ = python(node, program)
    assert status.end_reason is EndReason.DISK_FULL


def test_a_million_small_files_are_ended_and_named(machine: Machine) -> None:
    node = machine.node(limits={"workspace_entries": 2000})
    program = "import time\nfor n in range(4000): open(f'/job/{n}', 'w').close()\ntime.sleep(60)"
    status, _ = python(node, program)
    assert status.end_reason is EndReason.DISK_FULL
    assert "2000 files" in status.reason


def test_folders_without_end_within_each_other_end_their_own_job_only(node: Node) -> None:
    victim = node.begin(node.spec("/bin/sh", "-c", "echo ready; while :; do sleep 0.2; done"))
    await_line(victim, "ready")
    program = "import os, time\nfor n in range(600): os.mkdir('a'); os.chdir('a')\ntime.sleep(60)"
    status, _ = python(node, program)
    assert status.end_reason is EndReason.DISK_FULL
    assert "deep within each other" in status.reason
    assert node.status(victim).state is RunState.RUNNING
    node.desired.clear()
    node.ended(victim)


@pytest.mark.parametrize("folder", ["/tmp", "/dev/shm"])  # noqa: S108 - inside the sandbox
def test_private_memory_folders_have_a_size(machine: Machine, folder: str) -> None:
    node = machine.node(limits={"tmp_bytes": 4 * MIB, "shm_bytes": 4 * MIB})
    status, log = node.sh(f"head -c 8000000 /dev/zero > {folder}/x; stat -c %s {folder}/x")
    assert "No space left" in log
    assert int(log.split()[-1]) <= 4 * MIB
    assert status.exit_code == 0


def test_the_fixed_folders_take_nothing(node: Node) -> None:
    status, log = node.sh(
        "for f in / /dev /run /etc /run/secrets; do echo x > $f/x && echo wrote $f; done 2>/dev/null; :"
    )
    assert (status.exit_code, log) == (0, "")


def test_a_log_flood_costs_its_cap_and_does_not_stop_the_others(machine: Machine) -> None:
    node = machine.node(limits={"log_bytes": MIB})
    flood = node.begin(node.spec("/bin/sh", "-c", "yes $(head -c 1000 /dev/zero | tr '\\0' y)"))
    status, log = node.sh("echo hello")
    assert (status.exit_code, log) == (0, "hello\n")
    await_line(flood, "hub: the log ends here")
    node.desired.clear()
    assert node.ended(flood).end_reason is EndReason.STOPPED
    assert Path(flood.log).stat().st_size < MIB + 200


def test_processes_that_leave_their_parent_end_with_the_job(node: Node) -> None:
    status, _ = node.sh("for i in 1 2 3; do (setsid sleep 1000 &) ; done; exit 0")
    assert status.exit_code == 0
    assert node.run(node.spec("true")).exit_code == 0
