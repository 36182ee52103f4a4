"""Charges of jobs: who paid which part by which clause, and charges for lost usage given back."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import Field
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from compute_hub.api.call import Caller
from compute_hub.api.job_reference import JobId
from compute_hub.api.shapes import After, Body, Limit, NeededReason, Page, View, page_of
from compute_hub.billing.tables import ChargeRow
from kernel.money import format_yuan
from scheduler.jobs import find_job
from vouchers.capturing import coverage_of
from vouchers.domain.explanation import Coverage, Line
from vouchers.domain.terms import CNY
from vouchers.restoration import restore_charge
from vouchers.tables import CoverageLine, CoveredCharge, Restoration

router = APIRouter(prefix="/v1", tags=["charges"])


class CoverageLineView(View):
    """Which source pays which part of a cost, by which clause; `card_ms` is what a card-time voucher gives."""

    source: str
    voucher_id: UUID | None
    voucher_number: str | None
    payer_id: UUID | None
    amount_cny: str
    card_ms: int | None
    clause: str
    sentence: str
    paid_later: bool


class CoverageView(View):
    """Who pays a cost. Lines that are not paid back later add up to it exactly; the sentence says it in words."""

    cost_cny: str
    voucher_cny: str
    tenant_cny: str
    reimbursed_cny: str
    sentence: str
    lines: list[CoverageLineView]


class ChargeView(CoverageView):
    """The n-th charge of a job: rated card time, who paid it, and what of it was given back."""

    id: UUID
    n: int
    attempt: int
    card_ms: int
    charged_at: datetime
    restored_cny: str


class RestorationRequest(Body):
    """Why a charge is given back: what was lost, and by whose fault.

    `lost_card_ms` is how much of its card time was lost in all, earlier restorations included; left out, all of it.
    """

    reason: NeededReason
    lost_card_ms: Annotated[int, Field(ge=1, le=2**53)] | None = None


class RestorationView(View):
    """What of a coverage line was given back, or clawed back."""

    id: UUID
    line_id: UUID
    charge_id: UUID
    job_id: UUID
    tenant_id: UUID
    kind: str
    source: str
    voucher_id: UUID | None
    amount_cny: str
    reason: str
    restored_at: datetime


class RestoredView(View):
    """What was given back, in all, to the vouchers and accounts that had paid a charge."""

    charge_id: UUID
    amount_cny: str


@router.get("/jobs/{job_id}/charges", name="list_job_charges")
def charges(
    job_id: JobId,
    call: Caller,
    limit: Limit = 50,
    after: Annotated[int, Query(ge=-1, le=2**53)] = -1,
) -> Page[ChargeView]:
    """A job's charges in order, each with its coverage explained; `after` is the number of a charge."""

    def action(session: Session) -> Page[ChargeView]:
        find_job(session, job_id, tenant_id=call.scope)
        rows = session.scalars(
            select(ChargeRow)
            .where(ChargeRow.job_id == job_id, ChargeRow.n > after)
            .order_by(ChargeRow.n)
            .limit(limit)
        ).all()
        items = [_charge(session, row) for row in rows]
        return page_of(items, limit, items[-1].n if items else "")

    return call.read(action)


@router.post("/charges/{charge_id}:restore", name="restore_charge")
def restore(charge_id: UUID, body: RestorationRequest, call: Caller) -> RestoredView:
    """Give a charge for lost usage back to the very vouchers and accounts that paid it."""

    def action(session: Session, at: datetime) -> RestoredView:
        amount = restore_charge(
            session, charge_id, reason=body.reason, by=call.by, at=at, lost_ms=body.lost_card_ms
        )
        return RestoredView(charge_id=charge_id, amount_cny=format_yuan(amount))

    return call.once(RestoredView, body, action)


@router.get("/restorations", name="list_restorations")
def restorations(call: Caller, limit: Limit = 100, after: After = None) -> Page[RestorationView]:
    """What was given back or clawed back, line by line; a tenant's own, or all."""

    def action(session: Session) -> Page[RestorationView]:
        query = (
            select(
                Restoration,
                CoverageLine,
                CoveredCharge,
                func.coalesce(ChargeRow.job_id, CoveredCharge.job_id),  # a corrected one has a hold of its own
            )
            .join(CoverageLine, CoverageLine.id == Restoration.line_id)
            .join(CoveredCharge, CoveredCharge.charge_id == CoverageLine.charge_id)
            .outerjoin(ChargeRow, ChargeRow.id == CoverageLine.charge_id)
            .order_by(Restoration.id)
            .limit(limit)
        )
        if call.scope is not None:
            query = query.where(CoveredCharge.tenant_id == call.scope)
        if after is not None:
            query = query.where(Restoration.id > after)
        items = [
            RestorationView(
                id=row.id,
                line_id=row.line_id,
                charge_id=charge.charge_id,
                job_id=job_id,
                tenant_id=charge.tenant_id,
                kind=row.kind,
                source=line.source,
                voucher_id=line.voucher_id,
                amount_cny=format_yuan(row.amount_micros),
                reason=row.reason,
                restored_at=row.restored_at,
            )
            for row, line, charge, job_id in session.execute(query)
        ]
        return page_of(items, limit, items[-1].id if items else "")

    return call.read(action)


def coverage_fields(coverage: Coverage) -> dict[str, object]:
    """A coverage as the fields of `CoverageView`."""
    return {
        "cost_cny": format_yuan(coverage.cost_micros),
        "voucher_cny": format_yuan(coverage.public_micros - coverage.reimbursed_micros),
        "tenant_cny": format_yuan(coverage.tenant_micros),
        "reimbursed_cny": format_yuan(coverage.reimbursed_micros),
        "sentence": coverage.sentence,
        "lines": [_line(line) for line in coverage.lines],
    }


def _charge(session: Session, row: ChargeRow) -> ChargeView:
    covered = session.get(CoveredCharge, row.id)
    coverage = Coverage(0, ()) if covered is None else coverage_of(session, row.id)
    return ChargeView.model_validate(
        {
            **coverage_fields(coverage),
            "id": row.id,
            "n": row.n,
            "attempt": row.attempt,
            "card_ms": row.slot_ms // 1000,
            "charged_at": row.charged_at,
            "restored_cny": format_yuan(0 if covered is None else covered.restored_micros),
        }
    )


def _line(line: Line) -> CoverageLineView:
    return CoverageLineView(
        source=line.source,
        voucher_id=UUID(line.voucher) if line.voucher else None,
        voucher_number=line.number or None,
        payer_id=UUID(line.payer) if line.payer else None,
        amount_cny=format_yuan(line.amount_micros),
        card_ms=None if line.asset == CNY else line.quantity,
        clause=line.clause,
        sentence=line.sentence,
        paid_later=line.paid_later,
    )
