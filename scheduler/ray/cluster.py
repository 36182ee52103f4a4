"""The centre's machines through Ray: one detached agent actor per hub node, found by name, made where missing.

An RPC to a running actor costs about two milliseconds, starting one costs seconds; so there is one actor per node
and none per job.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import ray
import structlog
from ray.exceptions import GetTimeoutError, RayError

from scheduler.controller.wakeups import Wakeups
from scheduler.node.protocol import Report, SyncRequest
from scheduler.ray.agent import NodeAgent

RESOURCE: Final = "hub_node:"
"""A raylet with the resource `hub_node:NAME` is the hub node NAME."""
NAMESPACE: Final = "compute-hub"

_SYNC_S: Final = 3.0
_CHANGE_WAIT_MS: Final = 10_000
_log = structlog.get_logger(__name__)


class RayMachines:
    """Implements `scheduler.controller.ports.Machines` on the hub's private Ray cluster."""

    def __init__(self, address: str, wakeups: Wakeups) -> None:
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, configure_logging=False)
        self._wakeups = wakeups
        self._agents: dict[str, Any] = {}
        self._watched: dict[str, int] = {}

    def reachable(self) -> Sequence[str]:
        """Hub nodes whose raylet is alive; a new one gets its agent."""
        names = sorted(
            resource.removeprefix(RESOURCE)
            for node in ray.nodes()  # type: ignore[no-untyped-call]
            if node["Alive"]
            for resource in node["Resources"]
            if resource.startswith(RESOURCE)
        )
        for name in names:
            if name not in self._agents:
                self._agents[name] = _agent(name)
                self._watch(name)
        for gone in self._agents.keys() - set(names):
            del self._agents[gone]
        return names

    def sync(self, requests: Mapping[str, SyncRequest]) -> Mapping[str, Report]:
        """Ask all nodes at once and wait for the slowest, at most three seconds."""
        asked = {
            self._agents[name].sync.remote(request): name
            for name, request in requests.items()
            if name in self._agents
        }
        done, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_SYNC_S) if asked else ([], [])
        reports: dict[str, Report] = {}
        for reference in done:
            try:
                reports[asked[reference]] = ray.get(reference)
            except RayError as error:
                _log.warning("sync_failed", node=asked[reference], error=str(error))
        return reports

    def close(self) -> None:
        """Leave the cluster; agents stay."""
        ray.shutdown()

    def _watch(self, name: str) -> None:
        if name in self._watched:
            return
        self._watched[name] = 0

        def wait_once() -> str | None:
            agent = self._agents.get(name)
            if agent is None:
                message = f"node {name} is not in the cluster"
                raise LookupError(message)
            seq = self._watched[name]
            try:
                change = ray.get(
                    agent.wait_for_change.remote(seq, _CHANGE_WAIT_MS), timeout=_CHANGE_WAIT_MS / 1000 + 5
                )
            except GetTimeoutError:
                return None
            self._watched[name] = change.seq
            return name if change.seq != seq else None

        self._wakeups.watch(f"node-{name}", wait_once)


def _agent(name: str) -> Any:  # noqa: ANN401 - Ray's handles have no static type
    actor = ray.remote(NodeAgent)
    return actor.options(
        name=f"agent-{name}",
        get_if_exists=True,
        lifetime="detached",
        num_cpus=0,
        resources={f"{RESOURCE}{name}": 0.001},
        max_restarts=-1,
        max_task_retries=0,
        max_concurrency=4,
    ).remote()
