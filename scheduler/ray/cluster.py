"""The centre's machines: through Ray, by one agent actor per hub node, and around it while it is away.

An RPC to a running actor costs about two milliseconds, starting one costs seconds; so there is one actor per node
and none per job. While Ray, a raylet, an agent or the courier is away, the nodes are reached through their relays, so
that no restart of Ray costs a lease.
"""

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import structlog

from scheduler.controller.wakeups import Wakeups, over
from scheduler.node.protocol import OverRequest, Report, SyncRequest
from scheduler.node.relay import Link
from scheduler.ray.couriers import Couriers
from scheduler.ray.relays import Relays
from scheduler.ray.watching import Early

_LOOK_S: Final = 1.0
_RAY_S: Final = 1.2
"""For all answers through Ray; longer than the courier waits, or one late node would cost all others theirs."""
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
        self._relays = Relays(token)
        self._wakeups = wakeups
        self._early = Early()
        self._around: frozenset[str] = frozenset()
        self._couriers = Couriers(address, wakeups, self._reported)
        self._closing = threading.Event()
        self._probes = ThreadPoolExecutor(_ASKED_AT_ONCE, thread_name_prefix="probe")
        threading.Thread(target=self._keep_looking, name="links", daemon=True).start()

    def reachable(self) -> Sequence[str]:
        """Hub nodes that are in the cluster or have a relay, as far as is known."""
        return sorted(self._couriers.members | self._relays.links.keys())

    def sync(self, requests: Mapping[str, SyncRequest]) -> Mapping[str, Report]:
        """Ask all nodes at once and wait for the slowest: with both waits far below a leader's lease."""
        reports = self._couriers.ask(requests, _RAY_S)
        relayed = self._relays.ask({name: one for name, one in requests.items() if name not in reports})
        self._around = (self._around - requests.keys()) | relayed.keys()
        reports |= relayed
        for name, report in reports.items():
            self._couriers.watches.heard(name, report.seq)
        return reports

    def watch(self, names: Collection[str]) -> None:
        """Through Ray; whoever is reached around it is asked with the next tick."""
        self._couriers.watch(names)

    def ask_ahead(self, requests: Mapping[str, OverRequest]) -> None:
        """The way on which each answered the last time."""
        number = self._early.ask(requests)
        around = {name: one for name, one in requests.items() if name in self._around}
        self._couriers.ask_ahead(number, {name: one for name, one in requests.items() if name not in around})
        self._relays.ask_ahead(around, lambda name, report: self._reported(number, name, report))

    def early(self, names: Collection[str]) -> Mapping[str, Report]:
        """What came of these nodes."""
        reports = self._early.take(names)
        for name, report in reports.items():
            self._couriers.watches.heard(name, report.seq)
        return reports

    def _reported(self, number: int, name: str, report: Report) -> None:
        if self._early.came(number, name, report):
            self._wakeups.put(over(name))

    def close(self) -> None:
        """Leave the cluster; agents stay."""
        self._closing.set()
        self._couriers.close()
        self._relays.close()
        self._probes.shutdown(wait=False, cancel_futures=True)

    def _open_links(self) -> dict[str, str]:
        """All links but those of machines that were given up and do not listen again."""
        links = self._ask_links()
        gone = sorted(name for name, link in links.items() if link.given_up)
        back = self._probes.map(self._relays.listens, (links[name].address for name in gone))
        silent = {name for name, listens in zip(gone, back, strict=True) if not listens}
        return {name: link.address for name, link in links.items() if name not in silent}

    def _keep_looking(self) -> None:
        while not self._closing.wait(_LOOK_S):
            try:
                self._relays.links = self._open_links()
            except Exception as error:  # noqa: BLE001 - the database is away
                _log.warning("links_unknown", error=str(error))
