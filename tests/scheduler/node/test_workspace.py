"""What a job leaves in its workspace harms nobody who reads it, and its next attempt finds what was kept for it."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from scheduler.node.cgroups import Caps, v1_settings, v2_settings
from scheduler.node.errors import InvalidRun
from scheduler.node.protocol import EndReason
from scheduler.node.workspace import open_artifact
from tests.scheduler.node.harness import Node, await_line

pytestmark = pytest.mark.slow


def test_an_artifact_is_read_from_the_workspace(node: Node) -> None:
    spec = node.spec("/bin/sh", "-c", "mkdir -p out && echo result > out/model.txt")
    node.run(spec)
    file = open_artifact(Path(spec.workspace), "out/model.txt")
    assert os.read(file, 100) == b"result\n"
    os.close(file)


TRICKS = {
    "link to a file": "ln -s /etc/passwd trick",
    "link to a folder": "ln -s / trick; set -- trick/etc/passwd",
    "link upwards": "ln -s ../../.. trick",
    "pipe": "mkfifo trick",
    "folder": "mkdir trick",
    "nothing": ":",
}


@pytest.mark.parametrize("trick", TRICKS)
def test_an_artifact_that_is_a_trick_is_not_read(node: Node, trick: str) -> None:
    spec = node.spec("/bin/sh", "-c", TRICKS[trick])
    assert node.run(spec).exit_code == 0
    for path in ("trick", "trick/etc/passwd", "trick/../trick", "../x", "/etc/passwd", ""):
        with pytest.raises(InvalidRun):
            open_artifact(Path(spec.workspace), path)


def test_the_next_attempt_finds_the_checkpoints_of_the_last_and_nothing_else_of_it(node: Node) -> None:
    script = 'umask 077; cd "$HUB_CHECKPOINTS"; pwd; mkdir deep; echo 1 > deep/step; ln -s /etc/passwd link; > /job/x'
    first = node.spec("/bin/sh", "-c", script)
    first = replace(first, checkpoints=f"{first.workspace}.kept")
    assert node.run(first).exit_code == 0
    before = Path("/etc/passwd").stat()
    script = "ls; cd /checkpoints; cat deep/step; echo 2 >> deep/step && rm link && echo done"
    second = replace(node.spec("/bin/sh", "-c", script), checkpoints=first.checkpoints, attempt=2)
    assert node.run(second).exit_code == 0
    assert [Path(spec.log).read_text() for spec in (first, second)] == ["/checkpoints\n", "1\ndone\n"]
    assert Path("/etc/passwd").stat().st_uid == before.st_uid


def test_a_job_without_checkpoints_is_told_of_none(node: Node) -> None:
    spec = node.spec("/bin/sh", "-c", 'echo "${HUB_CHECKPOINTS-none}"; touch /checkpoints/x')
    assert node.run(spec).exit_code != 0
    assert Path(spec.log).read_text().startswith("none\n")


@pytest.mark.parametrize(
    ("places", "problem"),
    [
        ({"checkpoints": "{work}/kept"}, "checkpoints"),
        ({"checkpoints": "/etc"}, "checkpoints"),
        ({"checkpoints": "{work}.kept", "log": "{work}.kept/log"}, "log"),
    ],
)
def test_checkpoints_lie_apart_from_workspace_and_log(node: Node, places: dict[str, str], problem: str) -> None:
    spec = node.spec("true")
    status = node.run(
        replace(spec, **{name: path.format(work=spec.workspace) for name, path in places.items()})
    )
    assert status.end_reason is EndReason.START_FAILED
    assert status.reason.startswith(f"{problem}: ")


@pytest.mark.parametrize("run_id", ["", "../../x", "a" * 36, "01A201B6-FC18-7B6A-844D-D59D94A82A7B"])
def test_a_run_id_that_is_not_a_uuid_is_refused(node: Node, run_id: str) -> None:
    spec = replace(node.spec("true"), run_id=run_id)
    status = node.run(spec)
    assert status.end_reason is EndReason.START_FAILED
    assert status.reason.startswith("run_id")


def test_limits_are_written_for_either_cgroup_version() -> None:
    caps = Caps(memory_mib=256, pids=100, cpu_milli=1500)
    first = v1_settings(caps)
    assert first["memory"]["memory.limit_in_bytes"] == str(256 << 20)
    assert first["memory"]["memory.memsw.limit_in_bytes"] == str(256 << 20)
    assert first["cpu"]["cpu.cfs_quota_us"] == "150000"
    second = v2_settings(caps)
    assert (second["memory.max"], second["cpu.max"]) == (str(256 << 20), "150000 100000")
    assert second["memory.swap.max"] == "0"
    assert v2_settings(Caps(256, 100, 0))["cpu.max"] == "max 100000"
    assert v1_settings(Caps(256, 100, 0))["cpu"]["cpu.cfs_quota_us"] == "-1"


def test_a_run_has_no_more_memory_as_swap_where_the_kernel_counts_that(node: Node) -> None:
    if os.geteuid() != 0:
        return  # and has no cgroup
    spec = node.begin(node.spec("/bin/sh", "-c", "echo ready; sleep 1000", memory_mib=64))
    await_line(spec, "ready")
    pid = node.status(spec).pid
    groups = dict(line.split(":", 2)[1:] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines())
    bound = Path(f"/sys/fs/cgroup/memory{groups.get('memory', '/none')}/memory.memsw.limit_in_bytes")
    swap = Path(f"/sys/fs/cgroup{groups.get('', '/none')}/memory.swap.max")
    assert (bound.read_text() if bound.exists() else str(64 << 20)).strip() == str(64 << 20)
    assert (swap.read_text() if swap.exists() else "0").strip() == "0"
    node.desired.clear()
    node.ended(spec)


def test_a_run_with_a_share_of_cpu_runs_under_it(node: Node) -> None:
    status, log = node.sh("echo ran", cpu_milli=500)
    assert (status.exit_code, log) == (0, "ran\n")


def test_a_job_is_told_once_by_file_and_by_the_signal_it_asked_for(node: Node) -> None:
    script = (
        "trap 'cat HUB_NOTICE; exit 5' USR1; ln -s /etc/passwd HUB_NOTICE; "
        "echo ready; while :; do sleep 0.05; done"
    )
    spec = node.begin(node.spec("/bin/sh", "-c", script, notice_signal=10))
    await_line(spec, "ready")
    before = Path("/etc/passwd").read_bytes()
    for _ in range(3):
        node.sync(notices={spec.run_id: "Your funds end in 5 minutes."})
    assert node.ended(spec).exit_code == 5
    assert Path(spec.log).read_text() == "ready\nYour funds end in 5 minutes.\n"
    assert Path("/etc/passwd").read_bytes() == before


def test_a_notice_without_a_signal_leaves_the_job_alone(node: Node) -> None:
    script = "echo ready; while ! test -e HUB_NOTICE; do sleep 0.05; done; cat HUB_NOTICE"
    spec = node.begin(node.spec("/bin/sh", "-c", script))
    await_line(spec, "ready")
    node.sync(notices={spec.run_id: "Soon."})
    assert node.ended(spec).exit_code == 0
    assert Path(spec.log).read_text() == "ready\nSoon.\n"


@pytest.mark.parametrize("field", ["job_id", "tenant_id", "workspace", "log", "checkpoints"])
def test_a_nul_cannot_smuggle_an_argument_into_the_sandbox(node: Node, field: str) -> None:
    spec = node.spec("cat", "/job/escape")
    injected = f"{getattr(spec, field)}\0--bind\0/\0/job"
    status = node.run(replace(spec, **{field: injected}))
    assert status.exit_code != 0
    assert status.end_reason is EndReason.START_FAILED or field == "tenant_id"
