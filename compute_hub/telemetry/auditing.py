"""The ledger audited again and again, by whichever biller comes first, and the outcome kept for the metrics."""

import threading
from datetime import datetime, timedelta
from typing import Final

import structlog
from sqlalchemy import Engine, func, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from compute_hub.telemetry.tables import LedgerAuditRow
from kernel.clock import boottime_ms, utc_now
from kernel.database import transaction
from kernel.ids import derived_id
from ledger.audit import audit

_LOCK: Final = 0x6C656467
"""Advisory lock of the audit: two at one time would only cost twice."""

_EXPLANATIONS_MAX: Final = 10
_log = structlog.get_logger(__name__)


def audit_if_due(engine: Engine, interval_ms: int, at: datetime) -> LedgerAuditRow | None:
    """Audit if the last one is older than the interval and nobody else is at it; the outcome, which is kept."""
    with transaction(engine) as session:
        # Every check must see the same ledger.
        session.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
        if not session.scalar(select(func.pg_try_advisory_xact_lock(_LOCK))) or not _due(
            session, interval_ms, at
        ):
            return None
        began_ms = boottime_ms()
        report = audit(session)
        row = LedgerAuditRow(
            id=derived_id("ledger-audit", at.isoformat()),
            audited_at=at,
            duration_ms=boottime_ms() - began_ms,
            accounts=report.accounts,
            transfers=report.transfers,
            differences=len(report.differences),
            explanations=[difference.explanation for difference in report.differences[:_EXPLANATIONS_MAX]],
        )
        session.add(row)
    if not report.clean:
        _log.error("ledger_audit_failed", differences=row.differences, explanations=row.explanations)
    return row


def _due(session: Session, interval_ms: int, at: datetime) -> bool:
    last = session.scalar(select(func.max(LedgerAuditRow.audited_at)))
    return last is None or last <= at - timedelta(milliseconds=interval_ms)


def keep_auditing(engine: Engine, interval_ms: int, stopping: threading.Event) -> threading.Thread:
    """Audit in a thread of its own until told to stop, so that a long audit delays no bill."""

    def run() -> None:
        while True:
            try:
                audit_if_due(engine, interval_ms, utc_now())
            except DBAPIError as error:
                _log.error("database_failed", reason=str(error.orig))
            if stopping.wait(min(interval_ms, 60_000) / 1000):
                return

    thread = threading.Thread(target=run, name="ledger-audit", daemon=True)
    thread.start()
    return thread
