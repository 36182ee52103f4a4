"""Which test runs which lines, and in which order tests judge a mutant.

The map is measured once and kept beside the state of a hunt: as long as nothing but tests has changed, only the
changed modules of tests are measured again.
"""

import ast
import hashlib
import pickle
import sys
import time
from collections import Counter
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from types import FrameType
from typing import Any, Final

ROOT: Final = Path(__file__).parent.parent
_SOURCES: Final = ("kernel", "ledger", "vouchers", "migrations", "examples/programmes")
_SHARED_TESTS: Final = ("tests/conftest.py", "tests/*/conftest.py", "tests/vouchers/*.py", "tests/ledger/*.py")
_LATELY: Final = 4
_RARE: Final = 8
"""So many of the tests that killed last come first, and then so many that go ways which few go."""


@dataclass
class Reach:
    """What one test ran: its seconds of processor time, and lines by file."""

    seconds: float = 0.0
    lines: dict[str, set[int]] = field(default_factory=dict)

    def trace(self, names: dict[str, str], run: Callable[[], None]) -> None:
        """Run something and take note."""
        started = time.process_time()
        sys.settrace(_tracer(names, self.lines))
        run()
        sys.settrace(None)
        self.seconds = time.process_time() - started


class ReachMap:
    """The reach of every test, as far as it is known."""

    def __init__(self, kept: Path | None) -> None:
        self._kept = kept
        self._known: dict[str, tuple[str, Reach]] = {}
        if kept is not None and kept.exists():
            found = pickle.loads(kept.read_bytes())  # noqa: S301 - written by ourselves
            if found[0] == _sources():
                self._known = found[1]
        self.reach: dict[str, Reach] = {}
        self._killers: dict[str, None] = {}

    def unknown(self, tests: Iterable[str]) -> list[str]:
        """The tests that have to be measured."""
        known = {name: reach for name, (words, reach) in self._known.items() if words == _module(name)}
        self.reach = {name: known[name] for name in tests if name in known}
        return [name for name in tests if name not in known]

    def learn(self, found: dict[str, Reach]) -> None:
        """Keep what was measured."""
        self.reach |= found
        self._known |= {name: (_module(name), reach) for name, reach in found.items()}
        if self._kept is not None:
            self._kept.write_bytes(pickle.dumps((_sources(), self._known)))

    def killed_by(self, test: str) -> None:
        """So this one comes first for its neighbours."""
        self._killers.pop(test, None)
        self._killers[test] = None

    def reaching(self, path: str, line: int | None = None) -> list[str]:
        """The tests that run a statement; of one that loading the module runs, all that run anything of the file."""
        wanted = statement_lines(path, line) if line is not None and in_function(path, line) else None
        found = {
            name
            for name, reach in self.reach.items()
            if path in reach.lines and (wanted is None or reach.lines[path] & wanted)
        }
        return self.in_order(found, path, function_lines(path, line) if wanted else set())

    def in_order(self, tests: Iterable[str], path: str = "", near: Container[int] = ()) -> list[str]:
        """Those that killed lately, those that go rare ways through the file, then the others, the cheapest first.

        A module's tests stay together, since they share what is dear. `near` are the lines whose ways count most.
        """
        left = set(tests)
        lately = [name for name in reversed(self._killers) if name in left][:_LATELY]
        rare = self._rarity(left - set(lately), path, near)
        first = lately + sorted(rare, key=lambda name: (-rare[name], name))[:_RARE]
        modules = list(dict.fromkeys(_file(name) for name in first))
        first.sort(key=lambda name: modules.index(_file(name)))
        rest = left - set(first)
        cheapest: dict[str, float] = {}
        for name in rest:
            cheapest[_file(name)] = min(cheapest.get(_file(name), 1e9), self.reach[name].seconds)
        return first + sorted(
            rest,
            key=lambda name: (
                self.reach[name].seconds > 1,
                cheapest[_file(name)],
                _file(name),
                self.reach[name].seconds,
            ),
        )

    def _rarity(self, tests: Iterable[str], path: str, near: Container[int]) -> dict[str, float]:
        """By test how seldom its lines of the file are run by others, for the time it takes."""
        often = Counter(line for reach in self.reach.values() for line in reach.lines.get(path, ()))
        return {
            name: sum((5 if line in near else 1) / often[line] for line in self.reach[name].lines.get(path, ()))
            / (0.3 + self.reach[name].seconds)
            for name in tests
        }

    def within(self, tests: Sequence[str], seconds: float) -> list[str]:
        """The first of these tests, for so many seconds of processor time; at least one."""
        sums = accumulate(self.reach[name].seconds for name in tests)
        return [
            name
            for number, (name, total) in enumerate(zip(tests, sums, strict=True))
            if not number or total <= seconds
        ]

    def allowed_s(self, test: str) -> float:
        """More processor time than a test and its database ever use."""
        return 15 + 4 * self.reach[test].seconds if test in self.reach else 60.0


def _file(test: str) -> str:
    return test.split("::", maxsplit=1)[0]


@lru_cache(maxsize=1)
def _sources() -> str:
    files = [file for folder in _SOURCES for file in (ROOT / folder).rglob("*.*") if file.suffix != ".pyc"]
    shared = [file for found in _SHARED_TESTS for file in ROOT.glob(found) if not file.name.startswith("test_")]
    return _digest(sorted(files + shared))


@lru_cache
def _module(test: str) -> str:
    return _digest([ROOT / _file(test)])


def _digest(files: Sequence[Path]) -> str:
    words = hashlib.sha256()
    for file in files:
        words.update(file.read_bytes() if file.is_file() else b"")
    return words.hexdigest()


@lru_cache(maxsize=4)
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


def function_lines(path: str, line: int | None) -> set[int]:
    """The lines of the function around a line."""
    return {
        number
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.FunctionDef) and line in range(node.lineno, (node.end_lineno or 0) + 1)
        for number in range(node.lineno, (node.end_lineno or 0) + 1)
    }


def in_function(path: str, line: int) -> bool:
    """Whether a line is run when a function is, not when the module is loaded."""
    return any(
        node.body[0].lineno <= line <= (node.end_lineno or 0)
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.FunctionDef)
    )


def _tracer(names: dict[str, str], lines: dict[str, set[int]]) -> Callable[[FrameType, str, Any], Any]:
    def local(frame: FrameType, event: str, _argument: object) -> object:
        if event == "line":
            lines.setdefault(names[frame.f_code.co_filename], set()).add(frame.f_lineno)
        return local

    def calls(frame: FrameType, _event: str, _argument: object) -> object:
        if frame.f_code.co_filename not in names:
            return None
        lines.setdefault(names[frame.f_code.co_filename], set()).add(frame.f_lineno)
        return local

    return calls
