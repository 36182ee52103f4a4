"""The actor that stands for one node in the Ray cluster: it carries the controller's words to the supervisor's socket.

It keeps nothing, and reads nothing: Ray may kill and restart it at any time without a job noticing.
"""

import os
import threading
from pathlib import Path

from kernel.collecting import collect_seldom
from scheduler.node.client import SupervisorClient
from scheduler.node.errors import SupervisorUnreachable
from scheduler.node.protocol import Change
from scheduler.ray.sealing import unsealed

SOCKET_VARIABLE = "HUB_NODE_SOCKET"
"""Set by `hub node` in its raylet's environment, which the raylet's workers inherit."""

_TIMEOUT_S = 2.0


class NodeAgent:
    """Lives in a worker of the node's raylet; made and found by name by the controller."""

    def __init__(self) -> None:
        self._socket = Path(os.environ[SOCKET_VARIABLE])  # noqa: TID251 - all a raylet can hand to its workers
        self._clients = threading.local()
        collect_seldom()  # Ray's modules are a hundred thousand objects

    def sync(self, line: bytes, key: bytes, within_ms: int = 0) -> bytes:
        """One `sync` of the node's supervisor; once more on a new connection if it has been started anew.

        Args:
            line: what is asked (`sealing.py`).
            key: opens it; empty if it is not sealed.
            within_ms: for how long the supervisor may wait for something before it syncs.
        """
        line, timeout_s = unsealed(line, key), _TIMEOUT_S + within_ms / 1000
        try:
            return self._supervisor().ask(line, timeout_s)
        except SupervisorUnreachable:
            return self._supervisor().ask(line, timeout_s)

    def wait_for_change(self, after_seq: int, timeout_ms: int) -> Change:
        """Return when a run of this node changed state after `after_seq`, or after the timeout."""
        return self._supervisor().wait_for_change(after_seq, timeout_ms)

    def _supervisor(self) -> SupervisorClient:
        """A connection of this thread's own; one that broke is opened anew by the next call."""
        client: SupervisorClient | None = getattr(self._clients, "client", None)
        if client is None:
            client = self._clients.client = SupervisorClient(self._socket, timeout_s=_TIMEOUT_S)
        return client
