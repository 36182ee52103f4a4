"""The centre's state as Prometheus reads it, from the database, part by part.

A part is read at most once in its interval, however many ask. A scrape waits briefly for what is due and otherwise
serves the last figures, so that a large centre makes figures older, never scrapes slower. A part that fails, or whose
figures are too old to be shown, is left out and counts as failed in its own metric: no scrape fails with it.
"""

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import structlog
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from compute_hub.telemetry.families import Family, Sample, exposition
from kernel.clock import boottime_ms, utc_now
from kernel.database import transaction

_WAIT_S: Final = 0.05
"""What a scrape waits for figures that are due, when there are older ones to serve."""

_FIRST_WAIT_S: Final = 8.0
"""What it waits when there are none; below Prometheus's own patience of ten seconds."""

_TOO_OLD_MS: Final = 60_000
"""Beyond its interval; older figures are not shown."""

_READERS: Final = 2
"""Parts read at one time, each on a connection of its own."""

FAILED: Final = Family(
    "hub_collector_failed",
    "Whether a part of the centre's metrics could not be read (1) or could (0).",
    ("part",),
)
AGE: Final = Family("hub_collector_age_seconds", "How old a part's figures are.", ("part",))
DURATION: Final = Family("hub_collector_duration_seconds", "How long reading a part took last.", ("part",))
OWN_FAMILIES: Final = (FAILED, AGE, DURATION)

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Part:
    """Some families that are read together, in one read-only transaction."""

    name: str
    interval_ms: int
    families: tuple[Family, ...]
    read: Callable[[Session, datetime], Iterable[Sample]]


@dataclass(frozen=True)
class _Reading:
    """What reading a part gave; no text when it failed."""

    exposition: bytes | None
    at_ms: int
    took_ms: int


class Centre:
    """The parts and what was last read of each. `scrape` may be called from several threads."""

    def __init__(self, engine: Engine, parts: Sequence[Part]) -> None:
        self._engine = engine
        self._parts = tuple(parts)
        self._readings: dict[str, _Reading] = {}
        self._pending: dict[str, Future[None]] = {}
        self._lock = threading.Lock()
        self._reader = ThreadPoolExecutor(_READERS, thread_name_prefix="metrics")

    def close(self) -> None:
        """Read no more; returns when the reading under way is over."""
        self._reader.shutdown(cancel_futures=True)

    def settle(self) -> None:
        """Return when nothing is being read."""
        with self._lock:
            pending = list(self._pending.values())
        wait(pending)

    def scrape(self) -> bytes:
        """The exposition of every part that can be shown, and how each part is doing."""
        begun, missing = [], []
        with self._lock:
            now_ms = boottime_ms()
            for part in self._parts:
                if part.name not in self._pending and self._age_ms(part, now_ms) >= part.interval_ms:
                    self._pending[part.name] = self._reader.submit(self._read, part)
                    begun.append(self._pending[part.name])
                    if not self._showable(part, now_ms):
                        missing.append(self._pending[part.name])
        wait(missing, timeout=_FIRST_WAIT_S)
        wait(begun, timeout=_WAIT_S)
        return b"".join(self._shown())

    def _shown(self) -> Iterable[bytes]:
        now_ms = boottime_ms()
        with self._lock:
            readings = dict(self._readings)
            shown = {part.name for part in self._parts if self._showable(part, now_ms)}
        own: list[Sample] = []
        for part in self._parts:
            own.append(FAILED(part.name not in shown, part.name))
            reading = readings.get(part.name)
            if reading is not None:
                own.append(AGE((now_ms - reading.at_ms) / 1000, part.name))
                own.append(DURATION(reading.took_ms / 1000, part.name))
                if part.name in shown and reading.exposition is not None:
                    yield reading.exposition
        yield exposition(OWN_FAMILIES, own)

    def _age_ms(self, part: Part, now_ms: int) -> float:
        reading = self._readings.get(part.name)
        return float("inf") if reading is None else now_ms - reading.at_ms

    def _showable(self, part: Part, now_ms: int) -> bool:
        reading = self._readings.get(part.name)
        return (
            reading is not None
            and reading.exposition is not None
            and now_ms - reading.at_ms <= part.interval_ms + _TOO_OLD_MS
        )

    def _read(self, part: Part) -> None:
        began_ms, shown = boottime_ms(), None
        try:
            with transaction(self._engine) as session:
                session.execute(text("SET TRANSACTION READ ONLY"))
                session.execute(text("SET LOCAL statement_timeout = '20s'"))
                samples = list(part.read(session, utc_now()))
            shown = exposition(part.families, samples)
        except Exception as error:  # noqa: BLE001 - a broken part must not break the scrape
            _log.error("collector_failed", part=part.name, error=str(error))
        ended_ms = boottime_ms()
        with self._lock:
            self._readings[part.name] = _Reading(shown, began_ms, ended_ms - began_ms)
            del self._pending[part.name]
