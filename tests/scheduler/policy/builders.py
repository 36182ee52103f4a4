"""Short spellings of nodes and jobs for tables of cases."""

from typing import Any

from scheduler.policy.model import DeviceState, Job, Node, Queue
from scheduler.policy.settings import PolicySettings
from scheduler.policy.state import SchedulerState


def node(name: str, devices: int = 8, model: str = "A100", **facts: Any) -> Node:  # noqa: ANN401 - any field of Node
    return Node(name, model, tuple(DeviceState(index) for index in range(devices)), **facts)


def job(name: str, devices: int = 1, queue: str = "main", **facts: Any) -> Job:  # noqa: ANN401 - any field of Job
    facts = {"submitted_ms": 0, "time_limit_ms": 3_600_000, **facts}
    return Job(id=name, queue=queue, devices_per_node=devices, **facts)


def state_of(
    nodes: list[Node], queues: list[Queue] | None = None, settings: PolicySettings | None = None
) -> SchedulerState:
    state = SchedulerState(queues or [Queue("main")], settings)
    for one in nodes:
        state.node_joined(one)
    return state
