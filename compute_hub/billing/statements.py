"""A tenant's day: what was charged, by job; what came in and went out of its own money; balances before and after.

Derived from charges and the ledger alone, by the instant at which each was made; a day that is over never changes,
because both are only added to: usage that is reported later is charged later, and stands on that day.
"""

from dataclasses import dataclass
from datetime import date
from typing import Final
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from compute_hub.billing.domain.days import day_span
from kernel.clock import from_unix_ms
from vouchers import accounts

_MOVED: Final = text("""
    SELECT movement, sum(CASE side WHEN 'credit' THEN amount ELSE -amount END) FROM entries
     WHERE account_id = :account AND at >= :since AND at < :until AND kind IN ('posted', 'capture', 'reversal')
     GROUP BY movement ORDER BY movement""")
# What was posted until an instant may follow, in the account's own order, what was posted at it: two who post at
# midnight read two clocks. So the latest balance of all is taken, less everything from that instant on.
_BALANCE: Final = text("""
    SELECT coalesce((SELECT credits_posted - debits_posted FROM entries WHERE account_id = :account
                      ORDER BY sequence DESC LIMIT 1), 0)
         - coalesce((SELECT sum(CASE side WHEN 'credit' THEN amount ELSE -amount END) FROM entries
                      WHERE account_id = :account AND at >= :until
                        AND kind IN ('posted', 'capture', 'reversal')), 0)""")


@dataclass(frozen=True)
class JobDay:
    """What one job was charged in a day."""

    job_id: UUID
    name: str
    model: str
    slot_ms: int
    cost_micros: int
    voucher_micros: int
    tenant_micros: int
    forgone_micros: int


@dataclass(frozen=True)
class Movement:
    """All movements of one kind on one of the tenant's accounts in a day; credits are positive."""

    account: str
    movement: str
    micros: int


@dataclass(frozen=True)
class Statement:
    """A day at the centre. Balances are what was posted; what is held for running jobs is still in them."""

    day: date
    prepaid_before_micros: int
    prepaid_after_micros: int
    credit_before_micros: int
    credit_after_micros: int
    jobs: tuple[JobDay, ...]
    movements: tuple[Movement, ...]


def daily_statement(session: Session, tenant_id: UUID, day: date) -> Statement:
    """A tenant's statement for a local day."""
    span = day_span(day)
    asked = {"tenant": tenant_id, "since": from_unix_ms(span.start_ms), "until": from_unix_ms(span.end_ms)}
    own = {"prepaid": accounts.wallet(tenant_id).id, "credit": accounts.credit_line(tenant_id).id}
    jobs = session.execute(
        text("""
            SELECT charges.job_id, jobs.name, charges.model, CAST(sum(slot_ms) AS bigint),
                   CAST(sum(amount_micros) AS bigint), CAST(sum(voucher_micros) AS bigint),
                   CAST(sum(tenant_micros) AS bigint), CAST(sum(forgone_micros) AS bigint)
            FROM charges JOIN jobs ON jobs.id = charges.job_id
            WHERE charges.tenant_id = :tenant AND charged_at >= :since AND charged_at < :until
            GROUP BY charges.job_id, jobs.name, charges.model ORDER BY charges.job_id, charges.model"""),
        asked,
    )
    moved = [
        Movement(name, movement, int(micros))
        for name, account in own.items()
        for movement, micros in session.execute(_MOVED, asked | {"account": account})
    ]
    before = {name: _balance(session, account, asked["since"]) for name, account in own.items()}
    after = {
        name: balance + sum(one.micros for one in moved if one.account == name)
        for name, balance in before.items()
    }
    return Statement(
        day=day,
        prepaid_before_micros=before["prepaid"],
        prepaid_after_micros=after["prepaid"],
        credit_before_micros=before["credit"],
        credit_after_micros=after["credit"],
        jobs=tuple(JobDay(*row) for row in jobs),
        movements=tuple(moved),
    )


def _balance(session: Session, account: UUID, until: object) -> int:
    """What an account had posted before an instant."""
    return int(session.scalars(_BALANCE, {"account": account, "until": until}).one())
