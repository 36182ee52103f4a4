"""Vouchers: what remains on them, their parts for projects, recall, what will lapse."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Query
from sqlalchemy import select
from sqlalchemy.orm import Session

from compute_hub.api.amounts import amount_in, in_units
from compute_hub.api.call import Call, Caller
from compute_hub.api.shapes import (
    After,
    Body,
    CardMs,
    Limit,
    NeededReason,
    Page,
    Project,
    SlugQuery,
    Text,
    View,
    Yuan,
    page_of,
)
from kernel.clock import utc_now
from vouchers import accounts
from vouchers.afterlife import expiry_forecast, recall_voucher
from vouchers.errors import VoucherNotFound
from vouchers.reading import VoucherView as VoucherFacts
from vouchers.reading import list_vouchers
from vouchers.tables import Voucher, VoucherPart
from vouchers.wallets import allot_part

router = APIRouter(prefix="/v1", tags=["vouchers"])

VoucherState = Literal["active", "expired", "recalled"]


class PartView(View):
    """The part of a voucher that is kept for one project."""

    project: str
    remaining_cny: str | None
    remaining_card_ms: int | None


class VoucherView(View):
    """A voucher and where its face value is, in the unit its programme counts."""

    id: UUID
    number: str
    programme: str
    tenant_id: UUID
    asset: str
    state: str
    issued_at: datetime
    use_by_at: datetime
    expires_at: datetime
    face_cny: str | None
    face_card_ms: int | None
    held_cny: str | None
    held_card_ms: int | None
    captured_cny: str | None
    captured_card_ms: int | None
    remaining_cny: str | None
    remaining_card_ms: int | None


class VoucherDetail(VoucherView):
    """A voucher with its parts and, once it has ended, why."""

    parts: list[PartView]
    ended_at: datetime | None
    ended_reason: str | None


class Recall(Body):
    """Why a voucher is taken back."""

    reason: NeededReason


class Allotment(Body):
    """A part of a voucher for a project; a reference is counted once."""

    project: Project
    amount_cny: Yuan | None = None
    amount_card_ms: CardMs | None = None
    reference: Text


class ForecastView(View):
    """What remains on a voucher, what will probably be used before its end, and what will lapse."""

    voucher_id: UUID
    number: str
    programme: str
    tenant_id: UUID
    use_by_at: datetime
    expires_at: datetime
    remaining_cny: str | None
    remaining_card_ms: int | None
    used_by_then_cny: str | None
    used_by_then_card_ms: int | None
    lapsing_cny: str | None
    lapsing_card_ms: int | None


class LapsingView(View):
    """What will probably lapse in one month, by the programmes' calendars."""

    month: str
    lapsing_cny: str | None
    lapsing_card_ms: int | None


class ForecastPage(View):
    """Active vouchers, soonest last usage first; and what will probably lapse of all of them, by month and asset."""

    items: list[ForecastView]
    by_month: list[LapsingView]


@router.get("/vouchers", name="list_vouchers")
def vouchers(
    call: Caller,
    limit: Limit = 100,
    after: After = None,
    programme: SlugQuery = None,
    state: Annotated[VoucherState | None, Query(description="Only vouchers in this state.")] = None,
) -> Page[VoucherView]:
    """Vouchers with what remains on them, by id; a tenant's own, or all."""

    def action(session: Session) -> Page[VoucherView]:
        found = list_vouchers(
            session, enterprise_id=call.scope, slug=programme, state=state, after=after, limit=limit
        )
        items = [VoucherView.model_validate(_fields(one)) for one in found]
        return page_of(items, limit, items[-1].id if items else "")

    return call.read(action)


@router.get("/vouchers/{voucher_id}", name="show_voucher")
def voucher(voucher_id: UUID, call: Caller) -> VoucherDetail:
    """One voucher with its parts for projects."""
    return call.read(lambda session: voucher_view(session, voucher_id, call.scope))


@router.post("/vouchers/{voucher_id}:recall", name="recall_voucher")
def recall(voucher_id: UUID, body: Recall, call: Caller) -> VoucherDetail:
    """Take back what is not set aside; it goes to the pool it came from."""

    def action(session: Session, at: datetime) -> VoucherDetail:
        recall_voucher(session, voucher_id, by=call.by, reason=body.reason, at=at)
        return voucher_view(session, voucher_id, None)

    return call.once(VoucherDetail, body, action)


@router.post("/vouchers/{voucher_id}:allot", status_code=201, name="allot_part")
def allot(voucher_id: UUID, body: Allotment, call: Caller) -> VoucherDetail:
    """Keep a part of a voucher for one project; parts never exceed the voucher."""
    return _move_part(voucher_id, body, call, back=False)


@router.post("/vouchers/{voucher_id}:return-part", status_code=201, name="return_part")
def return_(voucher_id: UUID, body: Allotment, call: Caller) -> VoucherDetail:
    """Give a project's part, or some of it, back to the whole voucher."""
    return _move_part(voucher_id, body, call, back=True)


@router.get("/vouchers:forecast", name="forecast_vouchers")
def forecast(call: Caller, programme: SlugQuery = None) -> ForecastPage:
    """What will probably lapse unused, at the pace of use so far; at most 500 vouchers are told one by one."""

    def action(session: Session) -> ForecastPage:
        found = expiry_forecast(session, utc_now(), slug=programme, enterprise_id=call.scope)
        months = [
            LapsingView.model_validate({"month": month, **in_units(asset, lapsing=amount)})
            for (asset, month), amount in found.by_month.items()
        ]
        items = [
            ForecastView.model_validate(
                {
                    "voucher_id": entry.voucher.id,
                    "number": entry.voucher.number,
                    "programme": entry.voucher.slug,
                    "tenant_id": entry.voucher.enterprise_id,
                    "use_by_at": entry.voucher.use_by_at,
                    "expires_at": entry.voucher.expires_at,
                    **in_units(
                        entry.voucher.asset,
                        remaining=entry.forecast.remaining,
                        used_by_then=entry.forecast.used_by_then,
                        lapsing=entry.forecast.lapsing,
                    ),
                }
            )
            for entry in found.soonest
        ]
        return ForecastPage(items=items, by_month=months)

    return call.read(action)


def voucher_view(session: Session, voucher_id: UUID, tenant_id: UUID | None) -> VoucherDetail:
    """One voucher, of this tenant if one is named; another tenant's looks like none. Raises VoucherNotFound."""
    row = session.get(Voucher, voucher_id)
    if row is None or tenant_id not in {None, row.enterprise_id}:
        raise VoucherNotFound(voucher=voucher_id)
    before = UUID(int=voucher_id.int - 1)
    (facts,) = list_vouchers(session, enterprise_id=row.enterprise_id, after=before, limit=1)
    projects = session.scalars(
        select(VoucherPart.project).where(VoucherPart.voucher_id == voucher_id).order_by(VoucherPart.project)
    ).all()
    places = {project: accounts.voucher_part(voucher_id, project, row.asset) for project in projects}
    left = accounts.available(session, places.values())
    return VoucherDetail.model_validate(
        {
            **_fields(facts),
            "parts": [
                PartView.model_validate({"project": name, **in_units(row.asset, remaining=left[place.id])})
                for name, place in places.items()
            ],
            "ended_at": row.ended_at,
            "ended_reason": row.ended_reason,
        }
    )


def _move_part(voucher_id: UUID, body: Allotment, call: Call, *, back: bool) -> VoucherDetail:
    def action(session: Session, at: datetime) -> VoucherDetail:
        row = session.get(Voucher, voucher_id)
        if row is None or row.enterprise_id != call.tenant_id:
            raise VoucherNotFound(voucher=voucher_id)
        amount = amount_in(row.asset, row.slug, "amount", body.amount_cny, body.amount_card_ms)
        allot_part(
            session,
            call.tenant_id,
            voucher_id,
            body.project,
            amount,
            reference=body.reference,
            by=call.by,
            at=at,
            back=back,
        )
        return voucher_view(session, voucher_id, call.tenant_id)

    return call.once(VoucherDetail, body, action)


def _fields(found: VoucherFacts) -> dict[str, object]:
    return {
        "id": found.id,
        "number": found.number,
        "programme": found.slug,
        "tenant_id": found.enterprise_id,
        "asset": found.asset,
        "state": found.state,
        "issued_at": found.issued_at,
        "use_by_at": found.use_by_at,
        "expires_at": found.expires_at,
        **in_units(
            found.asset,
            face=found.face,
            held=found.held,
            captured=found.captured,
            remaining=found.remaining,
        ),
    }
