"""Jobs' first processes are made by a helper of the supervisor; they are the supervisor's, whatever becomes of it."""

from pathlib import Path

import psutil
import pytest

from scheduler.node.protocol import EndReason, RunState
from tests.leftovers import words
from tests.scheduler.node.harness import Node, await_line

pytestmark = pytest.mark.slow

OF_THE_C_LIBRARY = 1 << 31 | 1 << 32
"""Signals 32 and 33, which nobody else may set; GNU make leaves them ignored, and so they arrive here."""


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_job_is_a_child_of_its_supervisor_and_outlives_the_helper_that_made_it(node: Node) -> None:
    assert node.process is not None
    spec = node.begin(node.spec("/bin/sh", "-c", "echo ready; while :; do sleep 0.1; done"))
    await_line(spec, "ready")
    (helper,) = [pid for pid in _children(node.process.pid) if "hub-nursery" in words(psutil.Process(pid))]
    assert len(_children(node.process.pid)) == 2
    psutil.Process(helper).kill()
    status, said = node.sh("echo again")
    assert (status.exit_code, said) == (0, "again\n")
    assert node.status(spec).state is RunState.RUNNING
    node.desired.clear()
    assert node.ended(spec).end_reason is EndReason.STOPPED


def test_a_job_inherits_no_ignored_signal_and_no_descriptor(node: Node) -> None:
    _, said = node.sh("grep -E 'Sig(Ign|Blk)' /proc/self/status; ls /proc/self/fd")
    _, blocked, _, ignored, *descriptors = said.split()
    assert int(blocked, 16) == 0
    assert int(ignored, 16) & ~OF_THE_C_LIBRARY == 0
    assert descriptors == ["0", "1", "2", "3"]
