"""The operator's orders to nodes and devices, reservations and maintenance windows, and the record of all of them."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Path, Query
from pydantic import Field, StringConstraints
from sqlalchemy.orm import Session

from compute_hub.api.call import Call, Caller
from compute_hub.api.cluster import NodeView, node_view
from compute_hub.api.shapes import After, Body, Id, Instant, Limit, NeededReason, Page, Project, View, page_of
from compute_hub.identity.roles import Role
from compute_hub.metering.reserving import reserved_time
from kernel.clock import utc_now
from kernel.ids import new_id
from scheduler.inventory import device_usage, in_maintenance
from scheduler.operations import (
    cordon_device,
    cordon_node,
    drain_node,
    label_node,
    node_events,
    resume_device,
    resume_node,
)
from scheduler.reservations import (
    ReservationRequest,
    cancel_reservation,
    list_reservations,
    reserve,
    reserved_devices,
)
from scheduler.tables import NodeEventRow, NodeRow, ReservationRow

router = APIRouter(prefix="/v1", tags=["centre"])

NodeName = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
DeviceIndex = Annotated[int, Path(ge=0, le=1023)]
ReservationId = Annotated[UUID, Path()]
LabelName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9._-]{0,62}$")]
LabelValue = Annotated[str, StringConstraints(min_length=1, max_length=63)]
Indices = Annotated[list[Annotated[int, Field(ge=0, le=1023)]], Field(max_length=1024)]


class Order(Body):
    """Why it is ordered."""

    reason: NeededReason


class DrainOrder(Order):
    """Jobs that still run after `deadline_s` are stopped and tried again; without it all finish."""

    deadline_s: Annotated[int, Field(ge=0, le=31 * 86_400)] | None = None


class Labels(Body):
    """All labels of the operator's; `zone` and `switch` are where the node lies, `pflops` what one device does."""

    labels: Annotated[dict[LabelName, LabelValue], Field(max_length=32)]


class ReservationDefinition(Body):
    """What to keep: by node, device indices (none: the whole node). Without `tenant_id` it is a maintenance window."""

    nodes: Annotated[dict[Project, Indices], Field(min_length=1, max_length=1000)]
    begins_at: Instant
    ends_at: Instant
    tenant_id: Id | None = None
    reason: NeededReason


class ReservationView(View):
    """A reservation; `unused_card_ms` of what it kept so far was not used and is accounted to its holder."""

    id: UUID
    tenant_id: UUID | None
    purpose: str
    nodes: dict[str, list[int]]
    begins_at: datetime
    ends_at: datetime
    reason: str
    made_at: datetime
    cancelled_at: datetime | None
    reserved_card_ms: int
    used_card_ms: int
    unused_card_ms: int


class NodeEventView(View):
    """Something that happened to a node; `by` ordered it, or nobody did."""

    number: int
    node: str
    device: int | None
    kind: str
    sentence: str
    by: UUID | None
    at: datetime


@router.post("/nodes/{name}:cordon", name="cordon_node")
def cordon(name: NodeName, body: Order, call: Caller) -> NodeView:
    """Let a node take no new jobs; what runs there goes on."""

    def action(session: Session, at: datetime) -> NodeView:
        row = cordon_node(session, name, reason=body.reason, by=call.principal.id, at=at)
        return _shown(session, row, at)

    return call.once(NodeView, body, action)


@router.post("/nodes/{name}:drain", name="drain_node")
def drain(name: NodeName, body: DrainOrder, call: Caller) -> NodeView:
    """Let a node run empty; with a deadline, what still runs then is stopped and tried again elsewhere."""

    def action(session: Session, at: datetime) -> NodeView:
        deadline = None if body.deadline_s is None else at + timedelta(seconds=body.deadline_s)
        by = call.principal.id
        row = drain_node(session, name, deadline=deadline, reason=body.reason, by=by, at=at)
        return _shown(session, row, at)

    return call.once(NodeView, body, action)


@router.post("/nodes/{name}:resume", name="resume_node")
def resume(name: NodeName, body: Order, call: Caller) -> NodeView:
    """Let a node take jobs again."""

    def action(session: Session, at: datetime) -> NodeView:
        row = resume_node(session, name, reason=body.reason, by=call.principal.id, at=at)
        return _shown(session, row, at)

    return call.once(NodeView, body, action)


@router.post("/nodes/{name}:label", name="label_node")
def label(name: NodeName, body: Labels, call: Caller) -> NodeView:
    """Set the operator's labels of a node in place of those before; they win over what the node states of itself."""

    def action(session: Session, at: datetime) -> NodeView:
        row = label_node(session, name, body.labels, by=call.principal.id, at=at)
        return _shown(session, row, at)

    return call.once(NodeView, body, action)


@router.post("/nodes/{name}/devices/{index}:cordon", name="cordon_device")
def cordon_one(name: NodeName, index: DeviceIndex, body: Order, call: Caller) -> NodeView:
    """Let one device take no new jobs; what runs on it goes on."""

    def action(session: Session, at: datetime) -> NodeView:
        cordon_device(session, name, index, reason=body.reason, by=call.principal.id, at=at)
        return _shown(session, session.get_one(NodeRow, name), at)

    return call.once(NodeView, body, action)


@router.post("/nodes/{name}/devices/{index}:resume", name="resume_device")
def resume_one(name: NodeName, index: DeviceIndex, body: Order, call: Caller) -> NodeView:
    """Let one device take jobs again, as far as it is healthy."""

    def action(session: Session, at: datetime) -> NodeView:
        resume_device(session, name, index, reason=body.reason, by=call.principal.id, at=at)
        return _shown(session, session.get_one(NodeRow, name), at)

    return call.once(NodeView, body, action)


@router.get("/node-events", name="list_node_events")
def events(
    call: Caller,
    node: Annotated[str | None, Query(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")] = None,
    limit: Limit = 100,
    after: Annotated[int | None, Query(ge=1, le=2**53)] = None,
) -> Page[NodeEventView]:
    """What was ordered of nodes and what happened to them, the latest first."""

    def action(session: Session) -> Page[NodeEventView]:
        found = node_events(session, node=node, before=after, limit=limit)
        items = [_event(row) for row in found]
        return page_of(items, limit, items[-1].number if items else None)

    return call.read(action)


@router.post("/reservations", name="reserve_nodes")
def make_reservation(body: ReservationDefinition, call: Caller) -> ReservationView:
    """Keep nodes for an enterprise, or nodes and devices for maintenance, from an instant to another."""
    request = ReservationRequest(body.nodes, body.begins_at, body.ends_at, body.tenant_id, body.reason)

    def action(session: Session, at: datetime) -> ReservationView:
        row = reserve(session, new_id(), request, by=call.principal.id, at=at)
        return _reservations(session, [row], at)[0]

    return call.once(ReservationView, body, action)


@router.post("/reservations/{reservation_id}:cancel", name="cancel_reservation")
def cancel(reservation_id: ReservationId, call: Caller) -> ReservationView:
    """Give back from now on what was kept."""

    def action(session: Session, at: datetime) -> ReservationView:
        row = cancel_reservation(session, reservation_id, by=call.principal.id, at=at)
        return _reservations(session, [row], at)[0]

    return call.once(ReservationView, None, action)


@router.get("/reservations", name="list_reservations")
def reservations(call: Caller, limit: Limit = 100, after: After = None) -> Page[ReservationView]:
    """Reservations, the latest made first; an enterprise sees its own."""

    def action(session: Session) -> Page[ReservationView]:
        rows = list_reservations(session, tenant_id=_own(call), after=after, limit=limit)
        items = _reservations(session, rows, utc_now())
        return page_of(items, limit, items[-1].id if items else None)

    return call.read(action)


def _own(call: Call) -> UUID | None:
    return call.tenant_id if call.principal.role is Role.TENANT else None


def _shown(session: Session, row: NodeRow, at: datetime) -> NodeView:
    session.flush()
    used = [use for use in device_usage(session) if use.node == row.name]
    return node_view(row, used, maintained=row.name in in_maintenance(session, at))


def _reservations(session: Session, rows: Sequence[ReservationRow], at: datetime) -> list[ReservationView]:
    session.flush()
    ids = [row.id for row in rows]
    devices = reserved_devices(session, ids)
    times = reserved_time(session, ids, at)
    return [
        ReservationView(
            id=row.id,
            tenant_id=row.tenant_id,
            purpose="maintenance" if row.tenant_id is None else "tenant",
            nodes=devices[row.id],
            begins_at=row.begins_at,
            ends_at=row.ends_at,
            reason=row.reason,
            made_at=row.made_at,
            cancelled_at=row.cancelled_at,
            reserved_card_ms=times[row.id].reserved_ms,
            used_card_ms=times[row.id].used_ms,
            unused_card_ms=times[row.id].unused_ms,
        )
        for row in rows
    ]


def _event(row: NodeEventRow) -> NodeEventView:
    return NodeEventView(
        number=row.number,
        node=row.node,
        device=row.device_index,
        kind=row.kind,
        sentence=row.sentence,
        by=row.by,
        at=row.at,
    )
