"""The centre's machines: through Ray, by one agent actor per hub node, and around it while it is away.

An RPC to a running actor costs about two milliseconds, starting one costs seconds; so there is one actor per node
and none per job. While Ray, a raylet, an agent or the courier is away, the nodes are reached through their relays, so
that no restart of Ray costs a lease.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Final

import structlog

from kernel.errors import HubError
from scheduler.controller.wakeups import Wakeups
from scheduler.node.protocol import Report, SyncRequest
from scheduler.node.relay import Link, RelayedClient
from scheduler.ray.couriers import Couriers

_LOOK_S: Final = 1.0
_RAY_S: Final = 1.0
"""For all answers through Ray; a little longer than the courier waits for them."""
_RELAY_S: Final = 0.4
_ASKED_AT_ONCE: Final = 32

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
        self, address: str, wakeups: Wakeups, *, links: Callable[[], Mapping[str, Link]], token: bytes
    ) -> None:
        self._ask_links = links
        self._token = token
        self._links: dict[str, str] = {}
        self._couriers = Couriers(address, wakeups)
        self._closing = threading.Event()
        self._pool = ThreadPoolExecutor(_ASKED_AT_ONCE, thread_name_prefix="relay")
        self._probes = ThreadPoolExecutor(_ASKED_AT_ONCE, thread_name_prefix="probe")
        self._relayed: dict[str, RelayedClient] = {}
        self._relaying: dict[str, Future[Report | None]] = {}
        threading.Thread(target=self._keep_looking, name="links", daemon=True).start()

    def reachable(self) -> Sequence[str]:
        """Hub nodes that are in the cluster or have a relay, as far as is known."""
        return sorted(self._couriers.members | self._links.keys())

    def sync(self, requests: Mapping[str, SyncRequest]) -> Mapping[str, Report]:
        """Ask all nodes at once and wait for the slowest: with both waits far below a leader's lease."""
        reports = self._couriers.ask(requests, _RAY_S)
        reports |= self._sync_by_relays(sorted(requests.keys() - reports.keys()), requests)
        for name, report in reports.items():
            self._couriers.heard(name, report.seq)
        return reports

    def close(self) -> None:
        """Leave the cluster; agents stay."""
        self._closing.set()
        self._couriers.close()
        for pool in (self._pool, self._probes):
            pool.shutdown(wait=False, cancel_futures=True)

    def _sync_by_relays(self, names: Sequence[str], requests: Mapping[str, SyncRequest]) -> dict[str, Report]:
        """Ask several at once; one that takes too long is not asked again before it has answered or failed."""
        self._relaying = {name: call for name, call in self._relaying.items() if not call.done()}
        asked = {
            name: self._pool.submit(self._sync_by_relay, self._links[name], requests[name])
            for name in names
            if name in self._links and name not in self._relaying
        }
        self._relaying |= asked
        wait(asked.values(), timeout=_RELAY_S)
        answers = {name: call.result() for name, call in asked.items() if call.done()}
        return {name: report for name, report in answers.items() if report is not None}

    def _sync_by_relay(self, link: str, request: SyncRequest) -> Report | None:
        client = self._relayed.get(link) or RelayedClient(link, self._token, timeout_s=_RELAY_S)
        self._relayed[link] = client
        try:
            return client.sync(request)
        except HubError as error:
            _log.warning("relay_failed", link=link, error=str(error))
            return None

    def _open_links(self) -> dict[str, str]:
        """All links but those of machines that were given up and do not listen again."""
        links = self._ask_links()
        gone = sorted(name for name, link in links.items() if link.given_up)
        back = self._probes.map(self._listens, (links[name].address for name in gone))
        silent = {name for name, listens in zip(gone, back, strict=True) if not listens}
        return {name: link.address for name, link in links.items() if name not in silent}

    def _listens(self, address: str) -> bool:
        try:
            RelayedClient(address, self._token, timeout_s=_RELAY_S).connect().close()
        except OSError:
            return False
        return True

    def _keep_looking(self) -> None:
        while not self._closing.wait(_LOOK_S):
            try:
                self._links = self._open_links()
            except Exception as error:  # noqa: BLE001 - the database is away
                _log.warning("links_unknown", error=str(error))
