"""What the centre has and what of it is in use; health of the processes."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field, StringConstraints
from sqlalchemy import select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from compute_hub.api.call import Body, Caller, View
from compute_hub.api.enterprises import Yuan
from compute_hub.api.problems import problem
from compute_hub.billing.rates import set_rate
from compute_hub.identity.roles import Role
from compute_hub.telemetry.metrics import render
from kernel.database import transaction
from kernel.money import format_yuan, parse_yuan
from ledger.audit import audit
from ledger.reading import sum_of_balances
from scheduler.inventory import device_usage
from scheduler.tables import NodeRow

router = APIRouter(tags=["centre"])


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

    model: Annotated[str, StringConstraints(min_length=1, max_length=63)]
    price_cny_per_card_hour: Yuan
    effective_from: Annotated[datetime | None, Field(strict=False)] = None


class RateView(View):
    """A price in force from an instant on."""

    model: str
    price_cny_per_card_hour: str
    effective_from: datetime


class AuditView(View):
    """Whether the ledger's balances follow from its transfers, and each difference in words."""

    audit: str
    transfers: int
    sum_micros: int
    differences: list[str]


@router.get("/v1/cluster")
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


@router.post("/v1/rates", status_code=201)
def add_rate(body: RateSetting, call: Caller) -> RateView:
    """Set the price of a card-hour of a model from now or a later instant on."""
    principal = call.require(Role.OPERATOR)

    def action(session: Session, at: datetime) -> RateView:
        rate = set_rate(
            session,
            body.model,
            parse_yuan(body.price_cny_per_card_hour, field="price_cny_per_card_hour"),
            effective_from=body.effective_from or at,
            by=principal.id,
            at=at,
        )
        return RateView(
            model=rate.model,
            price_cny_per_card_hour=format_yuan(rate.micros_per_card_hour),
            effective_from=rate.effective_from,
        )

    return call.once(RateView, body, action)


@router.get("/v1/ledger/audit")
def ledger_audit(call: Caller) -> AuditView:
    """Recompute every balance from the raw transfers."""
    call.require(Role.AUDITOR, Role.OPERATOR)

    def action(session: Session) -> AuditView:
        report = audit(session)
        return AuditView(
            audit="ok" if report.clean else "failed",
            transfers=report.transfers,
            sum_micros=sum_of_balances(session),
            differences=[difference.explanation for difference in report.differences],
        )

    return call.read(action)


@router.get("/metrics", include_in_schema=False)
def metrics(request: Request) -> Response:
    """Prometheus exposition of what this process can see of the centre."""
    body, media_type = render(request.app.state.metrics)
    return Response(body, media_type=media_type)


@router.get("/healthz", include_in_schema=False)
def healthz() -> JSONResponse:
    """This process answers."""
    return JSONResponse({"status": "ok"})


@router.get("/readyz", include_in_schema=False)
def readyz(request: Request) -> Response:
    """This process can reach its database."""
    try:
        with transaction(request.app.state.engine) as session:
            session.execute(text("SELECT 1"))
    except SQLAlchemyError:
        return problem(503, "database_unreachable", "The database does not answer; try again shortly.")
    return JSONResponse({"status": "ready"})
