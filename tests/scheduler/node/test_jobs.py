"""What a job gets: its devices, environment, secrets and log; and how one that cannot be meant is refused."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from scheduler.node.codec import decode, encode
from scheduler.node.protocol import UNAVAILABLE, DeviceShare, EndReason, RunSpec, RunState
from tests.scheduler.node.harness import Machine, Node, await_line

pytestmark = pytest.mark.slow


def test_a_job_sees_its_devices_and_no_others(node: Node) -> None:
    _, log = node.sh(
        "echo $CUDA_VISIBLE_DEVICES / $HUB_DEVICES / $HUB_DEVICE_SLOTS",
        devices=(DeviceShare(3, 0, 500), DeviceShare(1)),
    )
    assert log == "1,3 / 1,3 / 1:0-1000,3:0-500\n"


@pytest.mark.parametrize(
    ("vendor", "variable"),
    [
        ("nvidia", "CUDA_VISIBLE_DEVICES"),
        ("ascend", "ASCEND_RT_VISIBLE_DEVICES"),
        ("cambricon", "MLU_VISIBLE_DEVICES"),
    ],
)
def test_each_vendor_has_its_own_variable(machine: Machine, vendor: str, variable: str) -> None:
    node = machine.node(devices=[{"index": 5, "model": "m", "vendor": "simulated", "imitates": vendor}])
    _, log = node.sh(f"echo ${variable}", devices=(DeviceShare(5),))
    assert log == "5\n"
    _, log = node.sh(f'test "${{{variable}-unset}}" = "" && echo hidden')
    assert log == "hidden\n"


def test_each_run_has_a_uid_of_its_own_and_a_workspace_that_is_closed_to_others(node: Node) -> None:
    specs = [node.begin(node.spec("/bin/sh", "-c", "echo ready; while :; do sleep 0.1; done")) for _ in "ab"]
    uids = []
    for spec in specs:
        await_line(spec, "ready")
        process = psutil.Process(node.await_state(spec, RunState.RUNNING).pid)
        workspace = Path(spec.workspace).stat()
        assert {one.uids().real for one in (process, *process.children())} == {workspace.st_uid}
        assert workspace.st_mode & 0o777 == 0o700
        uids.append(workspace.st_uid)
    if os.geteuid() == 0:
        assert len(set(uids)) == len(specs)
        assert all(uid >= 700_000 for uid in uids)
    else:
        assert set(uids) == {os.geteuid()}
    node.desired.clear()
    for spec in specs:
        node.ended(spec)


def test_a_device_that_imitates_nobody_is_shown_by_the_hubs_own_variables_alone(machine: Machine) -> None:
    node = machine.node(devices=[{"index": 5, "model": "m", "vendor": "simulated", "imitates": "simulated"}])
    _, log = node.sh("env | grep DEVICES", devices=(DeviceShare(5),))
    assert log == "HUB_DEVICES=5\n"


def test_torchrun_variables_say_which_rank_it_is(node: Node) -> None:
    _, log = node.sh(
        "echo $RANK $WORLD_SIZE $LOCAL_RANK $LOCAL_WORLD_SIZE $MASTER_ADDR $HUB_NODE_RANK $HUB_ATTEMPT",
        rank=3,
        world_size=4,
        local_rank=1,
        local_world_size=2,
        node_rank=1,
        attempt=2,
        env={"RANK": "99"},
    )
    assert log == "3 4 1 2 127.0.0.1 1 2\n"


def test_the_environment_catalogue_brings_its_own_python(node: Node) -> None:
    spec = node.spec("python", "-c", "import sys; print(sys.version_info[:2] >= (3, 11))", environment="python")
    node.run(spec)
    assert Path(spec.log).read_text() == "True\n"


def test_secrets_are_files_that_only_the_job_can_read(node: Node) -> None:
    _, log = node.sh("stat -c '%a %u' $HUB_SECRETS/token; cat $HUB_SECRETS/token", secrets={"token": "s3cret"})
    assert log == "400 1000\ns3cret"


def test_a_log_is_cut_at_its_cap_and_says_so(machine: Machine) -> None:
    node = machine.node(limits={"log_bytes": 1000})
    status, log = node.sh("head -c 100000000 /dev/zero | tr '\\0' x; echo; exit 4")
    assert status.exit_code == 4
    assert status.log_truncated
    assert log.startswith("x" * 1000)
    assert log.endswith("[hub: the log ends here: it reached 1000 bytes]\n")
    assert len(log) < 1100


def test_binary_output_and_a_very_long_line_are_kept_as_they_are(node: Node) -> None:
    spec = node.spec("/bin/sh", "-c", "head -c 100000 /dev/urandom | tee /job/copy; head -c 20000000 /dev/zero")
    assert node.run(spec).exit_code == 0
    data = Path(spec.log).read_bytes()
    assert data == (Path(spec.workspace) / "copy").read_bytes() + bytes(20_000_000)


def test_a_program_that_is_not_there_is_named(node: Node) -> None:
    status = node.run(node.spec("/no/such/program"))
    assert status.exit_code == 127
    assert "/no/such/program" in status.reason


def test_a_file_that_is_not_executable_is_named(node: Node) -> None:
    status = node.run(node.spec("/etc/passwd"))
    assert status.exit_code == 126
    assert "/etc/passwd" in status.reason


def test_a_program_is_looked_for_and_run_as_a_shell_does(machine: Machine) -> None:
    tools = machine.folder / "tools"
    (tools / "folder").mkdir(parents=True)
    (tools / "unmarked").write_text('echo "ran $1"\n')
    (tools / "unmarked").chmod(0o755)
    (tools / "lost").write_text("#!/no/such/interpreter\n")
    (tools / "lost").chmod(0o755)
    (tools / "closed").write_text("#!/bin/sh\n")
    machine.folder.chmod(0o755)
    software = {
        "mounts": [{"source": str(tools), "target": "/opt/tools"}],
        "path": ["/opt/nowhere", "/opt/tools"],
    }
    node = machine.node(environments={"e": software})
    spec = node.spec("unmarked", "twice", environment="e")
    assert (node.run(spec).exit_code, Path(spec.log).read_text()) == (0, "ran twice\n")
    for program, code in (("lost", 127), ("closed", 126), ("/opt/tools/folder", 126), ("absent", 127)):
        status = node.run(node.spec(program, environment="e"))
        assert (status.exit_code, program in status.reason) == (code, True), program


def test_a_program_is_not_taken_for_missing_because_it_says_so(node: Node) -> None:
    status, _ = node.sh("echo '/bin/sh: No such file or directory'; exit 1")
    assert (status.exit_code, status.end_reason) == (1, EndReason.EXITED)


def test_variables_of_the_loader_reach_the_job(node: Node) -> None:
    status, said = node.sh("echo $LD_BIND_NOW $GLIBC_TUNABLES", env={"LD_BIND_NOW": "1", "GLIBC_TUNABLES": "a"})
    assert (status.exit_code, said) == (0, "1 a\n")


def test_a_job_has_the_devices_that_every_program_expects_and_cannot_change_them(node: Node) -> None:
    status, said = node.sh("cd /dev; ls; cat null; head -c 4 zero | wc -c; head -c 4 urandom | wc -c")
    names = "core fd full null ptmx pts random shm stderr stdin stdout tty urandom zero"
    assert (status.exit_code, said.split()) == (0, [*names.split(), "4", "4"])
    status, said = node.sh("touch /dev/new || rm /dev/null || chmod 600 /dev/zero || echo no")
    assert said.endswith("no\n")


def test_where_no_device_file_can_be_made_a_job_sees_those_of_the_host(machine: Machine) -> None:
    if os.geteuid() != 0:
        return  # bubblewrap makes all devices of an ordinary user's jobs
    node = machine.node()
    assert node.stop() == 0
    node.wrapper = ("/usr/bin/setpriv", "--bounding-set", "-mknod")
    node.start()
    status, said = node.sh("head -c 4 /dev/zero | wc -c; grep -c ' /dev/zero ' /proc/self/mountinfo")
    assert (status.exit_code, said) == (0, "4\n1\n")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"argv": ()}, "argv"),
        ({"argv": ("A=b",)}, "argv[0]"),
        ({"argv": ("x" * 200_000,)}, "argv"),
        ({"argv": ("true", "a\0b")}, "argv"),
        ({"env": {"A-B": "x"}}, "env.A-B"),
        ({"env": {"A": "x" * 200_000}}, "env"),
        ({"environment": "nowhere"}, "environment"),
        ({"devices": (DeviceShare(9),)}, "devices[0]"),
        ({"devices": (DeviceShare(0, 10, 10),)}, "devices[0]"),
        ({"workspace": "/etc"}, "workspace"),
        ({"memory_mib": 0}, "memory_mib"),
        ({"network": "host"}, "network"),
        ({"network": "job"}, "gang"),
        ({"notice_signal": 9}, "notice_signal"),
        ({"secrets": {"../x": "y"}}, "secrets"),
        ({"secrets": {"x" * 256: "y"}}, "secrets"),
        ({"bundle": {"path": "/etc/passwd", "sha256": "00"}}, "bundle"),
    ],
)
def test_a_run_that_cannot_be_meant_fails_to_start_and_names_the_field(
    node: Node, changes: dict[str, Any], says: str
) -> None:
    spec = decode(RunSpec, json.loads(json.dumps(encode(replace(node.spec("true"), **changes)))))
    status = node.run(spec)
    assert status.end_reason is EndReason.START_FAILED
    assert status.reason.startswith(says)
    assert node.records(spec)[-1].duration_ms == 0
    assert node.run(node.spec("true")).exit_code == 0


def test_a_log_inside_the_workspace_is_refused(node: Node) -> None:
    spec = node.spec("true")
    status = node.run(replace(spec, log=f"{spec.workspace}/log"))
    assert status.end_reason is EndReason.START_FAILED


def test_a_workspace_reached_through_a_link_is_refused(node: Node, tmp_path: Path) -> None:
    store = Path(node.config["workspace_root"])
    (store / "link").symlink_to(tmp_path)
    spec = replace(node.spec("true"), workspace=str(store / "link" / "x"))
    assert node.run(spec).end_reason is EndReason.START_FAILED
    assert not list(tmp_path.iterdir())


def test_without_a_sandbox_no_job_starts(machine: Machine) -> None:
    if os.geteuid() != 0:
        return  # nobody else has it
    node = machine.node()
    assert node.stop() == 0
    node.wrapper = ("/usr/bin/setpriv", "--bounding-set", "-sys_admin")
    node.start()
    isolation = node.sync().isolation
    assert isolation.level == UNAVAILABLE
    assert isolation.weaknesses[0].startswith("No sandbox can be built on this node: ")
    status, log = node.sh("touch began; echo began")
    assert (status.end_reason, status.exit_code, status.started_unix_ms) == (EndReason.NODE_FAILED, None, None)
    assert (status.reason, log) == (isolation.weaknesses[0], "")
    assert not list(Path(node.config["workspace_root"]).rglob("began"))


def test_process_mode_runs_without_a_sandbox_and_says_so(machine: Machine) -> None:
    node = machine.node(sandbox="process")
    report = node.sync()
    assert report.isolation.level == "process"
    assert "operator" in report.isolation.weaknesses[0]
    status, log = node.sh("echo $HUB_RANK; exit 3")
    assert (status.exit_code, log) == (3, "0\n")


def test_process_mode_stops_a_run_with_its_children(machine: Machine) -> None:
    node = machine.node(sandbox="process")
    spec = node.begin(node.spec("/bin/sh", "-c", "sleep 1000 & echo ready; wait", grace_ms=500))
    await_line(spec, "ready")
    node.desired.clear()
    assert node.ended(spec).end_reason is EndReason.STOPPED
