"""Changes the rules that touch an amount, one small change at a time, and asks whether the tests notice.

`python -m benchmarks.mutants --state FILE --seconds S --json` judges mutants for so long, keeps what it found in the
file and goes on from there the next time; it prints each survivor, and as its last line over all of them
`{mutants, judged, killed, survived, unreached, stillborn, outlived}`. A mutant is one operator, number, name or
statement changed in one place. `unreached` are those whose line no test runs; `stillborn` those that PostgreSQL or
Python refuses to read, or that change nothing: they say nothing about the tests.

Mutants of Python are put into loaded modules (`mutant_swap`) and judged by the tests that run the changed statement
(`mutant_tests`); those of the posting function replace it in the one database that the ledger's tests share, and are
judged by all of these tests, the cheapest first. `--only PART` takes the files whose path contains PART; `--again`
judges survivors anew. `--within S` looks for the easy ones first: what so many seconds of tests do not kill is
`outlived` and judged by all tests when asked without it.
"""

import argparse
import gc
import hashlib
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import ClassVar, Final

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, settings
from sqlalchemy import Engine

import kernel.migrations
import kernel.postgres
from benchmarks.mutant_reach import ROOT, ReachMap
from benchmarks.mutant_swap import NotSwapped, swap
from benchmarks.mutant_tests import KILLED, OUTLIVED, STILLBORN, SURVIVED, UNREACHED, Forking
from benchmarks.mutations import changes
from kernel.database import open_engine
from kernel.postgres import OWNER_ROLE, PrivatePostgres

FUNCTIONS: Final = "migrations/versions/0001_ledger_functions.sql"
FILES: Final = (
    FUNCTIONS,
    "kernel/money.py",
    "ledger/posting.py",
    "ledger/reading.py",
    "ledger/audit.py",
    "ledger/audit_queries.py",
    "ledger/domain/accounts.py",
    "ledger/domain/transfers.py",
    "vouchers/domain/applicability.py",
    "vouchers/domain/calendar.py",
    "vouchers/domain/controllers.py",
    "vouchers/domain/coverage.py",
    "vouchers/domain/eligibility.py",
    "vouchers/domain/forecast.py",
    "vouchers/domain/segments.py",
    "vouchers/domain/terms.py",
    "vouchers/domain/tranches.py",
    "vouchers/accounts.py",
    "vouchers/movements.py",
    "vouchers/means.py",
    "vouchers/funding.py",
    "vouchers/issuing.py",
    "vouchers/redemption.py",
    "vouchers/holding.py",
    "vouchers/open_holds.py",
    "vouchers/capturing.py",
    "vouchers/restoration.py",
    "vouchers/recharging.py",
    "vouchers/claims.py",
    "vouchers/settlement.py",
    "vouchers/clawback.py",
    "vouchers/cycles.py",
    "vouchers/afterlife.py",
    "vouchers/wallets.py",
)
CONSTANTS: Final = {"ledger/audit_queries.py": "ledger/audit.py"}
"""Files of nothing else, and who uses them."""
TESTS: Final = ("tests/kernel/test_money.py", "tests/ledger", "tests/vouchers")
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
    number: int
    source: str

    @property
    def key(self) -> str:
        """The same change of the same text, the `number`th of such, wherever its line has moved to."""
        words = f"{self.path}\0{self.before}\0{self.after}\0{self.number}"
        return hashlib.sha256(words.encode()).hexdigest()[:16]


def mutants(path: str) -> Iterator[Mutant]:
    """Every mutant of a file, from its top to its end."""
    source = (ROOT / path).read_text(encoding="utf-8")
    sql = path.endswith((".sql", "queries.py"))
    lines = source.splitlines()
    alike: Counter[tuple[str, str]] = Counter()
    for number, changed in changes(source, sql=sql):
        before = lines[number - 1]
        whole = "\n".join([*lines[: number - 1], changed, *lines[number:], ""])
        said = before.strip(), changed.strip()
        alike[said] += 1
        yield Mutant(path, number, *said, alike[said], whole)


class Lent(PrivatePostgres):
    """The server that all children share; a child's databases carry its number and are dropped after it."""

    shared: ClassVar[PrivatePostgres]

    def __init__(self, _directory: Path, *, durable: bool = True) -> None:
        """Nothing is made: it is `shared`, whatever is asked for."""
        self._durable = durable
        self._dropped: Counter[str] = Counter()

    def superuser(self, database: str = "postgres") -> psycopg.Connection:
        """On any database of the shared server."""
        return self.shared.superuser(database)

    def url(self, database: str, role: str = kernel.postgres.APP_ROLE) -> str:
        """Of the child's own database of this name."""
        return self.shared.url(self._own(database), role)

    def create_database(self, name: str, *, template: str | None = None) -> None:
        """For this child."""
        self.shared.create_database(self._own(name), template=template)

    def drop_database(self, name: str) -> None:
        """After the child; whoever asks for the name again gets another one."""
        self._dropped[name] += 1

    def start(self) -> None:
        """Runs already."""

    def stop(self) -> None:
        """Goes on for the next mutant."""

    def _own(self, name: str) -> str:
        return name if name in {TEMPLATE, SHARED} else f"{name}_{self._dropped[name]}_of_{os.getpid()}"


class Hunt:
    """All mutants on one server, and what is known of them."""

    def __init__(self, server: PrivatePostgres, state: Path | None, only: Sequence[str]) -> None:
        self._server = server
        self._state = state
        self._known: dict[str, str] = {}
        if state is not None and state.exists():
            self._known = json.loads(state.read_text(encoding="utf-8"))
        chosen = [path for path in FILES if not only or any(part in path for part in only)]
        self.mutants = [mutant for path in chosen for mutant in mutants(path)]

    def forget(self, *fates: str) -> None:
        """Judge these anew."""
        keys = {mutant.key for mutant in self.mutants}
        self._known = {key: fate for key, fate in self._known.items() if key not in keys or fate not in fates}

    def run(self, tests: Forking, seconds: float, within_s: float | None) -> None:
        """Judge what is not known for so many seconds."""
        end = time.monotonic() + seconds
        if within_s is None:
            self.forget(OUTLIVED)
        todo = [mutant for mutant in self.mutants if mutant.key not in self._known]
        if not todo:
            return
        if not tests.measure([path for path in FILES if path.endswith(".py")]):
            raise SystemExit("the tests fail without any mutant")
        self._drop_left_over()
        for mutant in todo:
            if time.monotonic() > end:
                break
            started = time.monotonic()
            fate, killer = self._judge(tests, mutant, within_s)
            self._known[mutant.key] = fate
            said = f"{fate} in {time.monotonic() - started:.1f} s{killer and ' by ' + killer}"
            print(f"{mutant.path}:{mutant.line} {said}: {mutant.after}", file=sys.stderr, flush=True)
            self._drop_left_over()
            if self._state is not None:
                self._state.write_text(json.dumps(self._known), encoding="utf-8")

    def result(self) -> dict[str, int]:
        """How many of each fate, over all mutants asked for."""
        fates = Counter(self._known.get(mutant.key, "open") for mutant in self.mutants)
        judged = len(self.mutants) - fates["open"]
        counts = {fate: fates[fate] for fate in (KILLED, SURVIVED, UNREACHED, STILLBORN, OUTLIVED)}
        return {"mutants": len(self.mutants), "judged": judged} | counts

    def survivors(self) -> Iterator[Mutant]:
        """Those that no test noticed."""
        return (
            mutant for mutant in self.mutants if self._known.get(mutant.key) in {SURVIVED, UNREACHED, OUTLIVED}
        )

    def _judge(self, tests: Forking, mutant: Mutant, within_s: float | None) -> tuple[str, str]:
        """Its fate, and who decided."""
        if mutant.path == FUNCTIONS:
            return self._judge_function(tests, mutant, within_s)
        if mutant.path in CONSTANTS:
            chosen = tests.reach.reaching(CONSTANTS[mutant.path])
        else:
            chosen = tests.reach.reaching(mutant.path, mutant.line)
        if not chosen:
            return UNREACHED, ""
        return self._asked(tests, _placing(mutant), chosen, within_s)

    def _asked(
        self, tests: Forking, place: Callable[[], None], chosen: Sequence[str], within_s: float | None
    ) -> tuple[str, str]:
        first = chosen if within_s is None else tests.reach.within(chosen, within_s)
        fate, last = tests.judge(place, first)
        if fate == SURVIVED and len(first) < len(chosen):
            return OUTLIVED, ""
        return fate, last if fate == KILLED else ""

    def _judge_function(self, tests: Forking, mutant: Mutant, within_s: float | None) -> tuple[str, str]:
        chosen = [name for name in tests.reach.reach if name.startswith("tests/ledger/")]
        try:
            if not self._replace(mutant.source):
                return STILLBORN, ""
            return self._asked(tests, lambda: None, tests.reach.in_order(chosen), within_s)
        finally:
            self._replace((ROOT / FUNCTIONS).read_text(encoding="utf-8"))

    def _replace(self, source: str) -> bool:
        url = self._server.url(SHARED, OWNER_ROLE).replace("+psycopg", "")
        with suppress(psycopg.Error), psycopg.connect(url) as connection:
            connection.execute(source.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION").encode())
            return True
        return False

    def _drop_left_over(self) -> None:
        with self._server.superuser() as connection:
            found = connection.execute(
                "SELECT datname FROM pg_database WHERE datname ~ '_of_[0-9]+$'"
            ).fetchall()
            for (name,) in found:
                connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())


def _placing(mutant: Mutant) -> Callable[[], None]:
    def place() -> None:
        for engine in [found for found in gc.get_objects() if isinstance(found, Engine)]:
            engine.dispose(close=False)  # its connections are the parent's
        module = import_module(mutant.path.removesuffix(".py").replace("/", "."))
        with suppress(NotSwapped):
            swap(module, mutant.path, mutant.source)
            return
        raise SyntaxError(mutant.after)

    return place


def hunt(server: PrivatePostgres, plugin: Forking, paths: Sequence[str]) -> None:
    """Load the tests once and judge."""
    server.create_database(TEMPLATE)
    kernel.migrations.migrate(server.url(TEMPLATE, OWNER_ROLE))
    server.create_database(SHARED, template=TEMPLATE)
    Lent.shared = server
    kernel.postgres.PrivatePostgres = Lent  # type: ignore[misc,assignment] # one server is lent to all
    (open_engine.__kwdefaults__ or {})["idle_ms"] = 0  # a starved test may be idle for long
    kernel.migrations.migrate = lambda owner_url: None  # noqa: ARG005 - the template is migrated
    settings.register_profile(
        "mutants",
        phases=[Phase.generate],
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    settings.load_profile("mutants")
    options = ["-q", "-s", "--disable-plugin-autoload", "-p", "no:cacheprovider", "-m", "not slow"]
    code = pytest.main([*options, *(str(ROOT / path) for path in paths)], plugins=[plugin])
    if code not in {0, 5}:
        raise SystemExit(f"pytest ended with {code}")


def main() -> None:
    """Judge mutants and print what became of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], help="files whose path contains one of these")
    parser.add_argument("--tests", nargs="*", help="judge by these tests instead of all")
    parser.add_argument("--state", type=Path, help="a file that keeps what was found")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="judge for so long")
    parser.add_argument("--within", type=float, help="use no more processor time of tests for each")
    parser.add_argument("--again", action="store_true", help="judge survivors anew")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON line")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hub-mutants-") as folder:
        server = PrivatePostgres(Path(folder) / "pg", durable=False)
        server.start()
        try:
            tempfile.tempdir = folder
            hunted = Hunt(server, asked.state, asked.only)
            if asked.again:
                hunted.forget(SURVIVED, UNREACHED)
            reach = ReachMap(asked.state and asked.state.with_suffix(".reach"))
            plugin = Forking(lambda tests: hunted.run(tests, asked.seconds, asked.within), reach)
            hunt(server, plugin, asked.tests or TESTS)
        finally:
            server.stop()
    for mutant in hunted.survivors():
        print(f"{mutant.path}:{mutant.line}\n  - {mutant.before}\n  + {mutant.after}")
    print(json.dumps(hunted.result(), indent=None if asked.json else 2))


if __name__ == "__main__":
    main()
