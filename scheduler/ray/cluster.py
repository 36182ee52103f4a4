"""The centre's machines through Ray: one detached agent actor per hub node, found by name, made where missing.

An RPC to a running actor costs about two milliseconds, starting one costs seconds; so there is one actor per node
and none per job. While Ray, a raylet or an agent is away, the nodes are reached through their relays, so that no
restart of Ray costs a lease.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import ray
import structlog
from ray._raylet import GcsClient  # type: ignore[attr-defined] # compiled, without stubs
from ray.exceptions import GetTimeoutError, RayError

from kernel.clock import boottime_ms
from kernel.errors import HubError
from scheduler.controller.wakeups import Wakeups
from scheduler.node.protocol import Report, SyncRequest
from scheduler.node.relay import RelayedClient
from scheduler.ray.agent import NodeAgent

RESOURCE: Final = "hub_node:"
"""A raylet with the resource `hub_node:NAME` is the hub node NAME."""
NAMESPACE: Final = "compute-hub"

_LOOK_S: Final = 1.0
_SYNC_S: Final = 1.0
_LATE_S: Final = 0.1
"""How long a node is waited for through Ray that did not answer through Ray the last time."""
_RELAY_S: Final = 1.0
_ASKED_AT_ONCE: Final = 32
_ALIVE: Final = 0
"""Of a node, in Ray's protocol."""
_CHANGE_WAIT_MS: Final = 10_000
_IDLE_MS: Final = 10_000
_STANDBY_S: Final = 0.2
_BREATH_S: Final = 0.04
"""Between two answers of a node that changes all the time, so that one answer tells of many changes."""

_log = structlog.get_logger(__name__)


class RayMachines:
    """Implements `scheduler.controller.ports.Machines` on the hub's private Ray cluster.

    Args:
        address: of Ray's head.
        wakeups: is told of nodes where something changed.
        links: asks where the relays of all nodes listen.
        token: of the cluster.
    """

    def __init__(
        self, address: str, wakeups: Wakeups, *, links: Callable[[], dict[str, str]], token: bytes
    ) -> None:
        self._address = address
        self._wakeups = wakeups
        self._ask_links = links
        self._token = token
        self._links: dict[str, str] = {}
        self._agents: dict[str, Any] = {}
        self._late: set[str] = set()
        self._watched: dict[str, int] = {}
        self._said: dict[str, bool] = {}
        self._synced_boot_ms = 0
        self._cluster = ""
        self._using = threading.Lock()
        self._closing = threading.Event()
        self._pool = ThreadPoolExecutor(_ASKED_AT_ONCE, thread_name_prefix="relay")
        self._relayed: dict[str, RelayedClient] = {}
        threading.Thread(target=self._keep_looking, name="ray-membership", daemon=True).start()

    def reachable(self) -> Sequence[str]:
        """Hub nodes that are in the cluster or have a relay, as far as is known."""
        return sorted(self._agents.keys() | self._links.keys())

    def sync(self, requests: Mapping[str, SyncRequest]) -> Mapping[str, Report]:
        """Ask all nodes at once and wait for the slowest: at most a second for Ray, then a second for relays."""
        self._synced_boot_ms = boottime_ms()
        reports: dict[str, Report] = {}
        if self._using.acquire(blocking=False):  # else the connection is just being made anew
            try:
                reports = self._sync_by_ray(requests)
            finally:
                self._using.release()
        silent = sorted(requests.keys() - reports.keys())
        self._late = set(silent)
        asked = {name: self._pool.submit(self._sync_by_relay, name, requests[name]) for name in silent}
        for name, future in asked.items():
            report = future.result()
            if report is not None:
                reports[name] = report
        for name, report in reports.items():
            self._watched[name] = report.seq  # nobody need be woken for what is known
        return reports

    def close(self) -> None:
        """Leave the cluster; agents stay."""
        self._closing.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        ray.shutdown()

    def _sync_by_ray(self, requests: Mapping[str, SyncRequest]) -> dict[str, Report]:
        agents = self._agents
        reports: dict[str, Report] = {}
        for names, seconds in (
            (requests.keys() - self._late, _SYNC_S),
            (requests.keys() & self._late, _LATE_S),
        ):
            try:
                asked = {agents[name].sync.remote(requests[name]): name for name in names & agents.keys()}
                done, _ = ray.wait(list(asked), num_returns=len(asked), timeout=seconds) if asked else ([], [])
            except Exception as error:  # noqa: BLE001 - Ray raises many kinds while its head is away
                _log.warning("ray_away", error=str(error))
                continue
            for reference in done:
                try:
                    reports[asked[reference]] = ray.get(reference)
                except (RayError, HubError) as error:
                    _log.warning("sync_failed", node=asked[reference], error=str(error))
        return reports

    def _sync_by_relay(self, name: str, request: SyncRequest) -> Report | None:
        link = self._links.get(name)
        if link is None:
            return None
        client = self._relayed.get(link) or RelayedClient(link, self._token, timeout_s=_RELAY_S)
        self._relayed[link] = client
        try:
            return client.sync(request)
        except HubError as error:
            _log.warning("relay_failed", node=name, error=str(error))
            return None

    def _connect(self, cluster: str) -> None:
        with self._using:
            self._agents = {}
            ray.shutdown()
            ray.init(address=self._address, namespace=NAMESPACE, log_to_driver=False, configure_logging=False)
            self._cluster = cluster

    def _keep_looking(self) -> None:
        while not self._closing.wait(_LOOK_S):
            for look in (self._look_for_links, self._look_for_agents):
                try:
                    look()
                except Exception as error:  # noqa: BLE001 - Ray's head or the database is away
                    _log.warning("membership_unknown", error=str(error))

    def _look_for_links(self) -> None:
        self._links = self._ask_links()

    def _look_for_agents(self) -> None:
        """Learn who is in the cluster; a new node gets its agent, and a new head a new connection.

        Asked of the head directly: a driver that asks the successor of its head for its nodes is aborted by Ray.
        """
        head = GcsClient(address=self._address)
        cluster = head.cluster_id.hex()
        names = {
            resource.removeprefix(RESOURCE)
            for node in head.get_all_node_info(timeout=_LOOK_S).values()
            if node.state == _ALIVE
            for resource in node.resources_total
            if resource.startswith(RESOURCE)
        }
        if cluster != self._cluster:
            self._connect(cluster)
            _log.info("joined_ray", cluster=cluster)
        before = self._agents
        if names == before.keys():
            return
        self._agents = {name: before.get(name) or _agent(name) for name in sorted(names)}
        for name in sorted(names):
            self._watch(name)
        self._wakeups.put("membership")

    def _watch(self, name: str) -> None:
        if name in self._watched:
            return
        self._watched[name], self._said[name] = 0, False
        self._wakeups.watch(f"node-{name}", lambda: self._wait_once(name))

    def _wait_once(self, name: str) -> str | None:
        agent = self._agents.get(name)
        if agent is None or boottime_ms() > self._synced_boot_ms + _IDLE_MS:
            self._closing.wait(_STANDBY_S)  # a standby need not be woken; while Ray is away, the tick covers
            return None
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
