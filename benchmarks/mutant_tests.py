"""The tests that judge mutants: loaded once, each mutant in a child of its own that runs those that reach its line.

A pytest plugin whose test loop forks. The first child runs every test and tells, for each, how long it took and
which lines of the files in question it ran; later children run, cheapest first, the tests that ran the changed
statement, until the first failure. The parent runs no test, so every child finds everything as loaded.
"""

import ast
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import FrameType
from typing import Any, Final

import pytest

ROOT: Final = Path(__file__).parent.parent
KILLED, SURVIVED, STILLBORN, UNREACHED = "killed", "survived", "stillborn", "unreached"
_EXIT: Final = {0: SURVIVED, 1: KILLED, 2: STILLBORN}


@dataclass
class Reach:
    """What one test ran: its seconds, and lines by file."""

    seconds: float = 0.0
    lines: dict[str, set[int]] = field(default_factory=dict)


class Forking:
    """The plugin: `work` is called with it once all tests are loaded."""

    def __init__(self, work: Callable[["Forking"], None]) -> None:
        self._work = work
        self._failed = False
        self.items: dict[str, pytest.Item] = {}
        self.reach: dict[str, Reach] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """In place of running the tests."""
        self.items = {item.nodeid: item for item in session.items}
        self._work(self)
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take note of a failure."""
        self._failed = self._failed or report.failed

    def measure(self, files: Sequence[str], patience_s: float) -> bool:
        """Run every test once and keep what it reaches. False when one fails."""
        told, tell = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(told)
            code = 70
            try:
                code = self._measure_in_child(files, tell)
            finally:
                os._exit(code)
        os.close(tell)
        with os.fdopen(told, "rb") as pipe:
            blob = pipe.read()
        passed = await_child(child, patience_s) == SURVIVED
        if passed:
            self.reach = pickle.loads(blob)  # noqa: S301 - written by our own child
        return passed

    def judge(self, prepare: Callable[[], None], tests: Sequence[str], patience_s: float) -> str:
        """What a child says that prepares itself and runs these tests until the first failure."""
        child = os.fork()
        if child == 0:
            os.setsid()
            code = 70
            try:
                code = self._judge_in_child(prepare, tests)
            finally:
                os._exit(code)
        return await_child(child, patience_s)

    def reaching(self, path: str, line: int) -> list[str]:
        """The tests that run a statement, in groups of a module, the cheapest first."""
        wanted = statement_lines(path, line)
        found = [name for name, reach in self.reach.items() if reach.lines.get(path, set()) & wanted]
        return self.cheapest_first(found)

    def cheapest_first(self, tests: Sequence[str]) -> list[str]:
        """By seconds, but a module's tests together, since they share what is dear."""
        cheapest: dict[str, float] = {}
        for name in tests:
            module = name.split("::")[0]
            cheapest[module] = min(cheapest.get(module, 1e9), self.reach[name].seconds)
        return sorted(
            tests,
            key=lambda name: (cheapest[name.split("::")[0]], name.split("::")[0], self.reach[name].seconds),
        )

    def _measure_in_child(self, files: Sequence[str], tell: int) -> int:
        _silence()
        found: dict[str, Reach] = {}
        items = list(self.items.values())
        for number, item in enumerate(items):
            reach = found[item.nodeid] = Reach()
            started = time.monotonic()
            sys.settrace(_tracer(files, reach))
            self._run(item, items[number + 1] if number + 1 < len(items) else None)
            sys.settrace(None)
            reach.seconds = time.monotonic() - started
            if self._failed:
                return 1
        with os.fdopen(tell, "wb") as pipe:
            pickle.dump(found, pipe)
        return 0

    def _judge_in_child(self, prepare: Callable[[], None], tests: Sequence[str]) -> int:
        _silence()
        try:
            prepare()
        except Exception:  # noqa: BLE001 - a mutant may fail in any way when it is loaded
            return 2
        items = [self.items[name] for name in tests]
        for number, item in enumerate(items):
            self._run(item, items[number + 1] if number + 1 < len(items) else item)
            if self._failed:
                return 1
        return 0

    def _run(self, item: pytest.Item, following: pytest.Item | None) -> None:
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)


def await_child(child: int, patience_s: float) -> str:
    """How a child ended; one that goes on for ever is ended and counts as killed."""
    end = time.monotonic() + patience_s
    while (status := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return KILLED
        time.sleep(0.005)
    return _EXIT.get(os.waitstatus_to_exitcode(status[1]), KILLED)


@lru_cache(maxsize=1)
def _tree(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def statement_lines(path: str, line: int) -> set[int]:
    """The lines of the smallest statement around a line; of one with a body only its head."""
    best = (0, 10**9)
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            last = body[0].lineno - 1 if isinstance(body, list) and body else node.end_lineno or node.lineno
            first = min([node.lineno, *(entry.lineno for entry in getattr(node, "decorator_list", []))])
            if first <= line <= max(last, node.lineno) and last - first < best[1] - best[0]:
                best = (first, max(last, node.lineno))
    return set(range(best[0], best[1] + 1))


def in_function(path: str, line: int) -> bool:
    """Whether a line is run when a function is, not when the module is loaded."""
    return any(
        node.body[0].lineno <= line <= (node.end_lineno or 0)
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.FunctionDef)
    )


def _tracer(files: Sequence[str], reach: Reach) -> Callable[[FrameType, str, Any], Any]:
    names = {str(ROOT / path): path for path in files}

    def local(frame: FrameType, event: str, _argument: object) -> object:
        if event == "line":
            lines.setdefault(names[frame.f_code.co_filename], set()).add(frame.f_lineno)
        return local

    def calls(frame: FrameType, _event: str, _argument: object) -> object:
        if frame.f_code.co_filename not in names:
            return None
        lines.setdefault(names[frame.f_code.co_filename], set()).add(frame.f_lineno)
        return local

    lines = reach.lines
    return calls


def _silence() -> None:
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
