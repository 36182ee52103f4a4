"""What the centre has: nodes and devices as their supervisors describe them."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

from sqlalchemy import Engine, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from kernel.database import transaction
from scheduler.node.codec import encode
from scheduler.node.protocol import Report
from scheduler.node.relay import LINK_LABEL
from scheduler.tables import DeviceRow, NodeRow


def record_node(session: Session, report: Report, at: datetime) -> bool:
    """Make the tables say what a node says of itself; a device that is no longer reported is unhealthy.

    Returns:
        Whether the node had been given up and is back.
    """
    seen: dict[str, Any] = {
        "host_id": report.host_id,
        "labels": dict(report.labels),
        "cpu_milli": report.cpu_milli,
        "memory_mib": report.memory_mib,
        "isolation": encode(report.isolation),
        "last_seen_at": at,
    }
    values = {"name": report.node, "state": "up", "joined_at": at, **seen}
    statement = insert(NodeRow).values(values)
    session.execute(statement.on_conflict_do_update(index_elements=[NodeRow.name], set_=seen))
    node = session.get_one(NodeRow, report.node, populate_existing=True)
    back = node.state == "down"
    if back:  # an operator's drain stays
        node.state = "up"
    known = {
        device.index: device
        for device in session.scalars(select(DeviceRow).where(DeviceRow.node == report.node))
    }
    for device in report.devices:
        row = known.pop(device.index, None)
        if row is None:
            session.add(
                DeviceRow(
                    node=report.node,
                    index=device.index,
                    model=device.model,
                    vendor=device.vendor,
                    healthy=device.healthy,
                )
            )
        else:  # a slot may have been given another card
            row.model, row.vendor, row.healthy = device.model, device.vendor, device.healthy
    for gone in known.values():
        gone.healthy = False
    session.flush()
    return back


def links_of(engine: Engine) -> Callable[[], dict[str, str]]:
    """Asks where the relays of the nodes that are not given up listen."""

    def links() -> dict[str, str]:
        with transaction(engine) as session:
            rows = session.execute(select(NodeRow.name, NodeRow.labels).where(NodeRow.state != "down"))
            return {name: str(labels[LINK_LABEL]) for name, labels in rows if LINK_LABEL in labels}

    return links
