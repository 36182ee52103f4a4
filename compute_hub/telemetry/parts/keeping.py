"""Whether the books are kept: the last audit of the ledger, holds that should be gone, and the database itself."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import text
from sqlalchemy.orm import Session

from compute_hub.telemetry.centre import Part
from compute_hub.telemetry.families import Family, Sample

DIFFERENCES = Family(
    "hub_ledger_audit_differences", "What the last audit of the ledger found not to follow from the transfers."
)
AUDIT_AGE = Family("hub_ledger_audit_age_seconds", "How long ago the ledger was last audited.")
AUDIT_DURATION = Family("hub_ledger_audit_duration_seconds", "How long the last audit of the ledger took.")
CHECKPOINT_AGE = Family(
    "hub_ledger_checkpoint_age_seconds",
    "How long ago the ledger was last known to be right: the last audit that found nothing.",
)
CHECKPOINT_TRANSFERS = Family(
    "hub_ledger_checkpoint_transfers", "Transfers that the last audit without differences added up."
)
TRANSFERS = Family("hub_ledger_audit_transfers", "Transfers that the last audit of the ledger added up.")
HOLDS = Family(
    "hub_holds",
    "Holds for jobs that are open, by the job's state: live, ended, or leaked (it ended over 15 minutes ago).",
    ("job",),
)
SIZE = Family("hub_database_size_bytes", "Size of the database.")
CONNECTIONS = Family("hub_database_connections", "Connections to the database.")
TRANSACTIONS = Family(
    "hub_database_transactions_total", "Transactions of the database, by outcome.", ("outcome",), "counter"
)
DEADLOCKS = Family("hub_database_deadlocks_total", "Deadlocks that the database has broken.", (), "counter")
LONGEST = Family(
    "hub_database_longest_transaction_seconds", "How long the oldest open transaction has lasted; 0 if none."
)

_AUDIT = text("""
    SELECT differences, transfers, audited_at, duration_ms FROM ledger_audits ORDER BY audited_at DESC, id LIMIT 1""")
_CHECKPOINT = text("""
    SELECT transfers, audited_at FROM ledger_audits WHERE differences = 0 ORDER BY audited_at DESC, id LIMIT 1""")
_HOLDS = text("""
    SELECT CASE WHEN j.ended_at IS NULL THEN 'live' WHEN j.ended_at < :long_ago THEN 'leaked' ELSE 'ended' END, count(*)
      FROM job_holds h LEFT JOIN jobs j ON j.id = h.job_id WHERE h.state = 'open' GROUP BY 1""")
_DATABASE = text("""
    SELECT pg_database_size(datname), numbackends, xact_commit, xact_rollback, deadlocks,
           (SELECT coalesce(extract(epoch FROM max(clock_timestamp() - xact_start)), 0) FROM pg_stat_activity
             WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL)
      FROM pg_stat_database WHERE datname = current_database()""")
_LEAKED_AFTER: Final = timedelta(minutes=15)


def keeping() -> Part:
    """Audit, holds and database."""

    def read(session: Session, at: datetime) -> Iterator[Sample]:
        for differences, transfers, audited_at, duration_ms in session.execute(_AUDIT):
            yield DIFFERENCES(differences)
            yield TRANSFERS(transfers)
            yield AUDIT_AGE((at - audited_at).total_seconds())
            yield AUDIT_DURATION(duration_ms / 1000)
        for transfers, audited_at in session.execute(_CHECKPOINT):
            yield CHECKPOINT_TRANSFERS(transfers)
            yield CHECKPOINT_AGE((at - audited_at).total_seconds())
        yield from (HOLDS(0, state) for state in ("live", "ended", "leaked"))
        for state, count in session.execute(_HOLDS, {"long_ago": at - _LEAKED_AFTER}):
            yield HOLDS(count, state)
        size, backends, committed, rolled_back, deadlocks, longest = session.execute(_DATABASE).one()
        yield SIZE(size)
        yield CONNECTIONS(backends)
        yield TRANSACTIONS(committed, "committed")
        yield TRANSACTIONS(rolled_back, "rolled_back")
        yield DEADLOCKS(deadlocks)
        yield LONGEST(float(longest))

    families = (
        DIFFERENCES, AUDIT_AGE, AUDIT_DURATION, TRANSFERS, CHECKPOINT_AGE, CHECKPOINT_TRANSFERS, HOLDS,
        SIZE, CONNECTIONS, TRANSACTIONS, DEADLOCKS, LONGEST,
    )  # fmt: skip
    return Part("keeping", 2000, families, read)
