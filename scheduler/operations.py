"""What an operator orders of nodes and devices: cordon, drain, open again, labels; and the record of who did it.

An order changes what the policy is told at the controller's next look; it moves no job by itself. Every order and
everything a node says of its devices is an event, added and never changed.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from scheduler.jobs import wake_controller
from scheduler.refusals import DeviceNotFound, LabelTaken, NodeNotFound
from scheduler.tables import DeviceRow, NodeEventRow, NodeRow

OWNED_LABELS: Final = frozenset({"hub.link"})
"""Labels only a node can state of itself."""


def cordon_node(session: Session, name: str, *, reason: str, by: UUID, at: datetime) -> NodeRow:
    """Let a node take no new jobs; what runs there goes on. Raises NodeNotFound."""
    node = _node(session, name)
    node.admits, node.drain_by = "cordoned", None
    note(session, name, "cordoned", f"takes no new jobs: {reason}", by=by, at=at)
    wake_controller(session)
    return node


def drain_node(
    session: Session, name: str, *, deadline: datetime | None, reason: str, by: UUID, at: datetime
) -> NodeRow:
    """Let a node run empty: its jobs finish, those that still run at the deadline are stopped and tried again.

    Raises:
        NodeNotFound: there is no such node.
    """
    node = _node(session, name)
    node.admits, node.drain_by = "draining", deadline
    until = "its jobs finish" if deadline is None else f"its jobs have until {deadline:%Y-%m-%d %H:%M:%S} UTC"
    note(session, name, "draining", f"takes no new jobs, {until}: {reason}", by=by, at=at)
    wake_controller(session)
    return node


def resume_node(session: Session, name: str, *, reason: str, by: UUID, at: datetime) -> NodeRow:
    """Let a node take jobs again. Raises NodeNotFound."""
    node = _node(session, name)
    node.admits, node.drain_by = "open", None
    note(session, name, "resumed", f"takes jobs again: {reason}", by=by, at=at)
    wake_controller(session)
    return node


def label_node(session: Session, name: str, labels: Mapping[str, str], *, by: UUID, at: datetime) -> NodeRow:
    """Set an operator's labels in place of those set before; they win over what the node states of itself.

    Raises:
        NodeNotFound, LabelTaken: a label only the node itself can state.
    """
    node = _node(session, name)
    for label in sorted(labels):
        if label in OWNED_LABELS:
            raise LabelTaken(field="labels", label=label)
    node.own_labels = dict(labels)
    stated = ", ".join(f"{label}={value}" for label, value in sorted(labels.items())) or "none"
    note(session, name, "labelled", f"labels of the operator: {stated}", by=by, at=at)
    wake_controller(session)
    return node


def cordon_device(session: Session, name: str, index: int, *, reason: str, by: UUID, at: datetime) -> DeviceRow:
    """Let one device take no new jobs; what runs on it goes on. Raises NodeNotFound, DeviceNotFound."""
    device = _device(session, name, index)
    device.cordoned = True
    note(session, name, "cordoned", f"device {index} takes no new jobs: {reason}", index=index, by=by, at=at)
    wake_controller(session)
    return device


def resume_device(session: Session, name: str, index: int, *, reason: str, by: UUID, at: datetime) -> DeviceRow:
    """Let a device take jobs again, as far as it is healthy. Raises NodeNotFound, DeviceNotFound."""
    device = _device(session, name, index)
    device.cordoned = False
    note(session, name, "resumed", f"device {index} takes jobs again: {reason}", index=index, by=by, at=at)
    wake_controller(session)
    return device


def note(
    session: Session,
    node: str,
    kind: str,
    sentence: str,
    *,
    at: datetime,
    index: int | None = None,
    by: UUID | None = None,
) -> None:
    """Keep what happened to a node or a device of it; `by` is None when nobody ordered it."""
    session.add(NodeEventRow(node=node, device_index=index, kind=kind, sentence=sentence, by=by, at=at))


def node_events(
    session: Session, *, node: str | None, before: int | None, limit: int
) -> Sequence[NodeEventRow]:
    """Events of one node or of all, the latest first, continuing before the one of that number."""
    query = select(NodeEventRow).order_by(NodeEventRow.number.desc()).limit(limit)
    if node is not None:
        query = query.where(NodeEventRow.node == node)
    if before is not None:
        query = query.where(NodeEventRow.number < before)
    return session.scalars(query).all()


def _node(session: Session, name: str) -> NodeRow:
    node = session.scalars(select(NodeRow).where(NodeRow.name == name).with_for_update()).one_or_none()
    if node is None:
        raise NodeNotFound(node=name)
    return node


def _device(session: Session, name: str, index: int) -> DeviceRow:
    _node(session, name)
    device = session.get(DeviceRow, (name, index))
    if device is None:
        raise DeviceNotFound(node=name, index=index)
    return device
