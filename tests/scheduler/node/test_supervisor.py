"""What a controller sees of one supervisor: starting, stopping, leases, limits, metering, logs."""

import os
import resource
import select
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from scheduler.node.errors import SupervisorRefused, SupervisorUnreachable
from scheduler.node.protocol import DeviceShare, EndReason, RunState
from tests.scheduler.node.harness import Machine, Node, await_line

pytestmark = pytest.mark.slow

FOREVER = 'trap "exit 7" TERM; echo ready; while :; do sleep 0.05; done'
SLOWLY = 'trap "sleep 3; exit 7" TERM; echo ready; while :; do sleep 0.05; done'
STUBBORN = 'trap "" TERM; echo ready; while :; do sleep 0.05; done'


def test_a_job_runs_in_its_sandbox_and_its_output_is_kept(node: Node) -> None:
    status, log = node.sh("id -u; pwd; echo oops >&2; exit 3")
    assert (status.state, status.exit_code, status.end_reason) == (RunState.ENDED, 3, EndReason.EXITED)
    assert log == "1000\n/job\noops\n"


def test_a_run_no_longer_desired_gets_its_grace_and_ends_as_stopped(node: Node) -> None:
    spec = node.begin(node.spec("/bin/sh", "-c", FOREVER, grace_ms=60_000))
    await_line(spec, "ready")
    node.desired.clear()
    status = node.ended(spec)
    assert (status.end_reason, status.exit_code) == (EndReason.STOPPED, 7)


def test_a_run_that_ignores_sigterm_is_killed_after_its_grace(node: Node) -> None:
    spec = node.begin(node.spec("/bin/sh", "-c", STUBBORN, grace_ms=100))
    await_line(spec, "ready")
    node.desired.clear()
    status = node.ended(spec)
    assert (status.end_reason, status.signal) == (EndReason.STOPPED, 9)


def test_a_run_beyond_its_time_limit_is_stopped(node: Node) -> None:
    status, _ = node.sh(FOREVER, time_limit_ms=300)
    assert status.end_reason is EndReason.TIMED_OUT
    assert status.ended_boot_ms - status.started_boot_ms >= 300


def test_a_run_whose_lease_nobody_renews_is_stopped(node: Node) -> None:
    spec = node.begin(node.spec("/bin/sh", "-c", FOREVER))
    await_line(spec, "ready")
    seq = node.sync(lease_ms=800).seq
    with node.client() as client:
        assert client.wait_for_change(seq, 30_000).seq != seq
    assert node.ended(spec).end_reason is EndReason.LEASE_LOST


def test_a_run_in_its_grace_is_killed_when_nobody_is_heard_of_any_more(node: Node) -> None:
    spec = node.begin(node.spec("/bin/sh", "-c", STUBBORN, grace_ms=600_000))
    await_line(spec, "ready")
    seq = node.sync(lease_ms=1500, desired=()).seq
    with node.client() as client:
        assert client.wait_for_change(seq, 30_000).seq != seq
    assert node.status(spec).end_reason is EndReason.STOPPED


def test_who_stops_a_supervisor_and_cannot_wait_cuts_the_graces_of_its_runs_short(node: Node) -> None:
    node.lease_ms = 600_000
    told = "trap 'echo told' TERM; echo ready; while :; do sleep 0.1; done"
    spec = node.begin(node.spec("/bin/sh", "-c", told, grace_ms=600_000))
    await_line(spec, "ready")
    assert node.process is not None
    for number in (signal.SIGTERM, signal.SIGTERM):
        node.process.send_signal(number)
        await_line(spec, "told")
    assert node.status(spec).state is RunState.STOPPING  # it is still heard, answered and waited for
    node.process.send_signal(signal.SIGINT)
    assert node.process.wait(timeout=60) == 0
    node.start()
    status = node.status(spec)
    assert (status.end_reason, status.exit_code) == (EndReason.STOPPED, 137)
    assert node.records(spec)[-1].final


def test_a_run_keeps_its_grace_as_long_as_its_controller_is_heard_of(node: Node) -> None:
    spec = node.begin(node.spec("/bin/sh", "-c", STUBBORN, grace_ms=7000))
    await_line(spec, "ready")
    node.desired.clear()
    began = node.sync(lease_ms=5000)
    report = began
    while report.runs[0].state is not RunState.ENDED:
        report = node.sync(lease_ms=5000)
    assert report.runs[0].ended_boot_ms is not None
    assert report.runs[0].ended_boot_ms - began.boot_ms >= 7000


def test_a_replaced_controller_is_refused_and_changes_nothing(node: Node) -> None:
    spec = node.begin(node.spec("/bin/sh", "-c", FOREVER))
    node.sync(epoch=5)
    with pytest.raises(SupervisorRefused) as refused:
        node.sync(epoch=4, desired=())
    assert refused.value.facts["code"] == "stale_epoch"
    node.epoch = 5
    assert node.await_state(spec, RunState.RUNNING).state is RunState.RUNNING


def test_usage_is_contiguous_and_covers_the_run(machine: Machine) -> None:
    node = machine.node(meter_interval_ms=100)
    shares = (DeviceShare(1), DeviceShare(2, 0, 500))
    spec = node.begin(node.spec("/bin/sh", "-c", "until [ -e go ]; do sleep 0.05; done", devices=shares))
    while len(node.records(spec)) < 3:
        node.sync()
    (Path(spec.workspace) / "go").touch()
    status = node.ended(spec)
    records = node.records(spec)
    assert [record.k for record in records] == list(range(len(records)))
    assert [record.final for record in records] == [False] * (len(records) - 1) + [True]
    span_ms = status.ended_boot_ms - status.started_boot_ms
    assert 300 <= sum(record.duration_ms for record in records) <= span_ms
    assert all(record.slot_ms == record.duration_ms * 1500 for record in records)


def test_cpu_time_is_metered(node: Node) -> None:
    spec = node.spec("/bin/sh", "-c", "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done")
    node.run(spec)
    assert node.records(spec)[-1].cpu_ms > 20


def test_an_ended_run_stays_reported_until_acknowledged_and_never_runs_again(node: Node) -> None:
    spec = node.spec("/bin/sh", "-c", "echo once")
    node.run(spec)
    assert node.status(spec).state is RunState.ENDED
    report = node.sync(acknowledged_exits=(spec.run_id,), acknowledged_usage=tuple(node.usage))
    assert not report.runs
    assert not report.usage
    refused = node.sync().refused
    assert [(refusal.run_id, refusal.code) for refusal in refused] == [(spec.run_id, "already_ran")]
    assert Path(spec.log).read_text() == "once\n"


def test_a_run_that_ended_stays_ended_over_a_restart(node: Node) -> None:
    spec = node.spec("/bin/sh", "-c", "echo once")
    node.run(spec)
    assert node.stop() == 0
    node.start()
    assert node.status(spec).end_reason is EndReason.EXITED
    assert node.sync().epoch_seen == 1
    assert Path(spec.log).read_text() == "once\n"


def test_a_killed_supervisor_takes_its_jobs_along_and_the_next_one_reports_them_lost(machine: Machine) -> None:
    node = machine.node(heartbeat_ms=50)
    spec = node.begin(node.spec("/bin/sh", "-c", FOREVER, devices=(DeviceShare(0),)))
    pid = node.await_state(spec, RunState.RUNNING).pid
    assert pid is not None
    await_line(spec, "ready")
    job = os.pidfd_open(pid)
    journal = Path(node.config["state_directory"]) / "spool"
    size = journal.stat().st_size
    while journal.stat().st_size == size:
        os.sched_yield()
    node.kill()
    assert select.select([job], [], [], 30)[0]
    os.close(job)
    node.start()
    status = node.status(spec)
    assert (status.state, status.end_reason) == (RunState.ENDED, EndReason.SUPERVISOR_LOST)
    assert [record.final for record in node.records(spec)] == [True]
    assert node.records(spec)[0].duration_ms > 0


def test_sigterm_stops_all_jobs_in_order_and_their_ends_are_kept(node: Node) -> None:
    spec = node.begin(node.spec("/bin/sh", "-c", FOREVER, grace_ms=50_000))
    await_line(spec, "ready")
    assert node.stop() == 0
    node.start()
    status = node.status(spec)
    assert (status.end_reason, status.exit_code) == (EndReason.STOPPED, 7)


def test_a_supervisor_may_have_as_many_files_open_as_the_machine_lets_it(machine: Machine) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    try:
        node = machine.node()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert node.process is not None
    assert resource.prlimit(node.process.pid, resource.RLIMIT_NOFILE) == (hard, hard)
    status, log = node.sh("ulimit -n")
    assert (status.exit_code, int(log)) == (0, min(hard, 65_536))


def test_jobs_have_their_grace_when_a_supervisor_is_stopped_and_the_controller_hears_of_their_ends(
    node: Node,
) -> None:
    spec = node.begin(node.spec("/bin/sh", "-c", SLOWLY, grace_ms=20_000))
    await_line(spec, "ready")
    assert node.process is not None
    node.process.send_signal(signal.SIGTERM)
    with suppress(SupervisorUnreachable):
        while True:
            node.sync(lease_ms=1000)
    assert node.process.wait(timeout=60) == 0
    node.start()
    status = node.status(spec)
    assert (status.end_reason, status.exit_code) == (EndReason.STOPPED, 7)


def test_a_state_directory_has_one_supervisor(machine: Machine) -> None:
    machine.node("n")
    path = machine.folder / "n.json"
    done = subprocess.run(
        [sys.executable, "-m", "scheduler.node.supervisor", "--config", str(path)],
        check=False,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": "."},
    )
    assert done.returncode == 2
    assert "Another supervisor" in done.stderr


def test_a_device_passes_from_a_stopping_run_to_its_successor(node: Node) -> None:
    first = node.begin(
        node.spec(
            "/bin/sh",
            "-c",
            'trap "sleep 0.3; date +%s%N; exit" TERM; echo ready; while :; do sleep 0.05; done',
            devices=(DeviceShare(0),),
            grace_ms=60_000,
        )
    )
    await_line(first, "ready")
    del node.desired[first.run_id]
    second = node.begin(node.spec("date", "+%s%N", devices=(DeviceShare(0),)))
    node.ended(second)
    left = int(Path(first.log).read_text().split()[-1])
    assert left < int(Path(second.log).read_text())
