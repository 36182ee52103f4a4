"""What the centre, when it is empty, could ever run: jobs beyond it are refused before they are queued."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from sqlalchemy import Text, func, select
from sqlalchemy.orm import Session

from kernel.prepared import Prepared
from scheduler.policy.model import WHOLE_MILLI
from scheduler.refusals import (
    FractionOfGang,
    GangBeyondOneMachine,
    NodesTooSmall,
    TooManyDevicesPerNode,
    TooManyNodes,
    TooSlowAccelerators,
    UnknownAccelerator,
)
from scheduler.tables import DeviceRow, NodeRow

PFLOPS_LABEL: Final = "pflops"
"""The node label in which the operator states what one of its devices does, such as "0.256"."""

_PFLOPS_MAX: Final = 1_000_000

_INSTALLED: Final = Prepared(
    select(
        NodeRow.host_id,
        DeviceRow.model,
        func.count(),
        NodeRow.cpu_milli,
        NodeRow.memory_mib,
        NodeRow.spanning,
        NodeRow.labels.op("||")(NodeRow.own_labels).op("->>", return_type=Text())(PFLOPS_LABEL),
    )
    .join(DeviceRow, DeviceRow.node == NodeRow.name)
    .group_by(NodeRow.name, DeviceRow.model)
    .order_by(NodeRow.name, DeviceRow.model)
)
"""No more of a node than is looked at: there may be hundreds."""


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What of a job decides where it could ever run."""

    models: Sequence[str]
    min_pflops_milli: int
    node_count: int
    devices_per_node: int
    slots_milli: int
    cpu_milli: int
    memory_mib: int
    talks: bool = False
    """Whether its ranks talk to each other, for which they must be on one machine or on such as span machines."""


@dataclass(frozen=True)
class _Part:
    """All devices of one model in one node."""

    network: str
    """Nodes of one name can have a network together: those of one host, or all that span machines (empty)."""
    model: str
    devices: int
    cpu_milli: int
    memory_mib: int
    pflops_milli: int


def stated_pflops_milli(labels: Mapping[str, Any]) -> int:
    """Milli-PFLOPS of one device of a node by its label; 0 when it states none, or nothing that is a number."""
    try:
        stated = Decimal(str(labels.get(PFLOPS_LABEL, "0")))
    except InvalidOperation:
        return 0
    return int(stated * 1000) if stated.is_finite() and 0 < stated < _PFLOPS_MAX else 0


def network_of(host_id: str, spanning: Mapping[str, Any]) -> str:
    """What its jobs' network with other nodes' is called: one for all that span machines, else one for each host."""
    return "" if spanning.get("address") else host_id


def acceptable_models(session: Session, demand: Demand) -> list[str]:
    """The models a job may run on, in its order of preference; without one, the slowest that suffices first.

    Raises:
        UnknownAccelerator, TooSlowAccelerators, FractionOfGang, TooManyDevicesPerNode, NodesTooSmall, TooManyNodes,
        GangBeyondOneMachine.
    """
    parts = _installed(session)
    known = sorted({part.model for part in parts})
    for model in demand.models:
        if model not in known:
            raise UnknownAccelerator(field="accelerator", model=model, known=", ".join(known) or "none yet")
    speed: dict[str, int] = {}
    for part in parts:
        speed[part.model] = max(speed.get(part.model, 0), part.pflops_milli)
    wanted = list(demand.models) or sorted(known, key=lambda model: (speed[model], model))
    models = [model for model in wanted if speed[model] >= demand.min_pflops_milli]
    if not models:
        fastest = max((speed[model] for model in wanted), default=0)
        raise TooSlowAccelerators(
            field="min_pflops",
            asked=f"{demand.min_pflops_milli / 1000:g}",
            fastest=f"{fastest / 1000:g}",
        )
    _refuse_what_never_fits([part for part in parts if part.model in models], demand, " or ".join(models))
    return models


def _refuse_what_never_fits(parts: Sequence[_Part], demand: Demand, models: str) -> None:
    if demand.slots_milli < WHOLE_MILLI and demand.node_count * demand.devices_per_node != 1:
        raise FractionOfGang(field="slots_milli", slots_milli=demand.slots_milli)
    wide = [part for part in parts if part.devices >= demand.devices_per_node]
    if not wide:
        raise TooManyDevicesPerNode(
            field="devices_per_node",
            asked=demand.devices_per_node,
            models=models,
            largest=max(part.devices for part in parts),
        )
    for field, asked, unit in (
        ("cpu_milli", demand.cpu_milli, "thousandths of a processor"),
        ("memory_mib", demand.memory_mib, "MiB of memory"),
    ):
        largest = max(getattr(part, field) for part in wide)
        if asked > largest:
            raise NodesTooSmall(field=field, asked=asked, unit=unit, models=models, largest=largest)
    fitting = [
        part.network
        for part in wide
        if part.cpu_milli >= demand.cpu_milli and part.memory_mib >= demand.memory_mib
    ]
    gang: dict[str, Any] = {
        "field": "nodes",
        "asked": demand.node_count,
        "devices": demand.devices_per_node,
        "models": models,
    }
    if demand.node_count > len(fitting):
        raise TooManyNodes(**gang, fitting=len(fitting))
    together = max(Counter(fitting).values())
    if demand.talks and demand.node_count > together:
        raise GangBeyondOneMachine(**gang, fitting=together)


def _installed(session: Session) -> list[_Part]:
    return [
        _Part(
            network_of(host_id, spanning),
            model,
            count,
            cpu_milli,
            memory_mib,
            stated_pflops_milli({PFLOPS_LABEL: stated}),
        )
        for host_id, model, count, cpu_milli, memory_mib, spanning, stated in _INSTALLED(session)
    ]
