"""Which devices the centre has and how much of each is given out now."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from scheduler.tables import AllocationRow, DeviceRow, NodeRow, ReservationRow, ReservedDeviceRow


@dataclass(frozen=True)
class DeviceUse:
    """One device and how many of its 1000 slots are allocated."""

    node: str
    node_state: str
    index: int
    model: str
    healthy: bool
    failed: bool
    health_reason: str
    cordoned: bool
    allocated_milli: int


def device_usage(session: Session) -> list[DeviceUse]:
    """All devices by node and index."""
    width = func.upper(AllocationRow.slots) - func.lower(AllocationRow.slots)
    used = (
        select(AllocationRow.node, AllocationRow.device_index, func.sum(width).label("milli"))
        .where(func.upper_inf(AllocationRow.span))
        .group_by(AllocationRow.node, AllocationRow.device_index)
        .subquery()
    )
    rows = session.execute(
        select(DeviceRow, NodeRow.state, func.coalesce(used.c.milli, 0))
        .join(NodeRow, NodeRow.name == DeviceRow.node)
        .join(used, (used.c.node == DeviceRow.node) & (used.c.device_index == DeviceRow.index), isouter=True)
        .order_by(DeviceRow.node, DeviceRow.index)
    )
    return [
        DeviceUse(
            device.node,
            state,
            device.index,
            device.model,
            device.healthy,
            device.failed,
            device.health_reason,
            device.cordoned,
            int(milli),
        )
        for device, state, milli in rows
    ]


def standing(node: NodeRow, allocated_milli: int, *, in_maintenance: bool) -> str:
    """In one word, what can be expected of a node: down, maintenance, drained, draining, cordoned or up."""
    if node.state == "down":
        return "down"
    if in_maintenance:
        return "maintenance"
    if node.admits == "draining":
        return "draining" if allocated_milli else "drained"
    return "cordoned" if node.admits == "cordoned" else "up"


def in_maintenance(session: Session, at: datetime) -> frozenset[str]:
    """Nodes with a device in an open maintenance window."""
    query = (
        select(ReservedDeviceRow.node)
        .join(ReservationRow, ReservationRow.id == ReservedDeviceRow.reservation_id)
        .where(
            ReservationRow.tenant_id.is_(None),
            ReservationRow.cancelled_at.is_(None),
            ReservationRow.begins_at <= at,
            ReservationRow.ends_at > at,
        )
        .distinct()
    )
    return frozenset(session.scalars(query))
