"""The centre's machines through Ray: one detached agent actor per hub node, found by name, made where missing.

An RPC to a running actor costs about two milliseconds, starting one costs seconds; so there is one actor per node
and none per job.
"""

import threading
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

_LOOK_S: Final = 1.0
_SYNC_S: Final = 3.0
_CHANGE_WAIT_MS: Final = 10_000
_BREATH_S: Final = 0.04
"""Between two answers of a node that changes all the time, so that one answer tells of many changes."""

_log = structlog.get_logger(__name__)


class RayMachines:
    """Implements `scheduler.controller.ports.Machines` on the hub's private Ray cluster.

    Who is in the cluster is asked in a thread of its own: while Ray's head is away the last answer stands, and the
    agents are still reached, because calls to running actors do not pass through the head.
    """

    def __init__(self, address: str, wakeups: Wakeups) -> None:
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, configure_logging=False)
        self._wakeups = wakeups
        self._agents: dict[str, Any] = {}
        self._watched: dict[str, int] = {}
        self._said: dict[str, bool] = {}
        self._closing = threading.Event()
        self._look()
        threading.Thread(target=self._keep_looking, name="ray-membership", daemon=True).start()

    def reachable(self) -> Sequence[str]:
        """Hub nodes that are in the cluster, as far as is known."""
        return sorted(self._agents)

    def _keep_looking(self) -> None:
        while not self._closing.wait(_LOOK_S):
            try:
                if self._look():
                    self._wakeups.put("membership")
            except Exception as error:  # noqa: BLE001 - Ray raises many kinds while its head is away
                _log.warning("membership_unknown", error=str(error))

    def _look(self) -> bool:
        """Learn who is in the cluster; a new node gets its agent. True when somebody came or went."""
        names = {
            resource.removeprefix(RESOURCE)
            for node in ray.nodes()  # type: ignore[no-untyped-call]
            if node["Alive"]
            for resource in node["Resources"]
            if resource.startswith(RESOURCE)
        }
        before = self._agents
        if names == before.keys():
            return False
        self._agents = {name: before.get(name) or _agent(name) for name in sorted(names)}
        for name in sorted(names):
            self._watch(name)
        return True

    def sync(self, requests: Mapping[str, SyncRequest]) -> Mapping[str, Report]:
        """Ask all nodes at once and wait for the slowest, at most three seconds."""
        agents = self._agents
        asked = {
            agents[name].sync.remote(request): name for name, request in requests.items() if name in agents
        }
        done, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_SYNC_S) if asked else ([], [])
        reports: dict[str, Report] = {}
        for reference in done:
            try:
                report = reports[asked[reference]] = ray.get(reference)
                self._watched[asked[reference]] = report.seq  # nobody need be woken for what is known
            except RayError as error:
                _log.warning("sync_failed", node=asked[reference], error=str(error))
        return reports

    def close(self) -> None:
        """Leave the cluster; agents stay."""
        self._closing.set()
        ray.shutdown()

    def _watch(self, name: str) -> None:
        if name in self._watched:
            return
        self._watched[name], self._said[name] = 0, False

        def wait_once() -> str | None:
            agent = self._agents.get(name)
            if agent is None:
                message = f"node {name} is not in the cluster"
                raise LookupError(message)
            if self._said[name]:
                self._closing.wait(_BREATH_S)
            seq = self._watched[name]
            try:
                change = ray.get(
                    agent.wait_for_change.remote(seq, _CHANGE_WAIT_MS), timeout=_CHANGE_WAIT_MS / 1000 + 5
                )
            except GetTimeoutError:
                return None
            self._watched[name] = change.seq
            self._said[name] = change.seq != seq
            return name if self._said[name] else None

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
