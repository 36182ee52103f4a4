"""The Ray driver of one controller, in a process of its own: `python -m scheduler.ray.courier ADDRESS DESCRIPTOR`.

Ray ends a driver that loses its head or its raylet, in the middle of whatever it does; so the driver is not the
controller. A courier knows one cluster for its whole life: when the cluster is another one, or the controller is gone,
it ends, and the controller starts the next (`couriers.py`).
"""

import os
import socket
import sys
import threading
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any, Final, NoReturn

import ray
import structlog
from ray._raylet import GcsClient  # type: ignore[attr-defined] # compiled, without stubs
from ray.exceptions import ActorDiedError, GetTimeoutError, RayError

from kernel.collecting import collect_seldom
from kernel.errors import HubError
from kernel.logs import configure_logs
from scheduler.ray.agent import NodeAgent
from scheduler.ray.messages import Answer, Ask, AskAhead, Changed, Members, Order, Over, Watch, Word
from scheduler.ray.sealing import Sealed
from scheduler.ray.start import keep_loopback
from scheduler.ray.watching import Look, Watched

RESOURCE: Final = "hub_node:"
"""A raylet with the resource `hub_node:NAME` is the hub node NAME."""
NAMESPACE: Final = "compute-hub"

_LOOK_S: Final = 1.0
_PATIENT_LOOKS: Final = 10
_NO_RAYLET: Final = (
    "No raylet of this machine can be reached, so no new node will be seen: start the controller with --raylet (or "
    "--head, on one machine), or as the user of a node that runs here."
)
_SYNC_S: Final = 0.8
_LATE_S: Final = 0.1
"""How long a node is waited for through Ray that did not answer through Ray the last time."""
_ALIVE: Final = 0
"""Of a node, in Ray's protocol."""
_CHANGE_WAIT_MS: Final = 10_000
_LATE_WAIT_S: Final = 5.0
_AWAY_S: Final = 0.2
_PAUSE_S: Final = 1.0

_log = structlog.get_logger(__name__)


class Courier:
    """Carries a controller's syncs to the agents and tells it of members and changes.

    Args:
        address: of Ray's head.
        connection: to the controller.
    """

    def __init__(self, address: str, connection: Connection) -> None:
        self._address = address
        self._connection = connection
        self._speaking = threading.Lock()
        self._cluster = ""
        self._looks = 0
        self._agents: dict[str, Any] = {}
        self._late: set[str] = set()
        self._watching: dict[str, Watched] = {}
        self._never = threading.Event()

    def run(self) -> NoReturn:
        """Carry until the controller hangs up."""
        threading.Thread(target=self._keep_looking, name="membership", daemon=True).start()
        while True:
            try:
                order: Order = self._connection.recv()
            except (EOFError, OSError):
                _leave()
            match order:
                case Ask():
                    self._say(Answer(order.number, self._sync(order.requests)))
                case Watch():
                    for name, seq in order.seqs.items():
                        self._watched(name).look(Look(seq))
                case AskAhead():
                    for name, request in order.requests.items():
                        look = Look(ahead=request, number=order.number, within_ms=order.within_ms)
                        self._watched(name).look(look)

    def _say(self, word: Word) -> None:
        try:
            with self._speaking:
                self._connection.send(word)
        except OSError:
            _leave()

    def _sync(self, requests: Mapping[str, Sealed]) -> dict[str, bytes]:
        """Ask all nodes at once; those that were late the last time are waited for only a little."""
        agents = self._agents
        lines: dict[str, bytes] = {}
        for names, seconds in (
            (requests.keys() - self._late, _SYNC_S),
            (requests.keys() & self._late, _LATE_S),
        ):
            try:
                asked = {agents[name].sync.remote(*requests[name]): name for name in names & agents.keys()}
                done, _ = ray.wait(list(asked), num_returns=len(asked), timeout=seconds) if asked else ([], [])
            except Exception as error:  # noqa: BLE001 - Ray raises many kinds while its head is away
                _log.warning("ray_away", error=str(error))
                continue
            for reference in done:
                name = asked[reference]
                try:
                    lines[name] = ray.get(reference)
                except ActorDiedError as error:
                    self._agents = {other: agent for other, agent in self._agents.items() if other != name}
                    _log.warning("agent_died", node=name, error=str(error))
                except (RayError, HubError) as error:
                    _log.warning("sync_failed", node=name, error=str(error))
        self._late = set(requests.keys() - lines.keys())
        return lines

    def _keep_looking(self) -> None:
        while True:
            try:
                self._look()
            except Exception as error:  # noqa: BLE001 - Ray's head is away, or has just come
                _log.warning("membership_unknown", error=str(error))
            self._never.wait(_LOOK_S)

    def _look(self) -> None:
        """Learn who is in the cluster; a new node gets its agent.

        Asked of the head directly: a driver that asks the successor of its head for its nodes is aborted by Ray.
        """
        head = GcsClient(address=self._address)
        cluster = head.cluster_id.hex()
        nodes = [node for node in head.get_all_node_info(timeout=_LOOK_S).values() if node.state == _ALIVE]
        if not self._cluster:
            here = [node for node in nodes if _listens(node.raylet_socket_name)]
            if not here:  # joining a raylet that is dead or not yet there would abort us
                self._looks += 1
                if self._looks == _PATIENT_LOOKS:
                    _log.warning("no_raylet_here", hint=_NO_RAYLET)
                return
            ray.init(
                address=self._address,
                namespace=NAMESPACE,
                log_to_driver=False,
                configure_logging=False,
                # Or Ray might take another's raylet for ours: one that it sees and cannot reach aborts it.
                _node_ip_address=here[0].node_manager_address,
                _temp_dir=here[0].temp_dir,
            )
            collect_seldom()
            self._cluster = cluster
            _log.info("joined_ray", cluster=cluster)
        if cluster != self._cluster:
            _log.info("other_cluster", cluster=cluster)
            _leave()
        names = {
            resource.removeprefix(RESOURCE)
            for node in nodes
            for resource in node.resources_total
            if resource.startswith(RESOURCE)
        }
        before = self._agents
        if names == before.keys():
            return
        self._agents = {name: before.get(name) or _agent(name) for name in sorted(names)}
        self._say(Members(frozenset(names)))

    def _watched(self, name: str) -> Watched:
        """What is to be looked after of a node; its thread lives as long as the courier."""
        if name not in self._watching:
            self._watching[name] = Watched()
            threading.Thread(target=self._watch, args=(name,), name=f"watch-{name}", daemon=True).start()
        return self._watching[name]

    def _watch(self, name: str) -> NoReturn:
        while True:
            try:
                self._watch_once(name, self._watching[name])
            except Exception as error:  # noqa: BLE001 - whatever broke, the tick covers until it is tried again
                _log.warning("node_not_watched", node=name, error=str(error))
                self._never.wait(_PAUSE_S)

    def _watch_once(self, name: str, watched: Watched) -> None:
        look = watched.wanted()
        agent = self._agents.get(name)
        if look.ahead is not None:
            line = self._asked_ahead(name, agent, look.ahead, look.within_ms)
            if watched.found(look) and line:
                self._say(Over(look.number, name, line))
            return
        if agent is None:
            self._never.wait(_AWAY_S)  # while Ray is away, the tick covers
            return
        try:
            change = ray.get(
                agent.wait_for_change.remote(look.after, _CHANGE_WAIT_MS),
                timeout=_CHANGE_WAIT_MS / 1000 + _LATE_WAIT_S,
            )
        except GetTimeoutError:
            return
        if change.seq != look.after and watched.found(look):
            self._say(Changed(name, look.after, change.seq))

    def _asked_ahead(self, name: str, agent: Any, request: Sealed, within_ms: int) -> bytes:  # noqa: ANN401 - as `_agent`
        """What the node answers, or nothing. Asked once: who is told nothing asks by himself in a moment."""
        if agent is None:
            return b""
        try:
            asked = agent.sync.remote(*request, within_ms)
            line: bytes = ray.get(asked, timeout=within_ms / 1000 + _LATE_WAIT_S)
        except Exception as error:  # noqa: BLE001 - Ray raises many kinds, and an agent of older code refuses
            _log.warning("not_asked_ahead", node=name, error=str(error))
            return b""
        return line


def _listens(path: str) -> bool:
    """Whether a raylet of this host answers at its socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(path) == 0


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


def _leave() -> NoReturn:
    """End at once: Ray's own way out may wait for what is dead."""
    os._exit(0)


if __name__ == "__main__":
    configure_logs("courier")
    keep_loopback()
    Courier(sys.argv[1], Connection(int(sys.argv[2]))).run()
