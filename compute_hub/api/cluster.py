"""What the centre has and what of it is in use, and what it costs."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter
from pydantic import StringConstraints
from sqlalchemy import select, tuple_
from sqlalchemy.orm import Session

from compute_hub.api.call import Caller
from compute_hub.api.shapes import After, Body, Instant, Limit, Page, View, Yuan, page_of
from compute_hub.billing.rates import set_rate
from compute_hub.billing.tables import RateRow
from kernel.errors import Conflict, Invalid
from kernel.money import format_yuan, parse_yuan
from scheduler.inventory import device_usage
from scheduler.tables import NodeRow

router = APIRouter(prefix="/v1", tags=["centre"])


class PriceRefused(Invalid):
    """A price of nothing."""

    sentence = "price_cny_per_card_hour: a price must be above zero."


class RateExists(Conflict):
    """A model has one price from an instant on."""

    sentence = "There is already a price for {model!r} from {effective_from} on; name another instant."


class DeviceView(View):
    """One accelerator; `allocated_milli` of its 1000 slots are given out."""

    index: int
    model: str
    healthy: bool
    allocated_milli: int


class NodeView(View):
    """One machine."""

    name: str
    state: str
    isolation: str
    last_seen_at: datetime
    devices: list[DeviceView]


class ClusterView(View):
    """The centre."""

    nodes: list[NodeView]


class RateSetting(Body):
    """A price from an instant on; from now if none is named."""

    model: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
    price_cny_per_card_hour: Yuan
    effective_from: Instant | None = None


class RateView(View):
    """A price in force from an instant on, until a later one of the same model."""

    id: UUID
    model: str
    price_cny_per_card_hour: str
    effective_from: datetime


@router.get("/cluster", name="show_cluster")
def cluster(call: Caller) -> ClusterView:
    """Nodes, devices and how much of each is allocated now."""

    def action(session: Session) -> ClusterView:
        used = device_usage(session)
        nodes = [
            NodeView(
                name=row.name,
                state=row.state,
                isolation=str(row.isolation["level"]),
                last_seen_at=row.last_seen_at,
                devices=[
                    DeviceView(
                        index=use.index,
                        model=use.model,
                        healthy=use.healthy,
                        allocated_milli=use.allocated_milli,
                    )
                    for use in used
                    if use.node == row.name
                ],
            )
            for row in session.scalars(select(NodeRow).order_by(NodeRow.name))
        ]
        return ClusterView(nodes=nodes)

    return call.read(action)


@router.post("/rates", status_code=201, name="set_rate")
def add_rate(body: RateSetting, call: Caller) -> RateView:
    """Set the price of a card-hour of a model from now or a later instant on."""
    price = parse_yuan(body.price_cny_per_card_hour, field="price_cny_per_card_hour")
    if price == 0:
        raise PriceRefused(field="price_cny_per_card_hour")

    def action(session: Session, at: datetime) -> RateView:
        begins = body.effective_from or at
        same = RateRow.model == body.model, RateRow.effective_from == begins
        if session.scalar(select(RateRow.id).where(*same)) is not None:
            raise RateExists(model=body.model, effective_from=begins.isoformat())
        by = call.principal.id
        return _rate(set_rate(session, body.model, price, effective_from=begins, by=by, at=at))

    return call.once(RateView, body, action)


@router.get("/rates", name="list_rates")
def rates(call: Caller, limit: Limit = 100, after: After = None) -> Page[RateView]:
    """Prices by model and the instant they begin, past and coming ones too."""

    def action(session: Session) -> Page[RateView]:
        query = select(RateRow).order_by(RateRow.model, RateRow.effective_from).limit(limit)
        last = None if after is None else session.get(RateRow, after)
        if last is not None:
            query = query.where(
                tuple_(RateRow.model, RateRow.effective_from) > (last.model, last.effective_from)
            )
        items = [_rate(row) for row in session.scalars(query)]
        return page_of(items, limit, items[-1].id if items else "")

    return call.read(action)


def _rate(row: RateRow) -> RateView:
    return RateView(
        id=row.id,
        model=row.model,
        price_cny_per_card_hour=format_yuan(row.micros_per_card_hour),
        effective_from=row.effective_from,
    )
