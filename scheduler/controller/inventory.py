"""What the centre has: nodes and devices as their supervisors describe them."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Engine, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from kernel.prepared import Prepared
from scheduler.node.codec import encode
from scheduler.node.protocol import UNAVAILABLE, Report
from scheduler.node.relay import LINK_LABEL, Link
from scheduler.operations import note
from scheduler.tables import DeviceRow, NodeRow

_LINKS: Final = Prepared(select(NodeRow.name, NodeRow.state, NodeRow.labels))


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
        "spanning": encode(report.spanning),
        "last_seen_at": at,
    }
    before = session.scalar(select(NodeRow.isolation).where(NodeRow.name == report.node))
    values = {"name": report.node, "state": "up", "joined_at": at, **seen}
    statement = insert(NodeRow).values(values)
    session.execute(statement.on_conflict_do_update(index_elements=[NodeRow.name], set_=seen))
    node = session.get_one(NodeRow, report.node, populate_existing=True)
    back = node.state == "down"
    if node.joined_at == at or back:  # an operator's order stays
        note(session, report.node, "joined", f"answers from host {report.host_id}", at=at)
        node.state = "up"
    if before is not None:
        _record_fitness(session, report, worked=before.get("level") != UNAVAILABLE, at=at)
    known = {
        device.index: device
        for device in session.scalars(select(DeviceRow).where(DeviceRow.node == report.node))
    }
    for device in report.devices:
        row = known.get(device.index)
        if row is None:
            session.add(
                DeviceRow(
                    node=report.node,
                    index=device.index,
                    model=device.model,
                    vendor=device.vendor,
                    healthy=True,
                )
            )
        else:  # a slot may have been given another card
            row.model, row.vendor = device.model, device.vendor
    session.flush()
    said = {device.index: device for device in report.devices}
    for row in session.scalars(
        select(DeviceRow).where(DeviceRow.node == report.node).order_by(DeviceRow.index)
    ):
        status = said.get(row.index)
        if status is None:
            _record_health(
                session, row, healthy=False, failed=False, reason="the node no longer reports it", at=at
            )
        else:
            healthy, failed, reason = status.healthy, status.failed, status.reason
            _record_health(session, row, healthy=healthy, failed=failed, reason=reason, at=at)
    session.flush()
    return back


def _record_fitness(session: Session, report: Report, *, worked: bool, at: datetime) -> None:
    works = report.isolation.level != UNAVAILABLE
    if worked and not works:
        why = next(iter(report.isolation.weaknesses), "it does not say why")
        note(session, report.node, "starts_nothing", f"takes no new jobs: {why}", at=at)
    elif works and not worked:
        note(session, report.node, "starts_again", "can start jobs again", at=at)


def _record_health(
    session: Session, row: DeviceRow, *, healthy: bool, failed: bool, reason: str, at: datetime
) -> None:
    """A device that is not healthy is drained by itself: it takes no new jobs until its node says it is well."""
    if (row.healthy, row.failed, row.health_reason) == (healthy, failed, reason):
        return
    if healthy:
        kind, sentence = "device_recovered", f"device {row.index} is healthy again"
    else:
        effect = "what runs on it is stopped" if failed else "what runs on it goes on"
        kind = "device_failed" if failed else "device_unhealthy"
        sentence = f"device {row.index} takes no new jobs, {effect}: {reason}"
    row.healthy, row.failed, row.health_reason = healthy, failed, reason
    note(session, row.node, kind, sentence, index=row.index, at=at)


def links_of(engine: Engine) -> Callable[[], Mapping[str, Link]]:
    """Asks where the relays of all nodes listen."""

    def links() -> Mapping[str, Link]:
        return {
            name: Link(str(labels[LINK_LABEL]), given_up=state == "down")
            for name, state, labels in _LINKS.alone(engine)
            if LINK_LABEL in labels
        }

    return links
