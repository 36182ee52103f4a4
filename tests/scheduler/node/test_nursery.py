"""Jobs' first processes are made by a helper of the supervisor; they are the supervisor's, whatever becomes of it."""

import marshal
import os
import select
import socket
import subprocess
import sys

import psutil
import pytest

from scheduler.node import becoming, nursery
from scheduler.node.protocol import EndReason, RunState
from tests.scheduler.node.harness import Node, await_line, helper_of

pytestmark = pytest.mark.slow

OF_THE_C_LIBRARY = 1 << 31 | 1 << 32
"""Signals 32 and 33, which nobody else may set; GNU make leaves them ignored, and so they arrive here."""


def test_a_job_is_a_child_of_its_supervisor_and_outlives_the_helper_that_made_it(node: Node) -> None:
    assert node.process is not None
    spec = node.begin(node.spec("/bin/sh", "-c", "echo ready; while :; do sleep 0.1; done"))
    await_line(spec, "ready")
    names = [child.name() for child in psutil.Process(node.process.pid).children()]
    assert len([name for name in names if name not in {"hub-nursery", "hub-ready"}]) == 1
    helper_of(node).kill()
    status, said = node.sh("echo again")
    assert (status.exit_code, said) == (0, "again\n")
    assert node.status(spec).state is RunState.RUNNING
    node.desired.clear()
    assert node.ended(spec).end_reason is EndReason.STOPPED


def test_a_helper_whose_supervisor_died_before_it_read_the_answer_ends_without_a_word() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        helper = subprocess.Popen(
            (sys.executable, "-I", "-S", "-c", nursery._PROGRAM, nursery._HUB),  # noqa: SLF001 - as a supervisor does
            stdin=theirs.fileno(),
            stderr=subprocess.PIPE,
        )
    with ours:
        ours.send(marshal.dumps(None))
        run, own = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with run, own:
            socket.send_fds(ours, [becoming.AT_ONCE], [own.fileno()])
        select.select([ours], [], [])
        pid = int.from_bytes(ours.recv(becoming.ANSWER_BYTES, socket.MSG_PEEK), "little", signed=True)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == becoming.FAILED
    assert helper.communicate() == (None, b"")
    assert helper.returncode == 0


def test_a_job_inherits_no_ignored_signal_and_no_descriptor(node: Node) -> None:
    _, said = node.sh("grep -E 'Sig(Ign|Blk)' /proc/self/status; ls /proc/self/fd")
    _, blocked, _, ignored, *descriptors = said.split()
    assert int(blocked, 16) == 0
    assert int(ignored, 16) & ~OF_THE_C_LIBRARY == 0
    assert descriptors == ["0", "1", "2", "3"]
