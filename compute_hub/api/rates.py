"""What card time costs: dated rate cards, and the correction of a charge that was rated wrongly."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter
from pydantic import ConfigDict, Field, StringConstraints
from sqlalchemy import or_, select, tuple_
from sqlalchemy.orm import Session

from compute_hub.api.call import Caller
from compute_hub.api.shapes import (
    After,
    Body,
    Id,
    Instant,
    Limit,
    NeededReason,
    Page,
    Reason,
    View,
    Yuan,
    page_of,
)
from compute_hub.billing.corrections import correct_charge
from compute_hub.billing.domain.rate_cards import RateCard
from compute_hub.billing.rates import Setting, set_card
from compute_hub.billing.tables import RateRow
from kernel.money import format_yuan

router = APIRouter(prefix="/v1", tags=["rates"])

Factor = Annotated[str, StringConstraints(max_length=7), Field(examples=["0.6"])]
Clock = Annotated[str, StringConstraints(max_length=5), Field(examples=["08:00"])]
Day = Annotated[str, StringConstraints(pattern=r"^20\d{2}-\d{2}-\d{2}$"), Field(examples=["2026-10-01"])]
Whole = Annotated[int, Field(ge=-(2**31), le=2**31)]
_TERMS = (
    "price_cny_per_card_hour",
    "kinds",
    "time_of_day",
    "calendar",
    "priority",
    "fraction",
    "volume",
    "pflops",
)


class WindowBody(Body):
    """A part of the centre's day and its factor; the windows of a card cover every day once."""

    model_config = ConfigDict(serialize_by_alias=True)

    days: Literal["all", "workdays", "weekends"] = "all"
    begins: Annotated[Clock, Field(alias="from")]
    until: Clock
    factor: Factor


class CalendarBody(Body):
    """The public holidays, on which the weekend's windows hold, and the days of a weekend worked in exchange."""

    holidays: Annotated[list[Day], Field(min_length=1, max_length=1000)] | None = None
    workdays: Annotated[list[Day], Field(min_length=1, max_length=1000)] | None = None


class PriorityStep(Body):
    """The factor of jobs of at least that priority."""

    at_least: Whole
    factor: Factor


class FractionStep(Body):
    """The factor of jobs on at most that many thousandths of a card."""

    up_to_slots_milli: Whole
    factor: Factor


class VolumeStep(Body):
    """The factor of what a tenant uses beyond so many card-hours in a month."""

    from_card_hours: Whole
    factor: Factor


class PflopsWeight(Body):
    """What one card has at a stated precision."""

    precision: Annotated[str, StringConstraints(max_length=8)]
    per_card: Annotated[str, StringConstraints(max_length=12)]


class RateSetting(Body):
    """A rate card for a model from an instant on; from now if none is named.

    `tenant_id` and `agreement` make it one tenant's own. `changes_running` lets it change the price of jobs that run
    already; such a card is set a day before it begins.
    """

    model: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
    price_cny_per_card_hour: Yuan
    kinds: dict[Annotated[str, StringConstraints(max_length=32)], Factor] | None = Field(None, max_length=16)
    time_of_day: Annotated[list[WindowBody], Field(max_length=96)] | None = None
    calendar: CalendarBody | None = None
    priority: Annotated[list[PriorityStep], Field(max_length=32)] | None = None
    fraction: Annotated[list[FractionStep], Field(max_length=32)] | None = None
    volume: Annotated[list[VolumeStep], Field(max_length=32)] | None = None
    pflops: PflopsWeight | None = None
    effective_from: Instant | None = None
    effective_until: Instant | None = None
    changes_running: bool = False
    tenant_id: Id | None = None
    agreement: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = None
    reason: Reason = ""

    def setting(self, at: datetime, place: str = "") -> Setting:
        """The same, checked. Raises RateCardRefused, MalformedAmount."""
        terms = self.model_dump(include=set(_TERMS), exclude_none=True, by_alias=True)
        return Setting(
            model=self.model,
            card=RateCard.from_json(terms, at=place),
            effective_from=self.effective_from or at,
            effective_until=self.effective_until,
            changes_running=self.changes_running,
            tenant_id=self.tenant_id,
            agreement=self.agreement,
            reason=self.reason,
        )


class RateList(Body):
    """A price list: all of its cards are set, or none."""

    cards: Annotated[list[RateSetting], Field(min_length=1, max_length=100)]


class RateView(View):
    """A rate card, in force from an instant until its end, or until a later one of the same model and tenant."""

    id: UUID
    model: str
    price_cny_per_card_hour: str
    terms: dict[str, Any]
    effective_from: datetime
    effective_until: datetime | None
    changes_running: bool
    tenant_id: UUID | None
    agreement: str | None
    reason: str
    set_by: UUID
    set_at: datetime


class RateListView(View):
    """The cards that were set."""

    cards: list[RateView]


class CorrectionRequest(Body):
    """By which card a charge should have been rated, and why it was not."""

    rate_id: Id
    reason: NeededReason


class CorrectionView(View):
    """The charge that replaces a corrected one."""

    charge_id: UUID
    replacement_id: UUID
    amount_cny: str
    voucher_cny: str
    tenant_cny: str


@router.post("/rates", status_code=201, name="set_rate")
def add_rate(body: RateSetting, call: Caller) -> RateView:
    """Set the price of a card-hour of a model from now or a later instant on."""

    def action(session: Session, at: datetime) -> RateView:
        return _rate(set_card(session, body.setting(at), by=call.principal.id, at=at))

    return call.once(RateView, body, action)


@router.post("/rates:publish", status_code=201, name="publish_rates")
def publish(body: RateList, call: Caller) -> RateListView:
    """Set a whole price list at once: all of its cards or none."""

    def action(session: Session, at: datetime) -> RateListView:
        settings = [card.setting(at, f"cards[{number}].") for number, card in enumerate(body.cards)]
        return RateListView(
            cards=[_rate(set_card(session, setting, by=call.principal.id, at=at)) for setting in settings]
        )

    return call.once(RateListView, body, action)


@router.get("/rates", name="list_rates")
def rates(call: Caller, limit: Limit = 100, after: After = None) -> Page[RateView]:
    """Rate cards by model and the instant they begin, past and coming ones too; of agreements, a tenant's own only."""

    def action(session: Session) -> Page[RateView]:
        place = (RateRow.model, RateRow.effective_from, RateRow.id)
        query = select(RateRow).order_by(*place).limit(limit)
        if call.scope is not None:
            query = query.where(or_(RateRow.tenant_id.is_(None), RateRow.tenant_id == call.scope))
        last = None if after is None else session.get(RateRow, after)
        if last is not None:
            query = query.where(tuple_(*place) > (last.model, last.effective_from, last.id))
        items = [_rate(row) for row in session.scalars(query)]
        return page_of(items, limit, items[-1].id if items else "")

    return call.read(action)


@router.post("/charges/{charge_id}:correct", name="correct_charge")
def correct(charge_id: UUID, body: CorrectionRequest, call: Caller) -> CorrectionView:
    """Rate a charge anew by another card: it is given back whole and captured again at the right price."""

    def action(session: Session, at: datetime) -> CorrectionView:
        new = correct_charge(session, charge_id, body.rate_id, reason=body.reason, by=call.principal.id, at=at)
        return CorrectionView(
            charge_id=charge_id,
            replacement_id=new.id,
            amount_cny=format_yuan(new.amount_micros),
            voucher_cny=format_yuan(new.voucher_micros),
            tenant_cny=format_yuan(new.tenant_micros),
        )

    return call.once(CorrectionView, body, action)


def _rate(row: RateRow) -> RateView:
    return RateView(
        id=row.id,
        model=row.model,
        price_cny_per_card_hour=format_yuan(row.micros_per_card_hour),
        terms=row.terms,
        effective_from=row.effective_from,
        effective_until=row.effective_until,
        changes_running=row.changes_running,
        tenant_id=row.tenant_id,
        agreement=row.agreement,
        reason=row.reason,
        set_by=row.set_by,
        set_at=row.set_at,
    )
