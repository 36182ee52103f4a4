"""Kills clients and database backends at random moments while they post, and looks for lost or doubled money.

`python -m benchmarks.kill_ledger --points N --json` prints `{points, lost, doubled, unbalanced}` as its last
line. Each client works through a list of intentions whose ids are derived, and tells over a pipe which of them
were acknowledged. A point is SIGKILL of a connected client's process or of its backend; a blow that finds nobody
does not count. Whoever takes over starts at the first intention that was not acknowledged and sends it again under
the same id, so each is sent until it is acknowledged. Then each must be in the ledger exactly once:

- lost: intentions that were acknowledged and are not there;
- doubled: transfers that nobody intended, and intentions whose money moved more than once;
- unbalanced: differences found by the audit, and accounts that do not hold what the intentions add up to.
"""

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Final
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from kernel.database import open_engine, transaction
from kernel.ids import derived_id
from kernel.migrations import migrate
from kernel.postgres import OWNER_ROLE, PrivatePostgres
from ledger.audit import audit
from ledger.domain.accounts import CNY, Account, Bound
from ledger.domain.transfers import Transfer, capture, extend, hold, posted, release, reversal
from ledger.posting import open_accounts, post_all
from ledger.reading import balances
from ledger.tables import TransferRow

CLIENTS: Final = 6
STEPS_PER_ROUND: Final = 5
AT: Final = datetime(2026, 1, 1, tzinfo=UTC)
MOVEMENT: Final = "kill"

WORLD = Account(derived_id("kill", "world"), "world", CNY, Bound.NONE)
VOUCHER = Account(derived_id("kill", "voucher"), "voucher", CNY, Bound.CREDIT)
SPENT = Account(derived_id("kill", "spent"), "spent", CNY, Bound.NONE)
FUNDED: Final = 20
SPENT_NET: Final = 3
"""What a round leaves spent: 5 posted and undone, 4 + 2 held of which 3 are captured and 3 released."""
BACKEND_SHARE: Final = 0.05
"""Of the kills; losing a backend makes the server recover for about a second, in which nobody is connected."""
MOMENT_S_MAX: Final = 0.05


def batch(client: int, number: int) -> list[Transfer]:
    """The intention `number` of a client, one atomic batch; the same arguments give the same transfers."""
    round_, step = divmod(number, STEPS_PER_ROUND)

    def name(word: str) -> UUID:
        return derived_id("kill", client, round_, word)

    held = name("hold")
    undone = name("post")
    cause = str(held)
    steps = [
        [
            posted(
                name("fund"),
                debit=WORLD.id,
                credit=VOUCHER.id,
                amount=FUNDED,
                movement=MOVEMENT,
                cause=cause,
            )
        ],
        [
            posted(undone, debit=VOUCHER.id, credit=SPENT.id, amount=5, movement=MOVEMENT, cause=cause),
            hold(
                held,
                debit=VOUCHER.id,
                credit=SPENT.id,
                amount=4,
                expires_at=AT + timedelta(hours=1),
                movement=MOVEMENT,
                cause=cause,
            ),
        ],
        [
            extend(name("extend"), hold_id=held, amount=2, movement=MOVEMENT, cause=cause),
            capture(name("capture"), hold_id=held, amount=3, movement=MOVEMENT, cause=cause),
        ],
        [reversal(name("undo"), reverses=undone, movement=MOVEMENT, cause=cause)],
        [release(name("release"), hold_id=held, movement=MOVEMENT, cause=cause)],
    ]
    return steps[step]


def client(url: str, number: int, start: int, pipe: Connection) -> None:
    """Post intentions from `start` on while the harness lives; tell it the backend and each acknowledgement."""
    harness = os.getppid()
    intention = start
    while os.getppid() == harness:
        engine = open_engine(url, pool_size=1)
        with suppress(DBAPIError), engine.connect() as connection:
            pipe.send(("backend", connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()))
            connection.rollback()
            while os.getppid() == harness:
                with Session(connection) as session, session.begin():
                    post_all(session, batch(number, intention), at=AT)
                pipe.send(("acknowledged", intention))
                intention += 1
        engine.dispose()
        time.sleep(0.01)  # the server is recovering from the loss of a backend


@dataclass
class Worker:
    """A client that can be killed: its process, its pipe, its backend and the intention that comes next."""

    process: BaseProcess
    pipe: Connection
    next_intention: int
    backend: int = 0
    """0 while it is not known to be connected."""

    def listen(self) -> None:
        """Take in what the client has told so far."""
        with suppress(EOFError):
            while self.pipe.poll():
                word, value = self.pipe.recv()
                if word == "backend":
                    self.backend = value
                else:
                    self.next_intention = value + 1

    def kill(self) -> None:
        """SIGKILL; what was told before still counts."""
        self.process.kill()
        self.process.join()
        self.listen()
        self.pipe.close()


class Harness:
    """Clients on one server, killed again and again."""

    def __init__(self, url: str, chance: random.Random) -> None:
        self._url = url
        self._chance = chance
        self._workers = [self._start(number, 0) for number in range(CLIENTS)]

    def run(self, points: int) -> None:
        """Kill at `points` random moments, always letting the victims' work be taken up again."""
        point = 0
        while point < points:
            self._listen_for(self._chance.uniform(0, MOMENT_S_MAX))
            connected = [number for number, worker in enumerate(self._workers) if worker.backend]
            if not connected:
                continue
            number = self._chance.choice(connected)
            if self._chance.random() >= BACKEND_SHARE:
                self._workers[number].kill()
                self._workers[number] = self._start(number, self._workers[number].next_intention)
            elif not self._kill_backend(number):
                continue
            point += 1
            if point % 100 == 0:
                done = sum(worker.next_intention for worker in self._workers)
                print(f"{point} points, {done} intentions acknowledged", file=sys.stderr, flush=True)

    def _kill_backend(self, number: int) -> bool:
        """Whether it was still there; if so, the server drops every connection."""
        victim = self._workers[number].backend
        self._workers[number].backend = 0
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
            for worker in self._workers:
                worker.backend = 0
            return True
        return False

    def finish(self) -> list[int]:
        """Kill every client and tell which intention comes next for each."""
        for worker in self._workers:
            worker.kill()
        return [worker.next_intention for worker in self._workers]

    def _start(self, number: int, intention: int) -> Worker:
        ours, theirs = multiprocessing.Pipe(duplex=False)
        context = multiprocessing.get_context("fork")
        process = context.Process(target=client, args=(self._url, number, intention, theirs), daemon=True)
        process.start()
        theirs.close()
        return Worker(process, ours, intention)

    def _listen_for(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            wait([worker.pipe for worker in self._workers], timeout=left)
            for worker in self._workers:
                worker.listen()


def complete(url: str, upcoming: list[int]) -> list[int]:
    """Send what is left of each client's round, and tell how many intentions each has then.

    The next one is always sent, even where a round is complete: the victim may have sent it and died before it
    could say so, or its backend may still commit it. No victim is further than that, and all that its backend
    can do from now on is to find its transfers posted.
    """
    engine = open_engine(url, pool_size=1)
    ends = [(intention // STEPS_PER_ROUND + 1) * STEPS_PER_ROUND for intention in upcoming]
    for number, (start, end) in enumerate(zip(upcoming, ends, strict=True)):
        intention = start
        while intention < end:
            with suppress(DBAPIError):
                with transaction(engine) as session:
                    post_all(session, batch(number, intention), at=AT)
                intention += 1
    engine.dispose()
    return ends


def verdict(url: str, intentions: list[int]) -> dict[str, int]:
    """Compare the ledger with what was intended."""
    intended = {
        transfer.id
        for number, count in enumerate(intentions)
        for intention in range(count)
        for transfer in batch(number, intention)
    }
    rounds = sum(intentions) // STEPS_PER_ROUND
    engine = open_engine(url)
    with transaction(engine) as session:
        present = Counter(session.scalars(select(TransferRow.id)))
        found = balances(session, [VOUCHER.id, SPENT.id])
        differences = audit(session).differences
    engine.dispose()
    for difference in differences:
        print(difference.explanation, file=sys.stderr)
    expected = {VOUCHER.id: (FUNDED - SPENT_NET) * rounds, SPENT.id: SPENT_NET * rounds}
    wrong = [id_ for id_, net in expected.items() if found[id_].net != net or found[id_].debits_pending]
    return {
        "lost": len(intended - present.keys()),
        "doubled": len(present.keys() - intended) + sum(count - 1 for count in present.values()),
        "unbalanced": len(differences) + len(wrong),
    }


def kill_points(points: int, seed: int) -> dict[str, int]:
    """The whole harness on a durable server of its own."""
    with tempfile.TemporaryDirectory(prefix="hub-kill-") as folder:
        server = PrivatePostgres(Path(folder) / "pg", durable=True)
        server.start()
        try:
            server.create_database("kill")
            migrate(server.url("kill", OWNER_ROLE))
            url = server.url("kill")
            engine = open_engine(url)
            with transaction(engine) as session:
                open_accounts(session, [WORLD, VOUCHER, SPENT], at=AT)
            engine.dispose()
            harness = Harness(url, random.Random(seed))  # noqa: S311 - moments of killing are no secret
            harness.run(points)
            return {"points": points} | verdict(url, complete(url, harness.finish()))
        finally:
            server.stop()


def main() -> None:
    """Run the harness and print what it found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print the result as one JSON line")
    asked = parser.parse_args()
    result = kill_points(asked.points, asked.seed)
    print(json.dumps(result) if asked.json else json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
