"""Statements and invoices: a day, a draft, a closed month, credit notes, and the way from a line to its devices."""

from datetime import date, datetime
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Path, Query
from fastapi.responses import Response
from pydantic import StringConstraints
from sqlalchemy import select
from sqlalchemy.orm import Session

from compute_hub.api.call import Call, Caller
from compute_hub.api.invoice_views import (
    DraftView,
    InvoiceView,
    LineChargeView,
    RecordView,
    StatementView,
    draft_view,
    invoice_view,
    record_view,
    statement_view,
)
from compute_hub.api.shapes import After, Body, Id, Limit, NeededReason, Page, View, page_of
from compute_hub.billing.corrections import ChargeUnknown, records_of
from compute_hub.billing.documents.content import content_of
from compute_hub.billing.documents.pdf import render_pdf
from compute_hub.billing.documents.workbook import render_workbook
from compute_hub.billing.invoicing import (
    InvoiceNotFound,
    charges_of_line,
    close_month,
    credit_invoice,
    draft_invoice,
    find_invoice,
    lines_of,
    tenants_to_close,
)
from compute_hub.billing.statements import daily_statement
from compute_hub.billing.tables import ChargeRow, InvoiceLineRow, InvoiceRow
from kernel.clock import utc_now
from kernel.errors import Invalid
from kernel.money import format_yuan
from scheduler.tables import RunRow

router = APIRouter(prefix="/v1", tags=["invoices"])

Month = Annotated[str, Query(pattern=r"^2[01]\d{2}-(0[1-9]|1[0-2])$", examples=["2026-03"])]
Tenant = Annotated[UUID | None, Query(description="For operators and auditors, who must name one.")]
_MEDIA = {
    "pdf": "application/pdf",
    "xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
}


class TenantNeeded(Invalid):
    """An officer asks for a tenant's paper without saying whose."""

    sentence = "tenant_id: name the enterprise whose statement or draft you want."


class DayOutOfRange(Invalid):
    """A day no hub has seen."""

    sentence = "day: {day} is out of range; the year must lie between 2000 and 2199."


class Closing(Body):
    """Which month to close, for one tenant or for all that have something to pay."""

    month: Annotated[str, StringConstraints(pattern=r"^2[01]\d{2}-(0[1-9]|1[0-2])$")]
    tenant_id: Id | None = None


class CreditRequest(Body):
    """Why a part of an invoice is taken back."""

    reason: NeededReason


class InvoicesView(View):
    """The invoices that closing a month made."""

    items: list[InvoiceView]


@router.get("/statements/{day}", name="show_statement")
def statement(day: date, call: Caller, tenant_id: Tenant = None) -> StatementView:
    """What was charged on a day at the centre, by job, and how the tenant's own balances moved."""
    if day.year not in range(2000, 2200):
        raise DayOutOfRange(day=day)
    return call.read(lambda session: statement_view(daily_statement(session, _whose(call, tenant_id), day)))


@router.get("/invoices:draft", name="draft_invoice")
def draft(call: Caller, month: Month, tenant_id: Tenant = None) -> DraftView:
    """What a month would come to if it were closed now; nothing is numbered or stored."""
    terms = call.settings.billing.terms
    return call.read(
        lambda session: draft_view(session, draft_invoice(session, _whose(call, tenant_id), month, terms=terms))
    )


@router.post("/invoices:close", status_code=201, name="close_month")
def close(body: Closing, call: Caller) -> InvoicesView:
    """Close a month: number one final invoice per tenant. All of them, or none."""
    terms = call.settings.billing.terms

    def action(session: Session, at: datetime) -> InvoicesView:
        tenants = [body.tenant_id] if body.tenant_id is not None else tenants_to_close(session, body.month)
        made = [
            close_month(session, tenant, body.month, by=call.principal.id, at=at, terms=terms)
            for tenant in tenants
        ]
        return InvoicesView(items=[invoice_view(session, row, at) for row in made])

    return call.once(InvoicesView, body, action)


@router.get("/invoices", name="list_invoices")
def invoices(
    call: Caller,
    limit: Limit = 50,
    after: After = None,
    month: Annotated[Month | None, Query(description="Only those of this month.")] = None,
    tenant_id: Annotated[UUID | None, Query(description="Only this enterprise's.")] = None,
) -> Page[InvoiceView]:
    """Invoices and credit notes in the order of their numbers; a tenant's own, or all."""

    def action(session: Session) -> Page[InvoiceView]:
        query = select(InvoiceRow).order_by(InvoiceRow.number).limit(limit)
        if call.scope is not None:
            query = query.where(InvoiceRow.tenant_id == call.scope)
        if tenant_id is not None:
            query = query.where(InvoiceRow.tenant_id == tenant_id)
        if month is not None:
            query = query.where(InvoiceRow.month == month)
        last = None if after is None else session.get(InvoiceRow, after)
        if last is not None:
            query = query.where(InvoiceRow.number > last.number)
        items = [invoice_view(session, row, utc_now()) for row in session.scalars(query)]
        return page_of(items, limit, items[-1].id if items else "")

    return call.read(action)


@router.get("/invoices/{invoice_id}", name="show_invoice")
def show(invoice_id: UUID, call: Caller) -> InvoiceView:
    """One invoice with its lines."""

    def action(session: Session) -> InvoiceView:
        return invoice_view(session, find_invoice(session, invoice_id, tenant_id=call.scope), utc_now())

    return call.read(action)


@router.post("/invoices/{invoice_id}:credit", status_code=201, name="credit_invoice")
def credit(invoice_id: UUID, body: CreditRequest, call: Caller) -> InvoiceView:
    """Write a credit note for what was given back of an invoice since it was issued."""

    def action(session: Session, at: datetime) -> InvoiceView:
        terms = call.settings.billing.terms
        row = credit_invoice(session, invoice_id, reason=body.reason, by=call.principal.id, at=at, terms=terms)
        return invoice_view(session, row, at)

    return call.once(InvoiceView, body, action)


@router.get("/invoices/{invoice_id}/lines/{line}/charges", name="list_line_charges")
def line_charges(
    invoice_id: UUID,
    line: Annotated[int, Path(ge=1, le=2**31)],
    call: Caller,
    limit: Limit = 100,
    after: After = None,
) -> Page[LineChargeView]:
    """The charges a line adds up, each with its job."""

    def action(session: Session) -> Page[LineChargeView]:
        find_invoice(session, invoice_id, tenant_id=call.scope)
        row = session.get(InvoiceLineRow, (invoice_id, line))
        if row is None:
            raise InvoiceNotFound(invoice=f"{invoice_id} line {line}")
        items = [
            LineChargeView(
                charge_id=charge,
                job_id=job,
                slot_ms=slot_ms,
                card_ms=slot_ms // 1000,
                cost_cny=format_yuan(cost),
            )
            for charge, job, slot_ms, cost in charges_of_line(session, row, after=after, limit=limit)
        ]
        return page_of(items, limit, items[-1].charge_id if items else "")

    return call.read(action)


@router.get("/charges/{charge_id}/records", name="list_charge_records")
def charge_records(
    charge_id: UUID,
    call: Caller,
    limit: Limit = 100,
    after: Annotated[int, Query(ge=0, le=2**31, description="How many to leave out.")] = 0,
) -> Page[RecordView]:
    """The meter's records a charge rates, each with the devices it was measured on."""

    def action(session: Session) -> Page[RecordView]:
        charge = session.get(ChargeRow, charge_id)
        if charge is None or call.scope not in {None, charge.tenant_id}:
            raise ChargeUnknown(charge=charge_id)
        records = records_of(session, charge_id)[after : after + limit]
        devices = {
            run.id: [int(device[0]) for device in run.devices]
            for run in session.scalars(select(RunRow).where(RunRow.id.in_({one.run_id for one in records})))
        }
        items = [record_view(record, devices.get(record.run_id, [])) for record in records]
        return page_of(items, limit, after + limit)

    return call.read(action)


@router.get(
    "/invoices/{invoice_id}/document",
    name="invoice_document",
    response_class=Response,
    responses={200: {"content": {media: {} for media in _MEDIA.values()}, "description": "The file."}},
)
def document(
    invoice_id: UUID,
    call: Caller,
    form: Annotated[Literal["pdf", "xlsx"], Query(alias="format")] = "pdf",
    language: Literal["zh", "en"] = "zh",
) -> Response:
    """An invoice or credit note as PDF or Excel workbook, in Chinese or English."""

    def action(session: Session) -> tuple[str, bytes]:
        row = find_invoice(session, invoice_id, tenant_id=call.scope)
        refers = session.get(InvoiceRow, row.refers_to) if row.refers_to is not None else None
        content = content_of(
            row,
            lines_of(session, invoice_id),
            language,
            seller=call.settings.seller,
            refers_to="" if refers is None else refers.number,
        )
        return row.number, render_pdf(content) if form == "pdf" else render_workbook(content)

    number, file = call.read(action)
    headers = {"Content-Disposition": f'attachment; filename="{number}.{form}"'}
    return Response(file, media_type=_MEDIA[form], headers=headers)


def _whose(call: Call, tenant_id: UUID | None) -> UUID:
    """A tenant's own, whatever it names; an officer names one."""
    if call.scope is not None:
        return call.scope
    if tenant_id is None:
        raise TenantNeeded
    return tenant_id
