"""Reservations: devices kept for a tenant for a span of time, or for nobody (a maintenance window).

The policy starts nothing on a reserved node whose time limit runs into the span, but the tenant's own jobs. What was
started before the reservation was made was promised first: in a tenant's it runs to its limit, in a maintenance window
it is stopped when the window opens. No device is reserved twice at one time: a rule here and a constraint below it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import bindparam, func, select, update
from sqlalchemy.dialects.postgresql import Range
from sqlalchemy.orm import Session

from kernel.clock import unix_ms
from kernel.prepared import Prepared
from scheduler.jobs import wake_controller
from scheduler.operations import note
from scheduler.policy.model import WHOLE_MILLI, Reservation
from scheduler.refusals import (
    AlreadyReserved,
    DeviceNotFound,
    NodeNotFound,
    ReservationInThePast,
    ReservationNotFound,
    ReservationOver,
    WholeNodesOnly,
)
from scheduler.tables import DeviceRow, NodeRow, ReservationRow, ReservedDeviceRow

_NOT_OVER: Final = Prepared(
    select(
        ReservedDeviceRow.node,
        ReservedDeviceRow.device_index,
        ReservationRow.id,
        ReservationRow.begins_at,
        ReservationRow.ends_at,
        ReservationRow.tenant_id,
    )
    .join(ReservationRow, ReservationRow.id == ReservedDeviceRow.reservation_id)
    .where(ReservationRow.ends_at > bindparam("at"), ReservationRow.cancelled_at.is_(None))
    .order_by(ReservationRow.id, ReservedDeviceRow.node, ReservedDeviceRow.device_index)
)


@dataclass(frozen=True)
class ReservationRequest:
    """What to keep, by node the indices of its devices (none: all), from when to when, for whom (None: maintenance)."""

    devices: Mapping[str, Sequence[int]]
    begins_at: datetime
    ends_at: datetime
    tenant_id: UUID | None
    reason: str


def reserve(
    session: Session, reservation_id: UUID, request: ReservationRequest, *, by: UUID, at: datetime
) -> ReservationRow:
    """Keep devices for a tenant, or for maintenance.

    Raises:
        ReservationInThePast, NodeNotFound, DeviceNotFound, AlreadyReserved: it cannot be meant or had.
        WholeNodesOnly: a tenant's reservation names single devices.
    """
    if request.ends_at <= max(at, request.begins_at):
        raise ReservationInThePast(field="ends_at", ends_at=request.ends_at)
    devices = _named(session, request)
    span = Range(request.begins_at, request.ends_at)
    _refuse_overlap(session, devices, span)
    row = ReservationRow(
        id=reservation_id,
        tenant_id=request.tenant_id,
        begins_at=request.begins_at,
        ends_at=request.ends_at,
        reason=request.reason,
        made_by=by,
        made_at=at,
    )
    session.add(row)
    session.flush()
    session.add_all(
        ReservedDeviceRow(
            reservation_id=reservation_id,
            node=device.node,
            device_index=device.index,
            slots=_slots(device),
            span=span,
        )
        for device in devices
    )
    whom = "maintenance" if request.tenant_id is None else f"tenant {request.tenant_id}"
    when = f"{request.begins_at:%Y-%m-%d %H:%M} to {request.ends_at:%Y-%m-%d %H:%M} UTC"
    _note_all(session, devices, "reserved", f"reserved for {whom} from {when}: {request.reason}", by, at)
    wake_controller(session)
    return row


def cancel_reservation(session: Session, reservation_id: UUID, *, by: UUID, at: datetime) -> ReservationRow:
    """Give back what was kept, from now on. Raises ReservationNotFound, ReservationOver."""
    query = select(ReservationRow).where(ReservationRow.id == reservation_id).with_for_update()
    row = session.scalars(query).one_or_none()
    if row is None:
        raise ReservationNotFound(reservation_id=reservation_id)
    if row.cancelled_at is not None or row.ends_at <= at:
        raise ReservationOver(reservation_id=reservation_id)
    row.cancelled_at, row.cancelled_by = at, by
    mine = ReservedDeviceRow.reservation_id == reservation_id
    rest = func.tstzrange(func.lower(ReservedDeviceRow.span), func.greatest(at, row.begins_at))
    session.execute(update(ReservedDeviceRow).where(mine).values(span=rest))
    devices = session.scalars(
        select(DeviceRow)
        .join(
            ReservedDeviceRow,
            (ReservedDeviceRow.node == DeviceRow.node) & (ReservedDeviceRow.device_index == DeviceRow.index),
        )
        .where(mine)
        .order_by(DeviceRow.node, DeviceRow.index)
    ).all()
    _note_all(session, devices, "reservation_cancelled", f"reservation {reservation_id} is cancelled", by, at)
    wake_controller(session)
    return row


def list_reservations(
    session: Session, *, tenant_id: UUID | None, after: UUID | None, limit: int
) -> Sequence[ReservationRow]:
    """Reservations of one tenant or of all, the latest made first."""
    order = (ReservationRow.made_at.desc(), ReservationRow.id.desc())
    query = select(ReservationRow).order_by(*order).limit(limit)
    if tenant_id is not None:
        query = query.where(ReservationRow.tenant_id == tenant_id)
    last = session.get(ReservationRow, after) if after is not None else None
    if last is not None:
        later = (ReservationRow.made_at == last.made_at) & (ReservationRow.id < last.id)
        query = query.where((ReservationRow.made_at < last.made_at) | later)
    return session.scalars(query).all()


def reserved_devices(session: Session, ids: Sequence[UUID]) -> dict[UUID, dict[str, list[int]]]:
    """By reservation and node, the devices it keeps."""
    found: dict[UUID, dict[str, list[int]]] = {one: {} for one in ids}
    query = (
        select(ReservedDeviceRow)
        .where(ReservedDeviceRow.reservation_id.in_(ids))
        .order_by(ReservedDeviceRow.reservation_id, ReservedDeviceRow.node, ReservedDeviceRow.device_index)
    )
    for row in session.scalars(query):
        found[row.reservation_id].setdefault(row.node, []).append(row.device_index)
    return found


@dataclass(frozen=True)
class Kept:
    """What is reserved now or later: whole nodes of the policy, and single devices in maintenance at this moment."""

    reservations: tuple[Reservation, ...]
    withheld: frozenset[tuple[str, int]]


def kept_devices(session: Session, at: datetime, node_of: Mapping[tuple[str, int], str]) -> Kept:
    """All reservations that are not over, in the policy's words.

    The policy reserves whole nodes of its own; of a node reserved in part, the devices are withheld while it lasts.

    Args:
        session: to read with.
        at: now.
        node_of: by machine and index, the policy's node of every device.
    """
    rows = _NOT_OVER(session, at=at)
    sizes: dict[str, int] = {}
    for name in node_of.values():
        sizes[name] = sizes.get(name, 0) + 1
    by_id = {one.id: one for one in (_Span(*rest) for _, _, *rest in rows)}
    taken: dict[tuple[UUID, str], list[tuple[str, int]]] = {}
    for node, index, reservation_id, *_ in rows:
        place = (node, index)
        if place in node_of:
            taken.setdefault((reservation_id, node_of[place]), []).append(place)
    whole: dict[UUID, list[str]] = {}
    withheld: set[tuple[str, int]] = set()
    for (reservation_id, name), places in taken.items():
        if len(places) == sizes[name]:
            whole.setdefault(reservation_id, []).append(name)
        elif by_id[reservation_id].begins_at <= at:
            withheld.update(places)
    return Kept(
        tuple(_in_policy(by_id[one], names) for one, names in sorted(whole.items())), frozenset(withheld)
    )


@dataclass(frozen=True)
class _Span:
    """A reservation, as far as the policy is told of it."""

    id: UUID
    begins_at: datetime
    ends_at: datetime
    tenant_id: UUID | None


def _in_policy(row: _Span, nodes: Sequence[str]) -> Reservation:
    return Reservation(
        id=str(row.id),
        nodes=tuple(nodes),
        from_ms=unix_ms(row.begins_at),
        to_ms=unix_ms(row.ends_at),
        for_tenant="" if row.tenant_id is None else str(row.tenant_id),
    )


def _named(session: Session, request: ReservationRequest) -> list[DeviceRow]:
    found: list[DeviceRow] = []
    for name, indices in sorted(request.devices.items()):
        if session.get(NodeRow, name) is None:
            raise NodeNotFound(node=name)
        query = select(DeviceRow).where(DeviceRow.node == name).order_by(DeviceRow.index).with_for_update()
        there = {device.index: device for device in session.scalars(query)}
        for index in indices:
            if index not in there:
                raise DeviceNotFound(node=name, index=index)
        wanted = sorted(set(indices)) or sorted(there)
        if request.tenant_id is not None and len(wanted) < len(there):
            raise WholeNodesOnly(field="nodes", node=name)
        found += [there[index] for index in wanted]
    return found


def _refuse_overlap(session: Session, devices: Sequence[DeviceRow], span: "Range[datetime]") -> None:
    nodes = sorted({device.node for device in devices})
    places = {(device.node, device.index) for device in devices}
    query = (
        select(ReservedDeviceRow)
        .where(ReservedDeviceRow.node.in_(nodes), ReservedDeviceRow.span.op("&&")(span))
        .order_by(ReservedDeviceRow.node, ReservedDeviceRow.device_index)
    )
    for other in session.scalars(query):
        if (other.node, other.device_index) in places:
            raise AlreadyReserved(
                field="nodes", node=other.node, index=other.device_index, reservation_id=other.reservation_id
            )


def _slots(device: DeviceRow) -> "Range[int]":
    return Range(device.number * WHOLE_MILLI, (device.number + 1) * WHOLE_MILLI)


def _note_all(
    session: Session, devices: Sequence[DeviceRow], kind: str, sentence: str, by: UUID, at: datetime
) -> None:
    for node in sorted({device.node for device in devices}):
        mine = [device.index for device in devices if device.node == node]
        which = f"devices {', '.join(map(str, mine))} " if mine else ""
        note(session, node, kind, f"{which}{sentence}", by=by, at=at)
