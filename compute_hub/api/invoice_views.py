"""How statements and invoices are shown."""

from collections.abc import Iterable
from datetime import date, datetime
from uuid import UUID

from sqlalchemy.orm import Session

from compute_hub.api.shapes import View
from compute_hub.billing.charging import span_of
from compute_hub.billing.domain.invoices import Line, standing
from compute_hub.billing.domain.rate_cards import RateCard
from compute_hub.billing.invoicing import Draft, lines_of
from compute_hub.billing.owing import owed_micros
from compute_hub.billing.statements import Statement
from compute_hub.billing.tables import InvoiceLineRow, InvoiceRow, RateRow
from compute_hub.metering.tables import UsageRecordRow
from kernel.clock import from_unix_ms
from kernel.money import format_yuan


class LineView(View):
    """Card time of one model, month and price; what was forgone was used and is not asked for."""

    line: int
    model: str
    month: str
    time_window: str
    price_cny_per_card_hour: str
    card_ms: int
    amount_cny: str
    forgone_cny: str
    precision: str | None
    pflops_hours: str | None


class TotalsView(View):
    """What a month comes to; what is payable is in whole fen and contains the tax."""

    gross_cny: str
    voucher_cny: str
    rounding_cny: str
    prepaid_cny: str
    credit_cny: str
    fen_rounding_cny: str
    payable_cny: str
    net_cny: str
    vat_cny: str


class DraftView(TotalsView):
    """What a month would come to if it were closed now."""

    tenant_id: UUID
    month: str
    state: str
    lines: list[LineView]


class InvoiceView(TotalsView):
    """A final invoice or credit note. `state` is open, overdue, in_default or paid."""

    id: UUID
    number: str
    kind: str
    tenant_id: UUID
    buyer_name: str
    month: str
    refers_to: UUID | None
    reason: str
    issued_at: datetime
    due_at: datetime
    state: str
    owed_cny: str
    lines: list[LineView]


class LineChargeView(View):
    """A charge that stands in a line, with the part of it that was used at the line's price."""

    charge_id: UUID
    job_id: UUID
    slot_ms: int
    card_ms: int
    cost_cny: str


class RecordView(View):
    """A record of the meter and the devices it was measured on."""

    id: UUID
    node: str
    devices: list[int]
    model: str
    attempt: int
    rank: int
    k: int
    began_at: datetime
    duration_ms: int
    slot_ms: int
    busy_ms: int
    content_sha256: str


class JobDayView(View):
    """What one job was charged in a day."""

    job_id: UUID
    name: str
    model: str
    card_ms: int
    cost_cny: str
    voucher_cny: str
    tenant_cny: str
    forgone_cny: str


class MovementView(View):
    """All movements of one kind on one of the tenant's accounts."""

    account: str
    movement: str
    amount_cny: str


class StatementView(View):
    """A tenant's day."""

    day: date
    prepaid_before_cny: str
    prepaid_after_cny: str
    credit_before_cny: str
    credit_after_cny: str
    jobs: list[JobDayView]
    movements: list[MovementView]


def draft_view(session: Session, draft: Draft) -> DraftView:
    """A draft as it is shown."""
    totals = draft.totals
    cards = _cards(session, draft.lines)
    return DraftView.model_validate(
        {
            "tenant_id": draft.tenant_id,
            "month": draft.month,
            "state": "draft",
            "lines": [_line(number, line, cards[line.rate_id]) for number, line in enumerate(draft.lines, 1)],
            "gross_cny": format_yuan(totals.gross_micros),
            "voucher_cny": format_yuan(totals.voucher_micros),
            "rounding_cny": format_yuan(totals.rounding_micros),
            "prepaid_cny": format_yuan(totals.prepaid_micros),
            "credit_cny": format_yuan(totals.credit_micros),
            "fen_rounding_cny": format_yuan(totals.fen_micros),
            "payable_cny": format_yuan(totals.payable_micros),
            "net_cny": format_yuan(totals.net_micros),
            "vat_cny": format_yuan(totals.vat_micros),
        }
    )


def invoice_view(session: Session, row: InvoiceRow, at: datetime) -> InvoiceView:
    """An invoice as it stands."""
    owed = owed_micros(session, row.id)
    lines = lines_of(session, row.id)
    cards = _cards(session, lines)
    return InvoiceView(
        id=row.id,
        number=row.number,
        kind=row.kind,
        tenant_id=row.tenant_id,
        buyer_name=str(row.buyer["name"]),
        month=row.month,
        refers_to=row.refers_to,
        reason=row.reason,
        issued_at=row.issued_at,
        due_at=row.due_at,
        state=standing(owed, row.due_at, at).value,
        owed_cny=format_yuan(owed),
        lines=[_line(line.line, line, cards[line.rate_id]) for line in lines],
        gross_cny=format_yuan(row.gross_micros),
        voucher_cny=format_yuan(row.voucher_micros),
        rounding_cny=format_yuan(row.rounding_micros),
        prepaid_cny=format_yuan(row.prepaid_micros),
        credit_cny=format_yuan(row.credit_micros),
        fen_rounding_cny=format_yuan(row.fen_micros),
        payable_cny=format_yuan(row.payable_micros),
        net_cny=format_yuan(row.payable_micros - row.vat_micros),
        vat_cny=format_yuan(row.vat_micros),
    )


def statement_view(found: Statement) -> StatementView:
    """A statement as it is shown."""
    return StatementView(
        day=found.day,
        prepaid_before_cny=format_yuan(found.prepaid_before_micros),
        prepaid_after_cny=format_yuan(found.prepaid_after_micros),
        credit_before_cny=format_yuan(found.credit_before_micros),
        credit_after_cny=format_yuan(found.credit_after_micros),
        jobs=[
            JobDayView(
                job_id=job.job_id,
                name=job.name,
                model=job.model,
                card_ms=job.slot_ms // 1000,
                cost_cny=format_yuan(job.cost_micros),
                voucher_cny=format_yuan(job.voucher_micros),
                tenant_cny=format_yuan(job.tenant_micros),
                forgone_cny=format_yuan(job.forgone_micros),
            )
            for job in found.jobs
        ],
        movements=[
            MovementView(account=one.account, movement=one.movement, amount_cny=format_yuan(one.micros))
            for one in found.movements
        ],
    )


def record_view(record: UsageRecordRow, devices: list[int]) -> RecordView:
    """A record as it is shown."""
    return RecordView(
        id=record.id,
        node=record.node,
        devices=devices,
        model=record.model,
        attempt=record.attempt,
        rank=record.rank,
        k=record.k,
        began_at=from_unix_ms(span_of(record).start_ms),
        duration_ms=record.duration_ms,
        slot_ms=record.slot_ms,
        busy_ms=record.busy_ms,
        content_sha256=record.content_sha256,
    )


def _cards(session: Session, lines: Iterable[Line | InvoiceLineRow]) -> dict[UUID, RateCard]:
    """The rate card of each line."""
    return {line.rate_id: RateCard.from_json(session.get_one(RateRow, line.rate_id).terms) for line in lines}


def _line(number: int, line: Line | InvoiceLineRow, card: RateCard) -> LineView:
    return LineView(
        line=number,
        model=line.model,
        month=line.month,
        time_window=line.window,
        price_cny_per_card_hour=format_yuan(line.price_micros),
        card_ms=line.slot_ms // 1000,
        amount_cny=format_yuan(line.amount_micros),
        forgone_cny=format_yuan(line.forgone_micros),
        precision=card.precision or None,
        pflops_hours=format_yuan(card.pflops_hours_micro(line.slot_ms)) if card.precision else None,
    )
