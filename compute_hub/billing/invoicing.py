"""Closing a month: what was charged and not yet invoiced becomes one numbered invoice per tenant, once.

A draft is computed and never stored; a final invoice is written once and never changed. What is reported late, or is
charged again after a correction, stands on the next invoice under the month it was used in. What is given back after
it was invoiced becomes a credit note. Every sum is taken by the database, so a month of a million records is one query.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from compute_hub.billing.domain.days import local_date, month_span
from compute_hub.billing.domain.invoices import Line, Totals, add_up
from compute_hub.billing.domain.terms import STANDARD, Terms
from compute_hub.billing.owing import note_debts
from compute_hub.billing.tables import InvoiceLineRow, InvoiceRow, InvoiceSeriesRow
from kernel.clock import from_unix_ms, unix_ms
from kernel.errors import Conflict, NotFound
from kernel.ids import derived_id
from ledger.domain.transfers import Transfer, posted
from ledger.posting import post_all
from vouchers import accounts
from vouchers.enterprises import lock_tenants, profile


class MonthNotOver(Conflict):
    """A month can be closed when it has ended."""

    sentence = "month: {month} has not ended at the centre; it can be closed from {ends_at} on."


class MonthClosed(Conflict):
    """A month is closed once."""

    sentence = "month: {month} was closed for this tenant by invoice {number}; corrections are credit notes."


class LaterMonthClosed(Conflict):
    """Months are closed in order."""

    sentence = (
        "month: {later} was closed by invoice {number} before {month}; what was used in {month} stands there."
    )


class NothingToInvoice(Conflict):
    """There is nothing to ask for."""

    sentence = "{what}"


class InvoiceNotFound(NotFound):
    """No invoice has this id, or it is another tenant's."""

    sentence = "There is no invoice {invoice}."


@dataclass(frozen=True)
class Draft:
    """What a month would come to if it were closed now."""

    tenant_id: UUID
    month: str
    lines: tuple[Line, ...]
    totals: Totals
    on_credit: Mapping[UUID, int]
    """Per enterprise what was taken from its credit line: the tenant's own, or that of who pays for it."""


# The charges that are due: used in the month or before, on no invoice yet and not replaced by another. `paid_before` is
# what earlier papers say was paid of them, `paid_now` what stands after all that was given back.
_DUE: Final = """
    SELECT charges.*, 0 AS paid_before, amount_micros - coalesce(covered_charges.restored_micros, 0) AS paid_now
    FROM charges LEFT JOIN covered_charges ON covered_charges.charge_id = charges.id
    WHERE charges.tenant_id = :tenant AND month <= :month
      AND NOT EXISTS (SELECT FROM charge_corrections WHERE charge_corrections.charge_id = charges.id)
      AND NOT EXISTS (SELECT FROM invoiced_charges WHERE invoiced_charges.charge_id = charges.id)
"""
_CREDITABLE: Final = """
    SELECT charges.*, amount_micros - covered_charges.restored_micros AS paid_now,
           amount_micros - invoiced_charges.restored_micros
           - coalesce((SELECT sum(credited_charges.restored_micros) FROM credited_charges
                       WHERE credited_charges.charge_id = charges.id), 0) AS paid_before
    FROM charges JOIN invoiced_charges ON invoiced_charges.charge_id = charges.id
    JOIN covered_charges ON covered_charges.charge_id = charges.id WHERE invoiced_charges.invoice_id = :invoice
"""


def draft_invoice(session: Session, tenant_id: UUID, month: str, *, terms: Terms = STANDARD) -> Draft:
    """What a month would come to, with the tax of its last day; it need not be over.

    Raises:
        MalformedMonth, NoTaxRate.
    """
    vat_ppm = terms.vat_ppm(_last_day(month))
    return _draft(session, _DUE, {"tenant": tenant_id, "month": month}, tenant_id, month, vat_ppm)


def close_month(
    session: Session, tenant_id: UUID, month: str, *, by: UUID, at: datetime, terms: Terms = STANDARD
) -> InvoiceRow:
    """Make a tenant's invoice for a month final and number it.

    Raises:
        EnterpriseNotFound, MalformedMonth, MonthNotOver, MonthClosed, LaterMonthClosed, NothingToInvoice,
        NoTaxRate, NoWorkday.
    """
    lock_tenants(session, [tenant_id])
    _check_closable(session, tenant_id, month, at)
    draft = draft_invoice(session, tenant_id, month, terms=terms)
    if not draft.lines:
        raise NothingToInvoice(
            what=f"month: nothing was charged until the end of {month} that is not invoiced."
        )
    row = _write(session, draft, "invoice", None, "", by, at, terms)
    asked = {"tenant": tenant_id, "month": month, "made": row.id}
    session.execute(text(_SETTLED.format(charges=_DUE)), asked)
    session.execute(text(_INVOICED.format(charges=_DUE)), asked)
    return row


def credit_invoice(
    session: Session, invoice_id: UUID, *, reason: str, by: UUID, at: datetime, terms: Terms = STANDARD
) -> InvoiceRow:
    """Write a credit note, at its invoice's tax, for what was given back of that since it was issued.

    Raises:
        InvoiceNotFound, NothingToInvoice, NoWorkday.
    """
    invoice = session.get(InvoiceRow, invoice_id)
    if invoice is None or invoice.kind != "invoice":
        raise InvoiceNotFound(invoice=invoice_id)
    lock_tenants(session, [invoice.tenant_id])
    asked: dict[str, Any] = {"invoice": invoice_id}
    draft = _draft(session, _CREDITABLE, asked, invoice.tenant_id, invoice.month, invoice.vat_ppm)
    if not draft.lines:
        raise NothingToInvoice(
            what=f"Nothing of invoice {invoice.number} was given back that is not credited yet."
        )
    row = _write(session, draft, "credit_note", invoice_id, reason, by, at, terms)
    asked["made"] = row.id
    session.execute(text(_SETTLED.format(charges=_CREDITABLE)), asked)
    session.execute(text(_CREDITED.format(charges=_CREDITABLE)), asked)
    return row


def tenants_to_close(session: Session, month: str) -> list[UUID]:
    """Tenants with something to invoice for a month or before, in order of their ids."""
    query = text("""
        SELECT DISTINCT tenant_id FROM charges WHERE month <= :month
        AND NOT EXISTS (SELECT FROM charge_corrections WHERE charge_corrections.charge_id = charges.id)
        AND NOT EXISTS (SELECT FROM invoiced_charges WHERE invoiced_charges.charge_id = charges.id)
        ORDER BY tenant_id""")
    return list(session.scalars(query, {"month": month}))


def _check_closable(session: Session, tenant_id: UUID, month: str, at: datetime) -> None:
    ends_ms = month_span(month).end_ms
    if unix_ms(at) < ends_ms:
        raise MonthNotOver(month=month, ends_at=local_date(ends_ms).isoformat())
    last = session.scalars(
        select(InvoiceRow)
        .where(InvoiceRow.tenant_id == tenant_id, InvoiceRow.kind == "invoice", InvoiceRow.month >= month)
        .order_by(InvoiceRow.month)
        .limit(1)
    ).one_or_none()
    if last is not None and last.month == month:
        raise MonthClosed(month=month, number=last.number)
    if last is not None:
        raise LaterMonthClosed(month=month, later=last.month, number=last.number)


def _last_day(month: str) -> date:
    return local_date(month_span(month).end_ms - 1)


def _draft(
    session: Session, charges: str, asked: dict[str, Any], tenant_id: UUID, month: str, vat_ppm: int
) -> Draft:
    """What charges come to; of an invoice what is paid now, of a credit note what is no longer paid."""
    sign = 1 if charges is _DUE else -1
    rows = session.execute(text(_LINES.format(charges=charges)), asked).all()
    gross, voucher, prepaid = session.execute(text(_SUMS.format(charges=charges)), asked).one()
    on_credit = {
        payer: sign * int(micros)
        for payer, micros in session.execute(text(_ON_CREDIT.format(charges=charges)), asked)
    }
    credit = sign * sum(on_credit.values())
    lines = [
        Line(model, used_in, rate_id, window, price, int(slot_ms), sign * int(paid), int(forgone))
        for model, used_in, rate_id, window, price, slot_ms, paid, forgone in rows
        if sign > 0 or paid
    ]
    return Draft(
        tenant_id=tenant_id,
        month=month,
        lines=tuple(lines),
        on_credit=on_credit,
        totals=add_up(
            gross_micros=sign * int(gross),
            voucher_micros=sign * int(voucher),
            rounding_micros=sign * int(gross - voucher - prepaid) - credit,
            prepaid_micros=sign * int(prepaid),
            credit_micros=credit,
            vat_ppm=vat_ppm,
        ),
    )


# One line per model, month and price. What of a charge is not paid is what its last lines cost: a charge is unwound
# from its newest end.
_LINES: Final = """
    WITH due AS ({charges}), priced AS (
        SELECT due.model, due.month, rate_id, time_window, price_micros, charge_lines.slot_ms, cost_micros,
               paid_before, paid_now,
               sum(cost_micros) OVER (PARTITION BY charge_id ORDER BY line) - cost_micros AS earlier
        FROM charge_lines JOIN due ON due.id = charge_id
    ), parts AS (
        SELECT *, greatest(0, least(cost_micros, paid_now - earlier)) AS now_part,
               greatest(0, least(cost_micros, paid_before - earlier)) AS before_part
        FROM priced)
    SELECT model, month, rate_id, time_window, price_micros, sum(slot_ms), sum(now_part - before_part),
           CASE WHEN sum(before_part) = 0 THEN sum(cost_micros - now_part) ELSE 0 END
    FROM parts GROUP BY 1, 2, 3, 4, 5 ORDER BY month, model, price_micros DESC, time_window, rate_id
"""

# What sources paid, less what was given back to them and no earlier paper has told of; rounding is what is left over.
_PAID: Final = """
    WITH due AS ({charges}), paid AS (
        SELECT source, direction, payer_id, sum(CASE WHEN paid_before = 0 AND NOT EXISTS (
                   SELECT FROM invoiced_charges WHERE invoiced_charges.charge_id = due.id)
               THEN coverage_lines.amount_micros ELSE 0 END - coalesce(back.amount_micros, 0)) AS micros
        FROM due JOIN coverage_lines ON coverage_lines.charge_id = due.id LEFT JOIN LATERAL (
            SELECT sum(restorations.amount_micros) AS amount_micros FROM restorations
            WHERE line_id = coverage_lines.id AND kind = 'restored' AND NOT EXISTS (
                SELECT FROM settled_restorations WHERE restoration_id = restorations.id)) AS back ON true
        GROUP BY source, direction, payer_id)
"""
_SUMS: Final = f"""{_PAID}
    SELECT (SELECT coalesce(sum(paid_now - paid_before), 0) FROM due),
           coalesce(sum(micros) FILTER (WHERE source = 'voucher' AND direction <> 'buyer_reimbursed'), 0),
           coalesce(sum(micros) FILTER (WHERE source = 'prepaid'), 0)
    FROM paid
"""  # noqa: S608 - made of constants only
_ON_CREDIT: Final = f"""{_PAID}
    SELECT payer_id, sum(micros) FROM paid WHERE source = 'credit' GROUP BY payer_id HAVING sum(micros) <> 0
"""  # noqa: S608 - made of constants only

_SETTLED: Final = """
    INSERT INTO settled_restorations (restoration_id, invoice_id)
    SELECT restorations.id, :made FROM ({charges}) AS due JOIN coverage_lines ON coverage_lines.charge_id = due.id
    JOIN restorations ON line_id = coverage_lines.id WHERE restorations.kind = 'restored' AND NOT EXISTS (
        SELECT FROM settled_restorations WHERE restoration_id = restorations.id)
"""
_INVOICED: Final = """
    INSERT INTO invoiced_charges (charge_id, invoice_id, restored_micros)
    SELECT id, :made, amount_micros - paid_now FROM ({charges}) AS due
"""
_CREDITED: Final = """
    INSERT INTO credited_charges (charge_id, invoice_id, restored_micros)
    SELECT id, :made, paid_before - paid_now FROM ({charges}) AS due WHERE paid_before > paid_now
"""


def _write(
    session: Session,
    draft: Draft,
    kind: str,
    refers_to: UUID | None,
    reason: str,
    by: UUID,
    at: datetime,
    terms: Terms,
) -> InvoiceRow:
    """Number an invoice, write it and its lines, and post what rounding to the fen moves."""
    credit_code, buyer = profile(session, draft.tenant_id)
    series = f"{'INV' if kind == 'invoice' else 'CN'}-{local_date(unix_ms(at)).year}"
    sequence = _next_number(session, series)
    totals = draft.totals
    row = InvoiceRow(
        id=derived_id("invoice", series, sequence),
        tenant_id=draft.tenant_id,
        kind=kind,
        series=series,
        sequence=sequence,
        number=f"{series}-{sequence:06d}",
        month=draft.month,
        refers_to=refers_to,
        buyer={"name": buyer.name, "credit_code": credit_code},
        gross_micros=totals.gross_micros,
        voucher_micros=totals.voucher_micros,
        tenant_micros=totals.tenant_micros,
        rounding_micros=totals.rounding_micros,
        prepaid_micros=totals.prepaid_micros,
        credit_micros=totals.credit_micros,
        fen_micros=totals.fen_micros,
        payable_micros=totals.payable_micros,
        vat_ppm=totals.vat_ppm,
        vat_micros=totals.vat_micros,
        reason=reason,
        issued_by=by,
        issued_at=at,
        due_at=from_unix_ms(terms.due_ms(local_date(unix_ms(at)))),
    )
    session.add(row)
    session.flush()
    for number, line in enumerate(draft.lines, 1):
        session.add(
            InvoiceLineRow(
                invoice_id=row.id,
                line=number,
                model=line.model,
                month=line.month,
                rate_id=line.rate_id,
                window=line.window,
                price_micros=line.price_micros,
                slot_ms=line.slot_ms,
                amount_micros=line.amount_micros,
                forgone_micros=line.forgone_micros,
            )
        )
    session.flush()
    note_debts(session, row, draft.on_credit)
    _post_rounding(session, row, at)
    return row


def _next_number(session: Session, series: str) -> int:
    """The next number of a series; the row stays locked until the invoice is committed, so no number is lost."""
    statement = insert(InvoiceSeriesRow).values(series=series, last=1)
    taken = statement.on_conflict_do_update(
        index_elements=[InvoiceSeriesRow.series], set_={"last": InvoiceSeriesRow.last + 1}
    ).returning(InvoiceSeriesRow.last)
    return int(session.scalars(taken).one())


def _post_rounding(session: Session, row: InvoiceRow, at: datetime) -> None:
    """Bring the centre's revenue from a tenant to the whole fen that the invoice says."""
    micros = row.fen_micros if row.kind == "invoice" else -row.fen_micros
    if micros == 0:
        return
    revenue = accounts.revenue(row.tenant_id)
    accounts.ensure(session, [accounts.ROUNDING, revenue], at)
    post_all(session, [round_invoice(row.id, row.tenant_id, micros)], at=at)


def round_invoice(invoice_id: UUID, tenant_id: UUID, micros: int) -> Transfer:
    """The centre bears what rounding an invoice up to the fen adds, and keeps what rounding down leaves."""
    revenue = accounts.revenue(tenant_id)
    debit, credit = (accounts.ROUNDING, revenue) if micros > 0 else (revenue, accounts.ROUNDING)
    return posted(
        derived_id("transfer", "round_invoice", invoice_id),
        debit=debit.id,
        credit=credit.id,
        amount=abs(micros),
        movement="round_invoice",
        cause=str(invoice_id),
    )


def lines_of(session: Session, invoice_id: UUID) -> list[InvoiceLineRow]:
    """An invoice's lines in order."""
    query = select(InvoiceLineRow).where(InvoiceLineRow.invoice_id == invoice_id).order_by(InvoiceLineRow.line)
    return list(session.scalars(query))


def find_invoice(session: Session, invoice_id: UUID, *, tenant_id: UUID | None) -> InvoiceRow:
    """One invoice; another tenant's is as if it did not exist. Raises InvoiceNotFound."""
    row = session.get(InvoiceRow, invoice_id)
    if row is None or tenant_id not in {None, row.tenant_id}:
        raise InvoiceNotFound(invoice=invoice_id)
    return row


def charges_of_line(
    session: Session, line: InvoiceLineRow, *, after: UUID | None, limit: int
) -> list[tuple[UUID, UUID, int, int]]:
    """Charge, job, slot-milliseconds and cost of what makes up a line, by charge."""
    query = text("""
        SELECT charges.id, charges.job_id, sum(charge_lines.slot_ms), sum(charge_lines.cost_micros)
        FROM (SELECT charge_id FROM invoiced_charges WHERE invoice_id = :invoice
              UNION SELECT charge_id FROM credited_charges WHERE invoice_id = :invoice) AS standing
        JOIN charges ON charges.id = standing.charge_id JOIN charge_lines ON charge_lines.charge_id = charges.id
        WHERE charges.model = :model AND charges.month = :month AND rate_id = :rate AND time_window = :window
          AND price_micros = :price AND (CAST(:after AS uuid) IS NULL OR charges.id > :after)
        GROUP BY charges.id ORDER BY charges.id LIMIT :limit""")
    asked = {
        "invoice": line.invoice_id,
        "model": line.model,
        "month": line.month,
        "rate": line.rate_id,
        "window": line.window,
        "price": line.price_micros,
        "after": after,
        "limit": limit,
    }
    return [
        (charge, job, int(slot_ms), int(cost)) for charge, job, slot_ms, cost in session.execute(query, asked)
    ]
