"""Recomputes every balance, hold and history from the raw transfers and says in words what differs.

The database does the arithmetic set by set, so memory stays flat however long the ledger is. Invariant: a
report without differences means that every cached figure follows from the transfers alone and that nothing was
overdrawn at any moment.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from ledger.audit_queries import CHECKS, COUNTS

DIFFERENCES_MAX: Final = 1000


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that does not follow from the transfers: which check found it, and where."""

    check: str
    subject: UUID | str
    explanation: str


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What was recomputed and what differed; `truncated` when there are more differences than are listed."""

    accounts: int
    transfers: int
    holds: int
    differences: tuple[Difference, ...]
    truncated: bool

    @property
    def clean(self) -> bool:
        """Whether nothing differed."""
        return not self.differences


def audit(session: Session, *, differences_max: int = DIFFERENCES_MAX) -> AuditReport:
    """Recompute the whole ledger as this session's transaction sees it.

    For one consistent picture while others post, give it a REPEATABLE READ transaction.
    """
    counts = session.execute(text(COUNTS)).one()
    found: list[Difference] = []
    for difference in _differences(session, differences_max + 1):
        found.append(difference)
        if len(found) > differences_max:
            break
    return AuditReport(
        accounts=counts[0],
        transfers=counts[1],
        holds=counts[2],
        differences=tuple(found[:differences_max]),
        truncated=len(found) > differences_max,
    )


def _differences(session: Session, limit: int) -> Iterator[Difference]:
    for check, query in CHECKS.items():
        for subject, explanation in session.execute(text(f"{query} LIMIT :limit"), {"limit": limit}):
            yield Difference(check, subject, explanation)
