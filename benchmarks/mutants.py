"""Changes the rules that touch an amount, one small change at a time, and asks whether the tests notice.

`python -m benchmarks.mutants --json` prints `{mutants, killed, survived, stillborn}` as its last line, and each
survivor with its line before. A mutant is one operator, number, name or statement changed in one place. Each
is given to the fast tests of the ledger in a forked process, against one server that all share, until the first
failure. Stillborn are those that PostgreSQL or Python refuses to read; they say nothing about the tests.
`--only PART` takes the files whose path contains PART, `--part K/N` every N-th mutant from the K-th on.
"""

import argparse
import importlib.abc
import importlib.machinery
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from itertools import chain
from pathlib import Path
from types import CodeType, ModuleType
from typing import Final

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, settings

import kernel.migrations
import kernel.postgres
from benchmarks.mutations import changes
from kernel.postgres import OWNER_ROLE, PrivatePostgres

ROOT: Final = Path(__file__).parent.parent
FUNCTIONS: Final = "migrations/versions/0001_ledger_functions.sql"
FILES: Final = (
    FUNCTIONS,
    "kernel/money.py",
    "ledger/posting.py",
    "ledger/reading.py",
    "ledger/audit.py",
    "ledger/audit_queries.py",
    "ledger/errors.py",
    "ledger/domain/accounts.py",
    "ledger/domain/outcomes.py",
    "ledger/domain/transfers.py",
)
TESTS: Final = {
    "kernel": ("tests/kernel/test_money.py",),
    "migrations": (
        "tests/ledger/test_posting.py",
        "tests/ledger/test_turns.py",
        "tests/ledger/test_model.py",
        "tests/ledger/test_guards.py",
    ),
    "ledger": (
        "tests/ledger/test_guards.py",
        "tests/ledger/test_posting.py",
        "tests/ledger/test_audit.py",
        "tests/ledger/test_model.py",
    ),
}
DEAR: Final = ("alembic.autogenerate", "hypothesis.stateful", "sqlalchemy.dialects.postgresql.psycopg")
"""What the tests import and takes long; children find it loaded."""
PATIENCE_S: Final = 120
"""A mutant may loop for ever; the tests take ten seconds."""
TEMPLATE: Final = "migrated"
SHARED: Final = "ledger_tests"
"""The database that the ledger's tests share and empty; it stays from mutant to mutant."""


@dataclass(frozen=True)
class Mutant:
    """One change of one file."""

    path: str
    line: int
    before: str
    after: str
    source: str


def mutants(path: str) -> Iterator[Mutant]:
    """Every mutant of a file, from its top to its end."""
    source = (ROOT / path).read_text(encoding="utf-8")
    sql = path.endswith((".sql", "queries.py"))
    lines = source.splitlines()
    for number, changed in changes(source, sql=sql):
        before = lines[number - 1]
        whole = "\n".join([*lines[: number - 1], changed, *lines[number:], ""])
        yield Mutant(path, number, before.strip(), changed.strip(), whole)


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, name: str, path: str, source: str) -> None:
        super().__init__(name, path)
        self._source = source

    def get_code(self, fullname: str) -> CodeType:
        return compile(self._source, self.get_filename(fullname), "exec")


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the mutant in place of its module."""

    def __init__(self, mutant: Mutant) -> None:
        self._name = mutant.path.removesuffix(".py").replace("/", ".")
        self._loader = _Loader(self._name, str(ROOT / mutant.path), mutant.source)

    def find_spec(
        self, name: str, _path: object = None, _target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != self._name:
            return None
        return importlib.machinery.ModuleSpec(name, self._loader, origin=self._loader.path)


def run_tests(server: PrivatePostgres, mutant: Mutant | None) -> str:
    """`survived`, `killed` or `stillborn`, found by a child that can be thrown away."""
    child = os.fork()
    if child == 0:
        os.setsid()
        code = 70
        try:
            code = _tests_in_child(server, mutant)
        finally:
            os._exit(code)
    end = time.monotonic() + PATIENCE_S
    while (status := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > end:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "killed"
        time.sleep(0.02)
    return "survived" if os.waitstatus_to_exitcode(status[1]) == 0 else "killed"


def _tests_in_child(server: PrivatePostgres, mutant: Mutant | None) -> int:
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    if mutant is not None and mutant.path.endswith(".py"):
        sys.meta_path.insert(0, _Finder(mutant))
    kernel.postgres.PrivatePostgres = lambda *_, **__: _Lent(server)  # type: ignore[misc, assignment]
    kernel.migrations.migrate = lambda owner_url: None  # noqa: ARG005 - the template is migrated
    settings.register_profile(
        "mutants",
        phases=[Phase.generate],
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    settings.load_profile("mutants")
    tests = TESTS[mutant.path.split("/")[0]] if mutant else sorted(set(chain(*TESTS.values())))
    return int(
        pytest.main(
            [
                "-x",
                "-q",
                "--disable-plugin-autoload",
                "-W",
                "ignore::pytest.PytestAssertRewriteWarning",
                "-p",
                "no:cacheprovider",
                "-m",
                "not slow",
                *tests,
            ]
        )
    )


class _Lent:
    """The server that all children share; it is neither started nor stopped by them."""

    def __init__(self, server: PrivatePostgres) -> None:
        self.url = server.url
        self.superuser = server.superuser
        self.create_database = server.create_database

    def drop_database(self, name: str) -> None:
        """Keeps it for the next mutant."""

    def start(self) -> None:
        """Runs already."""

    def stop(self) -> None:
        """Goes on for the next mutant."""


def replace_functions(server: PrivatePostgres, source: str) -> bool:
    """Put a version of the ledger's functions into the database; False when PostgreSQL refuses to read it."""
    url = server.url(SHARED, OWNER_ROLE).replace("+psycopg", "")
    with suppress(psycopg.Error), psycopg.connect(url) as connection:
        connection.execute(source.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION").encode())
        return True
    return False


def verdict(server: PrivatePostgres, mutant: Mutant) -> str:
    """What becomes of one mutant."""
    if mutant.path != FUNCTIONS:
        try:
            compile(mutant.source, mutant.path, "exec")
        except SyntaxError:
            return "stillborn"
    elif not replace_functions(server, mutant.source):
        return "stillborn"
    return run_tests(server, mutant)


def run(paths: list[str], part: int, parts: int) -> Counter[str]:
    """Every chosen mutant on one server."""
    chosen = [mutant for path in paths for mutant in mutants(path)][part::parts]
    seen: Counter[str] = Counter(mutants=len(chosen), killed=0, survived=0, stillborn=0)
    with tempfile.TemporaryDirectory(prefix="hub-mutants-") as folder:
        server = PrivatePostgres(Path(folder) / "pg", durable=False)
        server.start()
        try:
            server.create_database(TEMPLATE)
            kernel.migrations.migrate(server.url(TEMPLATE, OWNER_ROLE))
            server.create_database(SHARED, template=TEMPLATE)
            for name in DEAR:
                import_module(name)
            if run_tests(server, None) != "survived":
                raise SystemExit("the tests fail without any mutant")
            previous = FUNCTIONS
            for number, mutant in enumerate(chosen, start=1):
                if previous == FUNCTIONS != mutant.path:
                    replace_functions(server, (ROOT / FUNCTIONS).read_text(encoding="utf-8"))
                previous = mutant.path
                fate = verdict(server, mutant)
                seen[fate] += 1
                if fate == "survived":
                    print(f"{mutant.path}:{mutant.line}\n  - {mutant.before}\n  + {mutant.after}", flush=True)
                print(f"{number}/{len(chosen)} {fate}", file=sys.stderr, flush=True)
        finally:
            server.stop()
    return seen


def main() -> None:
    """Run the chosen mutants and print what became of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="files whose path contains this")
    parser.add_argument("--part", default="0/1", help="every N-th mutant from the K-th on, as K/N")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON line")
    asked = parser.parse_args()
    part, parts = map(int, asked.part.split("/"))
    result = run([path for path in FILES if asked.only in path], part, parts)
    print(json.dumps(result) if asked.json else json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
