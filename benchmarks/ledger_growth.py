"""Does a posting cost more in a bigger ledger, and how long and how much memory does the audit take?

Three copies of the funded ledger are filled by set to 10⁴, 10⁶ and 10⁷ transfers; postings are measured on
each, taking turns, and the second one is audited. Its clients keep their connections and meet every page of the
indexes first: a fresh process maps each page of shared memory at its first touch, and that is not the ledger's
cost. Beside the rate, which rises and falls with whatever else the machine does, stands what does not: the
server's processor time and the bytes of log for each transfer.

The steps are commands of their own on one kept directory (8 GB), so that each fits between other work:
`python -m benchmarks.ledger_growth fill --directory DIR --size N` for each of the sizes (the largest takes minutes;
nothing is measured), then `audit --directory DIR` and `postings --directory DIR --phases single`. Each prints one
JSON object as its last line.

Ids are derived, so they fall anywhere in the primary key's index, and PostgreSQL logs the whole of each page that
is touched for the first time after a checkpoint. In a big ledger that first pass is long: the copies are warmed up
before they are measured, and what the first seconds cost is reported beside it as `first_touch`.
"""

import argparse
import json
import threading
import time
from dataclasses import asdict, astuple
from pathlib import Path
from statistics import median
from typing import Final

from sqlalchemy import text

from benchmarks.ledger_load import (
    AT,
    FUNDING_MICROS,
    HOLD,
    IN_BATCHES,
    SINGLE,
    SPENDING,
    SPENDING_IDS,
    VOUCHER_IDS,
    VOUCHERS,
    Measured,
    Phase,
    Run,
    say,
    set_up,
)
from kernel.database import open_engine, transaction
from kernel.postgres import PrivatePostgres
from ledger.audit import audit

SIZES: Final = (10_000, 1_000_000, 10_000_000)
AUDITED: Final = SIZES[1]
FIRST_S: Final = 10
WARM_UP_TRANSFERS: Final = 200_000
"""The index of 10⁷ derived ids has 50,000 leaf pages; so many postings miss one in fifty of them."""

_FILL: Final = """
INSERT INTO transfers
SELECT md5('fill' || n)::uuid, 'posted', v.ids[n % {vouchers} + 1], s.ids[n % {spending} + 1], 1,
       NULL, NULL, NULL, 'fill', 'fill/' || n, :at,
       n / {vouchers} + 2, n / {vouchers} + 1, {funding}, 0, 0, n / {spending} + 1, 0, n / {spending} + 1, 0, 0
  FROM generate_series({start}, {end} - 1) AS g(n),
       (SELECT CAST(:vouchers AS uuid[])) AS v(ids), (SELECT CAST(:spending AS uuid[])) AS s(ids);
"""
_WITHOUT_INDEXES: Final = """
ALTER TABLE holds DROP CONSTRAINT fk_holds_id;
ALTER TABLE transfers DROP CONSTRAINT fk_transfers_hold_id, DROP CONSTRAINT fk_transfers_reverses,
    DROP CONSTRAINT pk_transfers, DROP CONSTRAINT uq_transfers_debit_debit_sequence,
    DROP CONSTRAINT uq_transfers_credit_credit_sequence;
"""
_FILLED: Final = """
SET LOCAL maintenance_work_mem = '1GB';
ALTER TABLE transfers ADD CONSTRAINT pk_transfers PRIMARY KEY (id) WITH (fillfactor = 70),
    ADD CONSTRAINT uq_transfers_debit_debit_sequence UNIQUE (debit, debit_sequence),
    ADD CONSTRAINT uq_transfers_credit_credit_sequence UNIQUE (credit, credit_sequence);
ALTER INDEX pk_transfers RESET (fillfactor);
ALTER TABLE transfers ADD CONSTRAINT fk_transfers_hold_id FOREIGN KEY (hold_id) REFERENCES transfers,
    ADD CONSTRAINT fk_transfers_reverses FOREIGN KEY (reverses) REFERENCES transfers;
ALTER TABLE holds ADD CONSTRAINT fk_holds_id FOREIGN KEY (id) REFERENCES transfers;
UPDATE accounts a SET debits_posted = d.amount, version = d.n + 1
  FROM (SELECT debit, count(*) AS n, sum(amount) AS amount FROM transfers WHERE movement = 'fill' GROUP BY 1) d
 WHERE a.id = d.debit;
UPDATE accounts a SET credits_posted = c.amount, version = c.n
  FROM (SELECT credit, count(*) AS n, sum(amount) AS amount FROM transfers WHERE movement = 'fill' GROUP BY 1) c
 WHERE a.id = c.credit;
"""


def fill(server: PrivatePostgres, database: str, size: int) -> None:
    """A new copy of the funded ledger with `size` transfers, written by set and indexed afterwards.

    An index of ids that came one by one has leaves that are seven tenths full on average; so this one is made so.
    """
    server.drop_database(database)
    server.create_database(database, template="ledger")
    engine = open_engine(server.url(database, "postgres"))
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.exec_driver_sql(_WITHOUT_INDEXES)
        facts = {"vouchers": VOUCHERS, "spending": SPENDING, "funding": FUNDING_MICROS}
        ids = {"vouchers": VOUCHER_IDS, "spending": SPENDING_IDS}
        for start in range(0, size - VOUCHERS, 1_000_000):
            end = min(start + 1_000_000, size - VOUCHERS)
            connection.execute(
                text(_FILL.format(start=start, end=end, **facts)),
                {"at": AT} | ids,
            )
        for statement in _FILLED.strip().split(";\n"):
            connection.execute(text(statement.rstrip(";")))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))
    engine.dispose()


def audit_cost(server: PrivatePostgres, database: str) -> dict[str, object]:
    """Seconds and memory of one audit: this process, and the private memory of the server's processes."""
    engine = open_engine(server.url(database))
    with transaction(engine) as session:
        backend = session.execute(text("SELECT pg_backend_pid()")).scalar_one()
        stopped = threading.Event()
        peaks = {"client": 0, "server": 0}
        watcher = threading.Thread(target=_watch, args=(backend, peaks, stopped))
        watcher.start()
        started = time.monotonic()
        report = audit(session)
        seconds = time.monotonic() - started
        stopped.set()
        watcher.join()
    engine.dispose()
    return {
        "audit_transfers": report.transfers,
        "audit_s": round(seconds, 1),
        "audit_client_mb": round(peaks["client"] / 1024),
        "audit_server_mb": round(peaks["server"] / 1024),
        "audit_differences": len(report.differences),
    }


def _watch(backend: int, peaks: dict[str, int], stopped: threading.Event) -> None:
    # The backend's parallel workers are its siblings, so all children of the postmaster are summed.
    postmaster = _status(backend, "PPid")
    while not stopped.wait(0.05):
        private = sum(
            _status(int(entry.name), "RssAnon")
            for entry in Path("/proc").iterdir()
            if entry.name.isdecimal() and _status(int(entry.name), "PPid") == postmaster
        )
        peaks["server"] = max(peaks["server"], private)
        peaks["client"] = max(peaks["client"], _status("self", "VmRSS"))


def _status(pid: int | str, field: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), 0)


def growth(server: PrivatePostgres, phases: list[Phase], rounds: int, seconds: int) -> dict[str, object]:
    """What a posting costs at each size."""
    runs = {size: Run(server, database_of(size)) for size in SIZES}
    for run in runs.values():
        run.touch()
    first_touch = {size: warm_up(run) for size, run in runs.items()}
    return {"first_touch": first_touch, "growth": compare_sizes(runs, phases, rounds, seconds)}


def database_of(size: int) -> str:
    """The database that is filled to this size."""
    return f"ledger_{size}"


def warm_up(run: Run) -> dict[str, float]:
    """Post until every page that postings come upon has been touched; tells what the first ones cost."""
    first = run.measure(IN_BATCHES, FIRST_S)
    say(f"first touch: {first}")
    while run.acknowledged < WARM_UP_TRANSFERS:
        run.measure(IN_BATCHES, FIRST_S)
    return rounded(first)


def compare_sizes(
    runs: dict[int, Run], phases: list[Phase], rounds: int, seconds: int
) -> list[dict[str, object]]:
    """Medians of each size and phase; `ratio` is the rate beside that of the smallest in the same round."""
    found: dict[tuple[int, str], list[Measured]] = {}
    for number in range(rounds):
        order = list(runs)[:: -1 if number % 2 else 1]
        for phase in phases:
            for size in order:
                measured = runs[size].measure(phase, seconds)
                found.setdefault((size, phase.name), []).append(measured)
                say(f"{number + 1}/{rounds}: {size:,} {phase.name} {measured}")
    smallest = min(runs)
    return [
        {"transfers": size, "phase": phase}
        | rounded(_median(measured))
        | {
            "ratio": round(
                median(m.per_s / s.per_s for m, s in zip(measured, found[smallest, phase], strict=True)), 3
            )
        }
        for (size, phase), measured in found.items()
    ]


def _median(measured: list[Measured]) -> Measured:
    return Measured(*(median(column) for column in zip(*map(astuple, measured), strict=True)))


def rounded(measured: Measured) -> dict[str, float]:
    """As one prints it."""
    return {name: round(value, 1) for name, value in asdict(measured).items()}


def main() -> None:
    """Do one step and print what came of it."""
    phases = {phase.name: phase for phase in (SINGLE, HOLD, IN_BATCHES)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("fill", "audit", "postings"))
    parser.add_argument("--directory", type=Path, required=True, help="where the server and its ledgers stay")
    parser.add_argument("--size", type=int, choices=SIZES, default=SIZES[0], help="what to fill")
    parser.add_argument("--phases", nargs="+", choices=phases, default=list(phases))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3, help="of each phase in each round")
    asked = parser.parse_args()
    server = PrivatePostgres(asked.directory / "pg", durable=True)
    server.start()
    try:
        result: dict[str, object]
        if asked.step == "fill":
            server.drop_database("ledger")
            set_up(server)
            fill(server, database_of(asked.size), asked.size)
            result = {"filled": asked.size}
        elif asked.step == "audit":
            result = audit_cost(server, database_of(AUDITED))
        else:
            result = growth(server, [phases[name] for name in asked.phases], asked.rounds, asked.seconds)
    finally:
        server.stop()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
