"""The tests that judge mutants: loaded once, each mutant in a child of its own that runs those that reach its line.

A pytest plugin whose test loop forks. A first child runs the tests of which it is not yet known and tells, for each,
how much it took and which lines it ran; later children run tests that ran the changed statement until the first
failure. The parent runs no test, so every child finds everything as loaded.
"""

import os
import pickle
import resource
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Final

import pytest

from benchmarks.mutant_patience import await_child
from benchmarks.mutant_reach import ROOT, Reach, ReachMap

KILLED, SURVIVED, STILLBORN, UNREACHED, OUTLIVED = "killed", "survived", "stillborn", "unreached", "outlived"
_EXIT: Final = {0: SURVIVED, 1: KILLED, 2: STILLBORN}
_MEASURE_S: Final = 3_600
_MEMORY_BYTES: Final = 4 << 30
"""A mutant may collect for ever."""


class Forking:
    """The plugin: `work` is called with it once all tests are loaded."""

    def __init__(self, work: Callable[["Forking"], None], reach: ReachMap) -> None:
        self._work = work
        self._failed = False
        self._items: dict[str, pytest.Item] = {}
        self.reach = reach

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """In place of running the tests."""
        self._items = {item.nodeid: item for item in session.items}
        self._work(self)
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take note of a failure."""
        self._failed = self._failed or report.failed

    def measure(self, files: Sequence[str]) -> bool:
        """Run every test of which nothing is known once, without any mutant. False when one fails."""
        names = {str(ROOT / path): path for path in files}
        unknown = self.reach.unknown(self._items)
        for _, module in groupby(unknown, key=lambda test: test.split("::", maxsplit=1)[0]):
            code, blob = _in_child(
                lambda tell, tests=list(module): self._measure_in_child(tests, names, tell),  # type: ignore[misc] # bound
                lambda _words: _MEASURE_S,
            )
            if code != 0:
                return False
            self.reach.learn(pickle.loads(blob))  # noqa: S301 - written by our own child
        return True

    def judge(self, prepare: Callable[[], None], tests: Sequence[str]) -> tuple[str, str]:
        """What a child says that prepares itself and runs these tests until the first failure, and which that was."""
        code, words = _in_child(
            lambda tell: self._judge_in_child(prepare, tests, tell),
            lambda words: self.reach.allowed_s(_last(words)),
        )
        fate = _EXIT.get(code, KILLED) if code is not None else KILLED
        killer = _last(words)
        if fate == KILLED:
            self.reach.killed_by(killer)
        return fate, killer if code is not None else f"{killer} (ended)"

    def _measure_in_child(self, tests: Sequence[str], names: dict[str, str], tell: int) -> int:
        found: dict[str, Reach] = {}
        for number, test in enumerate(tests):
            reach = found[test] = Reach()
            following = self._items[tests[number + 1]] if number + 1 < len(tests) else None
            item = self._items[test]
            reach.trace(names, lambda item=item, following=following: _run(item, following))  # type: ignore[misc] # bound at once
            if self._failed:
                return 1
        with os.fdopen(tell, "wb") as pipe:
            pickle.dump(found, pipe)
        return 0

    def _judge_in_child(self, prepare: Callable[[], None], tests: Sequence[str], tell: int) -> int:
        try:
            prepare()
        except Exception:  # noqa: BLE001 - a mutant may fail in any way when it is loaded
            return 2
        items = [self._items[name] for name in tests]
        for number, item in enumerate(items):
            os.write(tell, f"{item.nodeid}\n".encode())
            _run(item, items[number + 1] if number + 1 < len(items) else item)
            if self._failed:
                return 1
        return 0


def _run(item: pytest.Item, following: pytest.Item | None) -> None:
    item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)


def _last(words: bytes) -> str:
    return words.decode().strip().rsplit("\n", 1)[-1]


def _in_child(work: Callable[[int], int], allowed_s: Callable[[bytes], float]) -> tuple[int | None, bytes]:
    """Exit code (None for one that had to be ended) and words of a child, which may use so much processor time."""
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        code = 70
        try:
            os.setsid()
            os.close(told)
            resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
            _silence()
            code = work(tell)
        finally:
            os._exit(code)
    os.close(tell)
    return await_child(child, told, allowed_s)


def _silence() -> None:
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
