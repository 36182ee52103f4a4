"""What the centre has, what of it is in use, and what waiting jobs would need more."""

from datetime import datetime

from fastapi import APIRouter
from sqlalchemy import select
from sqlalchemy.orm import Session

from compute_hub.api.call import Caller
from compute_hub.api.shapes import View
from kernel.clock import utc_now
from scheduler.demand import Demanded, waiting_demand
from scheduler.inventory import DeviceUse, device_usage, in_maintenance, standing
from scheduler.tables import NodeRow

router = APIRouter(prefix="/v1", tags=["centre"])


class DeviceView(View):
    """One accelerator; `allocated_milli` of its 1000 slots are given out.

    An unhealthy or cordoned one takes no new jobs; what ran on one that has `failed` is stopped and tried again.
    """

    index: int
    model: str
    healthy: bool
    failed: bool
    health_reason: str
    cordoned: bool
    allocated_milli: int


class NodeView(View):
    """One machine. `standing`: up, cordoned, draining (jobs still run there), drained, maintenance or down.

    `span_address`: where other machines reach it for a gang that spans them; empty where `span_problem` says why not.
    """

    name: str
    state: str
    standing: str
    drain_by: datetime | None
    labels: dict[str, str]
    isolation: str
    span_address: str
    span_problem: str
    last_seen_at: datetime
    devices: list[DeviceView]


class ClusterView(View):
    """The centre."""

    nodes: list[NodeView]


class EnvironmentView(View):
    """Software of the centre that jobs run in, and what kind of cost their usage is, which vouchers look at.

    One with a command is a service: its jobs begin with that command and bring no variables of their own. The usual one
    is for jobs that name none.
    """

    name: str
    cost_kind: str
    command: list[str]
    usual: bool


class EnvironmentsView(View):
    """All environments by name."""

    environments: list[EnvironmentView]


class DemandView(View):
    """Jobs that wait with one shape: each needs `nodes` machines with so much on each of them, all at once."""

    accelerator: list[str]
    nodes: int
    devices_per_node: int
    slots_milli: int
    cpu_milli: int
    memory_mib: int
    jobs: int
    oldest_queued_at: datetime


class DemandsView(View):
    """What an autoscaler would have to add for every job that could start now to start."""

    demands: list[DemandView]


@router.get("/environments", name="list_environments")
def environments(call: Caller) -> EnvironmentsView:
    """The software environments that the operator offers to jobs."""
    return EnvironmentsView(
        environments=[
            EnvironmentView(
                name=name,
                cost_kind=offered.cost_kind,
                command=list(offered.command),
                usual=name == call.settings.default_environment,
            )
            for name, offered in sorted(call.settings.environments.items())
        ]
    )


@router.get("/cluster", name="show_cluster")
def cluster(call: Caller) -> ClusterView:
    """Nodes, devices and how much of each is allocated now."""

    def action(session: Session) -> ClusterView:
        used: dict[str, list[DeviceUse]] = {}
        for use in device_usage(session):
            used.setdefault(use.node, []).append(use)
        maintained = in_maintenance(session, utc_now())
        rows = session.scalars(select(NodeRow).order_by(NodeRow.name))
        return ClusterView(
            nodes=[node_view(row, used.get(row.name, []), maintained=row.name in maintained) for row in rows]
        )

    return call.read(action)


@router.get("/cluster:demand", name="show_demand")
def demand(call: Caller) -> DemandsView:
    """What waiting jobs need, by shape, the longest waiting first; for whoever adds machines."""
    return call.read(
        lambda session: DemandsView(demands=[_demand(one) for one in waiting_demand(session, utc_now())])
    )


def node_view(row: NodeRow, used: list[DeviceUse], *, maintained: bool) -> NodeView:
    """A node with its devices as they stand."""
    return NodeView(
        name=row.name,
        state=row.state,
        standing=standing(row, sum(use.allocated_milli for use in used), in_maintenance=maintained),
        drain_by=row.drain_by,
        labels={name: str(value) for name, value in sorted(row.known_labels.items()) if name != "hub.link"},
        isolation=str(row.isolation["level"]),
        span_address=str(row.spanning.get("address", "")),
        span_problem=str(row.spanning.get("problem", "")),
        last_seen_at=row.last_seen_at,
        devices=[
            DeviceView(
                index=use.index,
                model=use.model,
                healthy=use.healthy,
                failed=use.failed,
                health_reason=use.health_reason,
                cordoned=use.cordoned,
                allocated_milli=use.allocated_milli,
            )
            for use in used
        ],
    )


def _demand(one: Demanded) -> DemandView:
    return DemandView(
        accelerator=list(one.models),
        nodes=one.nodes,
        devices_per_node=one.devices_per_node,
        slots_milli=one.slots_milli,
        cpu_milli=one.cpu_milli,
        memory_mib=one.memory_mib,
        jobs=one.jobs,
        oldest_queued_at=one.oldest_queued_at,
    )
