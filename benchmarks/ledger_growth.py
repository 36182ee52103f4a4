"""Does a posting cost more in a bigger ledger, and how long and how much memory does the audit take?

Three copies of the funded ledger are filled by set to 10⁴, 10⁶ and 10⁷ transfers, postings are measured on
each, taking turns and with pgbench as the yardstick of the machine's mood, and the second one is audited.

Ids are derived, so they fall anywhere in the primary key's index, and PostgreSQL logs the whole of each page that
is touched for the first time after a checkpoint. In a big ledger that first pass is long: the copies are warmed up
before they are measured, and what the warm-up itself reached is reported beside it as `first_touch_per_s`.
"""

import threading
import time
from pathlib import Path
from statistics import median
from typing import Final

from sqlalchemy import text

from benchmarks.ledger_load import (
    AT,
    FUNDING_MICROS,
    PHASES,
    SPENDING,
    SPENDING_IDS,
    VOUCHER_IDS,
    VOUCHERS,
    Run,
    pgbench_tps,
    say,
)
from kernel.database import open_engine, transaction
from kernel.postgres import PrivatePostgres
from ledger.audit import audit

SIZES: Final = (10_000, 1_000_000, 10_000_000)
AUDITED: Final = SIZES[1]
WARM_UP_S: Final = 30

_FILL: Final = """
INSERT INTO transfers
SELECT md5('fill' || n)::uuid, 'posted', v.ids[n % {vouchers} + 1], s.ids[n % {spending} + 1], 1,
       NULL, NULL, NULL, 'fill', 'fill/' || n, :at,
       n / {vouchers} + 2, n / {vouchers} + 1, {funding}, 0, 0, n / {spending} + 1, 0, n / {spending} + 1, 0, 0
  FROM generate_series({start}, {end} - 1) AS g(n),
       (SELECT CAST(:vouchers AS uuid[])) AS v(ids), (SELECT CAST(:spending AS uuid[])) AS s(ids);
"""
_FILLED: Final = """
UPDATE accounts a SET debits_posted = d.amount, version = d.n + 1
  FROM (SELECT debit, count(*) AS n, sum(amount) AS amount FROM transfers WHERE movement = 'fill' GROUP BY 1) d
 WHERE a.id = d.debit;
UPDATE accounts a SET credits_posted = c.amount, version = c.n
  FROM (SELECT credit, count(*) AS n, sum(amount) AS amount FROM transfers WHERE movement = 'fill' GROUP BY 1) c
 WHERE a.id = c.credit;
"""


def fill(server: PrivatePostgres, database: str, size: int) -> None:
    """A copy of the funded ledger with `size` transfers, written by set so that 10⁷ take minutes, not hours."""
    server.create_database(database, template="ledger")
    engine = open_engine(server.url(database, "postgres"))
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))
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


def growth(server: PrivatePostgres, rounds: int, seconds: int) -> dict[str, object]:
    """Median postings per second, plain and as ratios to pgbench, at each size; and the audit's cost."""
    databases = {size: f"ledger_{size}" for size in SIZES}
    for size, database in databases.items():
        started = time.monotonic()
        fill(server, database, size)
        say(f"filled {database} in {time.monotonic() - started:.0f} s")
    result = audit_cost(server, databases[AUDITED])
    say(f"audit: {result}")
    first_touch = {
        size: Run(server, database).rate(PHASES[1], WARM_UP_S) for size, database in databases.items()
    }
    say(f"warm-up: {first_touch}")
    rates: dict[tuple[int, str], list[tuple[float, float]]] = {}
    for number in range(1, rounds + 1):
        for size, database in databases.items():
            run = Run(server, database)
            for phase in PHASES[:2]:
                pair = (run.rate(phase, seconds), pgbench_tps(server, seconds))
                rates.setdefault((size, phase.name), []).append(pair)
                say(f"{number}/{rounds}: {size:,} {phase.name} {pair[0]:,.0f}/s = {pair[0] / pair[1]:.2f}")
    return result | {
        "first_touch_per_s": {size: round(rate, 1) for size, rate in first_touch.items()},
        "growth": [
            {
                "transfers": size,
                "phase": phase,
                "per_s": round(median(rate for rate, _ in pairs), 1),
                "ratio": round(median(rate / tps for rate, tps in pairs), 3),
            }
            for (size, phase), pairs in rates.items()
        ],
    }
