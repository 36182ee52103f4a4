"""What is owed of invoices: who used its credit line for them, and what that enterprise has paid back since.

An affiliate's invoice may rest on its payer's credit line; then it is settled by the payer's payments, in the order of
all invoices that do, and never by its own.
"""

from collections.abc import Mapping
from uuid import UUID

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from compute_hub.billing.domain.invoices import debts, outstanding
from compute_hub.billing.tables import InvoiceDebtRow, InvoiceRow
from vouchers import accounts


def note_debts(session: Session, row: InvoiceRow, on_credit: Mapping[UUID, int]) -> None:
    """Write whose credit line a new invoice rests on, or a new credit note gives back to."""
    session.add_all(
        InvoiceDebtRow(invoice_id=row.id, payer_id=payer, micros=micros)
        for payer, micros in sorted(debts(on_credit, row.fen_micros).items())
    )
    session.flush()


def owed_micros(session: Session, invoice_id: UUID) -> int:
    """What is still owed of an invoice; nothing of a credit note."""
    payers = session.scalars(select(InvoiceDebtRow.payer_id).where(InvoiceDebtRow.invoice_id == invoice_id))
    return sum(_outstanding(session, payer).get(invoice_id, 0) for payer in payers.all())


def _outstanding(session: Session, payer_id: UUID) -> dict[UUID, int]:
    """What a payer still owes of each invoice that rests on its credit line, oldest first."""
    query = (
        select(InvoiceDebtRow.invoice_id, InvoiceDebtRow.micros)
        .join(InvoiceRow, InvoiceRow.id == InvoiceDebtRow.invoice_id)
        .where(InvoiceDebtRow.payer_id == payer_id, InvoiceRow.kind == "invoice")
        .order_by(InvoiceRow.month, InvoiceRow.issued_at, InvoiceRow.id)
    )
    rows = session.execute(query).all()
    left = outstanding((micros for _, micros in rows), _repaid_micros(session, payer_id))
    return {invoice_id: micros for (invoice_id, _), micros in zip(rows, left, strict=True)}


def _repaid_micros(session: Session, payer_id: UUID) -> int:
    """What an enterprise has ever paid back of its credit line, and what credit notes gave back of it."""
    query = text("""
        SELECT coalesce((SELECT sum(amount) FROM transfers WHERE credit = :line AND movement = 'repay_credit'), 0)
             + coalesce((SELECT sum(micros) FROM invoice_debts JOIN invoices ON invoices.id = invoice_id
                         WHERE payer_id = :payer AND kind = 'credit_note'), 0)
    """)
    line = accounts.credit_line(payer_id).id
    return int(session.scalars(query, {"line": line, "payer": payer_id}).one())
