"""What the hub's books say of a replay: read row by row, judged elsewhere."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from compute_hub.replay.recount import Due, Event
from ledger.audit import audit
from ledger.reading import history
from vouchers import accounts
from vouchers.domain.terms import CNY

_HISTORY_PAGE = 5000


@dataclass(frozen=True)
class Invoiced:
    """The sums of a firm's invoices, in micro-yuan."""

    gross: int
    voucher: int
    firm: int
    payable: int
    vat: int


@dataclass(frozen=True)
class Books:
    """Everything the hub says, in micro-yuan; by firm, by charge or by job."""

    charges: Mapping[str, Mapping[str, Due]]
    events: Mapping[str, tuple[Event, ...]]
    invoices: Mapping[str, Invoiced]
    voucher_left: Mapping[str, tuple[int, ...]]
    prepaid: Mapping[str, int]
    metered_slot_ms: Mapping[str, int]
    job_ends: Mapping[str, int]
    forgone: int
    claimed: Mapping[str, int]
    claim_lines: int
    claimable: Mapping[str, int]
    ledger_differences: tuple[str, ...]
    transfers: int
    records: int


_CHARGES = """
    SELECT tenant_id, id, job_id, slot_ms, amount_micros FROM charges ORDER BY job_id, n
"""
_PAID = """
    SELECT charge_id, voucher_id, sum(amount_micros) FROM coverage_lines WHERE source = 'voucher' GROUP BY 1, 2
"""


def read_books(session: Session, firms: Mapping[str, tuple[UUID, Sequence[UUID]]], slug: str) -> Books:
    """The books.

    Args:
        session: to read with.
        firms: by name, the tenant and its vouchers in the order in which they are used up.
        slug: of the programme.
    """
    names = {str(tenant): name for name, (tenant, _) in firms.items()}
    charges: dict[str, dict[str, Due]] = {name: {} for name in firms}
    paid = {(charge, voucher): int(micros) for charge, voucher, micros in session.execute(text(_PAID))}
    of_charge: dict[str, tuple[str, int]] = {}
    for tenant, charge, job, slot_ms, amount in session.execute(text(_CHARGES)):
        name = names[str(tenant)]
        parts = tuple(paid.get((charge, voucher), 0) for voucher in firms[name][1])
        charges[name][str(charge)] = Due(int(amount), parts)
        of_charge[str(charge)] = (str(job), int(slot_ms))
    held = {
        (str(job), int(segment)): int(cost)
        for job, segment, cost in session.execute(
            text("SELECT job_id, segment, cost_micros FROM hold_segments")
        )
    }
    found = audit(session)
    return Books(
        charges=charges,
        events={name: tuple(_events(session, tenant, of_charge, held)) for name, (tenant, _) in firms.items()},
        invoices={name: _invoiced(session, tenant) for name, (tenant, _) in firms.items()},
        voucher_left={
            name: tuple(_balance(session, accounts.voucher(voucher, CNY).id) for voucher in vouchers)
            for name, (_, vouchers) in firms.items()
        },
        prepaid={name: _balance(session, accounts.wallet(tenant).id) for name, (tenant, _) in firms.items()},
        metered_slot_ms=_by_name(session, "SELECT job_id, sum(slot_ms) FROM usage_records GROUP BY 1"),
        job_ends=_by_name(
            session, "SELECT state || ', ' || coalesce(end_reason, ''), count(*) FROM jobs GROUP BY 1"
        ),
        forgone=_one(session, "SELECT coalesce(sum(forgone_micros), 0) FROM charges"),
        claimed={
            names[tenant]: micros
            for tenant, micros in _by_name(
                session,
                "SELECT covered_charges.tenant_id, sum(claim_lines.amount) FROM claim_lines "
                "JOIN coverage_lines ON coverage_lines.id = coverage_line_id "
                "JOIN covered_charges USING (charge_id) GROUP BY 1",
            ).items()
        },
        claim_lines=_one(session, "SELECT count(*) FROM claim_lines"),
        claimable={
            name: _balance(session, accounts.claimable(slug, tenant, CNY).id)
            for name, (tenant, _) in firms.items()
        },
        ledger_differences=tuple(str(one) for one in found.differences),
        transfers=found.transfers,
        records=_one(session, "SELECT count(*) FROM usage_records"),
    )


def _events(
    session: Session,
    tenant: UUID,
    of_charge: Mapping[str, tuple[str, int]],
    held: Mapping[tuple[str, int], int],
) -> list[Event]:
    """The firm's holds, charges and releases in the order of its own account, which takes part in all of them."""
    events: list[Event] = []
    holds: dict[str, tuple[str, str]] = {}
    seen: set[tuple[str, str]] = set()
    after = 0
    while entries := history(session, accounts.wallet(tenant).id, after=after, limit=_HISTORY_PAGE):
        after = entries[-1].sequence
        for entry in entries:
            event = None
            if entry.movement == "hold_funds":
                job, segment, _ = entry.cause.split()
                holds[str(entry.transfer_id)] = job, segment
                event = Event("hold", job, held[job, int(segment)], charge=segment)
            elif entry.movement == "capture_usage":
                charge, _, _ = entry.cause.split()
                job, slot_ms = of_charge[charge]
                event = Event("charge", job, slot_ms, charge)
            elif entry.movement == "release_funds":
                job, segment = holds[entry.cause]
                event = Event("release", job, charge=segment)
            if event is not None and (key := (event.kind, f"{event.job} {event.charge}")) not in seen:
                seen.add(key)
                events.append(event)
    return events


def _invoiced(session: Session, tenant: UUID) -> Invoiced:
    row = session.execute(
        text(
            "SELECT coalesce(sum(gross_micros), 0), coalesce(sum(voucher_micros), 0), "
            "coalesce(sum(tenant_micros), 0), coalesce(sum(payable_micros), 0), coalesce(sum(vat_micros), 0) "
            "FROM invoices WHERE tenant_id = :tenant"
        ),
        {"tenant": tenant},
    ).one()
    return Invoiced(*(int(value) for value in row))


def _balance(session: Session, account_id: UUID) -> int:
    asked: dict[str, Any] = {"id": account_id}
    row = session.execute(text("SELECT credits_posted - debits_posted FROM accounts WHERE id = :id"), asked)
    return int(row.scalar_one_or_none() or 0)


def _one(session: Session, query: str) -> int:
    return int(session.scalars(text(query)).one())


def _by_name(session: Session, query: str) -> dict[str, int]:
    return {str(name): int(value) for name, value in session.execute(text(query))}
