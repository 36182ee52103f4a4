"""What the centre has and what of it is in use."""

from datetime import datetime

from fastapi import APIRouter
from sqlalchemy import select
from sqlalchemy.orm import Session

from compute_hub.api.call import Caller
from compute_hub.api.shapes import View
from scheduler.inventory import device_usage
from scheduler.tables import NodeRow

router = APIRouter(prefix="/v1", tags=["centre"])


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
