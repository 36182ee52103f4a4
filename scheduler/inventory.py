"""Which devices the centre has and how much of each is given out now."""

from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from scheduler.tables import AllocationRow, DeviceRow, NodeRow


@dataclass(frozen=True)
class DeviceUse:
    """One device and how many of its 1000 slots are allocated."""

    node: str
    node_state: str
    index: int
    model: str
    healthy: bool
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
        DeviceUse(device.node, state, device.index, device.model, device.healthy, int(milli))
        for device, state, milli in rows
    ]
