"""Which process of a tree is named when it cannot be ended."""

import os
import subprocess
import sys

from scheduler.node.processes import unkillable
from tests.chaos.watching import await_that

_WAITS_FOR_ITS_CHILD = """
import ctypes, os, signal, sys
CLONE_VFORK, SYS_CLONE = 0x4000, {"x86_64": 56}.get(os.uname().machine, 220)
if ctypes.CDLL(None).syscall(SYS_CLONE, CLONE_VFORK | signal.SIGCHLD, 0, 0, 0, 0) == 0:
    os.write(1, b"waiting")
    sys.stdin.read()
    os._exit(0)
"""


def test_the_process_that_waits_in_the_kernel_is_named() -> None:
    argv = [sys.executable, "-c", _WAITS_FOR_ITS_CHILD]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as waiting:
        assert waiting.stdout is not None
        assert waiting.stdout.read(7) == b"waiting"
        await_that(lambda: unkillable(os.getpid()), lambda: unkillable(os.getpid()) == waiting.pid)
        waiting.communicate()


def test_without_one_it_is_the_first() -> None:
    assert unkillable(os.getpid()) == os.getpid()
