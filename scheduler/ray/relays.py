"""Asking nodes through their relays, for the time Ray is away or too slow.

Invariant: a node is asked one question at a time, and one that is slow is given more time with every question it does
not answer in time: on a machine so busy that every answer takes half a second, asking again and again for a shorter
time would hear none of them, and cost the node all its leases. What is asked ahead has a connection of its own.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Final

import structlog

from kernel.errors import HubError
from scheduler.node.protocol import OverRequest, Report, SyncRequest
from scheduler.node.relay import RelayedClient

PATIENCE_S: Final = 0.4
PATIENCE_S_MAX: Final = 1.0
"""Several questions fit into a node's lease, and one into what is left of ten seconds when a lost one is given up."""

_ASKED_AT_ONCE: Final = 32

_log = structlog.get_logger(__name__)


class Relays:
    """The relays of all nodes.

    Args:
        token: of the cluster.
    """

    def __init__(self, token: bytes) -> None:
        self.links: Mapping[str, str] = {}
        self._token = token
        self._pool = ThreadPoolExecutor(_ASKED_AT_ONCE, thread_name_prefix="relay")
        self._ahead = ThreadPoolExecutor(_ASKED_AT_ONCE, thread_name_prefix="relay-ahead")
        self._clients: dict[str, RelayedClient] = {}
        self._clients_ahead: dict[str, RelayedClient] = {}
        self._asked: dict[str, Future[Report | None]] = {}
        self._asked_ahead: dict[str, Future[None]] = {}
        self._patience_s: dict[str, float] = {}

    def ask(self, requests: Mapping[str, SyncRequest]) -> dict[str, Report]:
        """Ask several at once; one that takes too long is not asked again before it has answered or failed.

        What it answers then is dropped: it answers a question that is no longer asked.
        """
        self._asked = {name: call for name, call in self._asked.items() if not call.done()}
        asked = {
            name: self._pool.submit(self._sync, self.links[name], request)
            for name, request in sorted(requests.items())
            if name in self.links and name not in self._asked
        }
        self._asked |= asked
        wait(asked.values(), timeout=max(map(self.patience_s, asked), default=0))
        answers = {name: call.result() for name, call in asked.items() if call.done()}
        reports = {name: report for name, report in answers.items() if report is not None}
        for name in asked:
            if name in reports:
                self._patience_s.pop(name, None)
            else:
                self._patience_s[name] = min(2 * self.patience_s(name), PATIENCE_S_MAX)
        return reports

    def ask_ahead(self, requests: Mapping[str, OverRequest], reported: Callable[[str, Report], None]) -> None:
        """Have nodes sync when what they wait for is over, and tell what they report; one that still waits is left."""
        self._asked_ahead = {name: call for name, call in self._asked_ahead.items() if not call.done()}
        for name, request in sorted(requests.items()):
            if name in self.links and name not in self._asked_ahead:
                call = self._ahead.submit(self._sync_when_over, name, self.links[name], request, reported)
                self._asked_ahead[name] = call

    def patience_s(self, name: str) -> float:
        """For how long a node is waited for now."""
        return self._patience_s.get(name, PATIENCE_S)

    def listens(self, address: str) -> bool:
        """Whether somebody who knows the token answers there."""
        try:
            RelayedClient(address, self._token, timeout_s=PATIENCE_S).connect().close()
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Ask no more, and hang up."""
        for pool in (self._pool, self._ahead):
            pool.shutdown(wait=False, cancel_futures=True)
        for client in (*self._clients.values(), *self._clients_ahead.values()):
            client.close()

    def _sync(self, link: str, request: SyncRequest) -> Report | None:
        try:
            return self._client(self._clients, link).sync(request)
        except HubError as error:
            _log.warning("relay_failed", link=link, error=str(error))
            return None

    def _sync_when_over(
        self, name: str, link: str, request: OverRequest, reported: Callable[[str, Report], None]
    ) -> None:
        try:
            report = self._client(self._clients_ahead, link).sync_when_over(request)
        except HubError as error:
            _log.warning("relay_failed", link=link, error=str(error))
        else:
            if report is not None:
                reported(name, report)

    def _client(self, clients: dict[str, RelayedClient], link: str) -> RelayedClient:
        return clients.setdefault(link, RelayedClient(link, self._token, timeout_s=PATIENCE_S_MAX))
