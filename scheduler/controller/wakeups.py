"""What makes the controller look: a notification from the database, or a node where a run changed state.

Each source has a thread that does nothing but wait and put a word in a queue; the controller's one thread does all the
work. A source that breaks is tried again after a pause, and the tick covers the time between.
"""

import queue
import select
import threading
import time
from collections.abc import Callable, Collection
from typing import Final

import psycopg
import structlog

_PAUSE_S: Final = 1.0
_WAIT_MS: Final = 5000
_log = structlog.get_logger(__name__)


def over(node: str) -> str:
    """The word that what was awaited of this node is over, and what it reports is there (`Machines.ask_ahead`)."""
    return f"over {node}"


class Wakeups:
    """A queue of reasons to look, filled by waiting threads."""

    def __init__(self) -> None:
        self._words: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._awaited: set[str] = set()
        self._all_said = threading.Event()
        self._saying = threading.Lock()

    def put(self, word: str) -> None:
        """Wake the controller; a node's name says that this node should be synced."""
        self._words.put(word)
        with self._saying:
            if word in self._awaited:
                self._awaited.discard(word)
                if not self._awaited:
                    self._all_said.set()

    def expect(self, words: Collection[str]) -> None:
        """The next `gather` need not go on when all these have been said from now on; with none it goes on."""
        with self._saying:
            self._awaited = set(words)
            self._all_said.clear()

    def wait(self, timeout_s: float) -> set[str]:
        """Everything that was said until now, waiting up to the timeout for the first word."""
        words: set[str] = set()
        try:
            words.add(self._words.get(timeout=timeout_s) if timeout_s > 0 else self._words.get_nowait())
            while True:
                words.add(self._words.get_nowait())
        except queue.Empty:
            return words

    def gather(self, seconds: float, least_s: float | None = None) -> set[str]:
        """Everything that is said within so long a time, or until all has been said that was expected.

        Args:
            seconds: at most.
            least_s: at least; as long as at most, if left out.
        """
        first_s = max(0.0, seconds if least_s is None else min(least_s, seconds))
        time.sleep(first_s)
        self._all_said.wait(max(0.0, seconds - first_s))
        return self.wait(0)

    def watch(self, name: str, wait_once: Callable[[], str | None]) -> None:
        """Run `wait_once` for ever in a thread of its own and put what it returns."""
        threading.Thread(target=self._watch, args=(name, wait_once), name=f"wake-{name}", daemon=True).start()

    def stop(self) -> None:
        """Let the watching threads end at their next return."""
        self._stopping.set()

    def _watch(self, name: str, wait_once: Callable[[], str | None]) -> None:
        while not self._stopping.is_set():
            try:
                word = wait_once()
            except Exception as error:  # noqa: BLE001 - whatever broke, the tick covers until it is tried again
                _log.warning("wakeup_source_failed", source=name, error=str(error))
                self._stopping.wait(_PAUSE_S)
                continue
            if word is not None:
                self.put(word)


def notifications(url: str, channel: str) -> Callable[[], str | None]:
    """A `wait_once` that listens on a PostgreSQL channel over a connection of its own; the word is what was said there.

    Where nothing particular was said it is the channel's own name, which stands for anything that is said there.

    Args:
        url: SQLAlchemy URL; the driver part is left out for the plain connection.
        channel: what to LISTEN to.
    """
    connection: list[psycopg.Connection] = []

    def wait_once() -> str | None:
        if not connection or connection[0].closed:
            connection[:] = [psycopg.connect(url.replace("+psycopg", "", 1), autocommit=True)]
            connection[0].execute(f"LISTEN {channel}".encode())
            return channel  # something may have been said while nobody listened
        try:
            # psycopg, told to wait, would wake ten times a second.
            waiting = select.poll()
            waiting.register(connection[0].fileno(), select.POLLIN)
            waiting.poll(_WAIT_MS)
            # To the end: of several that came together, all but the first would be lost.
            said = {one.payload or channel for one in connection[0].notifies(timeout=0)}
        except psycopg.Error:
            connection[0].close()
            raise
        return channel if channel in said else next(iter(sorted(said)), None)

    return wait_once
