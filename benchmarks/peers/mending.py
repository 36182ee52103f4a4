"""Starts again what ended of a hub, as `hub up` does, from a thread that lives as long as the hub.

A child gets SIGTERM when the thread that started it ends (`compute_hub.stack.children`): so there is one mender for
all faults of a hub, and not one per fault.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Final, Self

from benchmarks.peers.ours import Hub

_LOOK_S: Final = 0.2


class Mender:
    """A context manager inside that of the hub; leaving it ends the mending, so the hub must be left right after."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._done = threading.Event()
        self._hand = threading.Lock()
        self._thread = threading.Thread(target=self._mend, name="mender")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    @contextmanager
    def held_off(self) -> Iterator[None]:
        """Nothing is started again meanwhile."""
        with self._hand:
            yield

    def _mend(self) -> None:
        while not self._done.wait(_LOOK_S):
            with self._hand:
                self._hub.stack.mend()
