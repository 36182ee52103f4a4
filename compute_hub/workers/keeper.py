"""`hub keeper`: removes what jobs left when its time is over, and the oldest before it when the store's disk is full.

It also removes what is left of uploads that were broken off.

A process of its own, because it alone needs the right to remove what jobs of any user own, and because nobody must wait
for it: it renews no lease. Several may run.
"""

import os
import signal
import threading
from typing import Final

import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from compute_hub.settings import Settings
from compute_hub.stack.database import application_url
from compute_hub.telemetry.instruments import KEEP_FAILURES, KEEP_LAST, KEEP_SECONDS, KEPT_REMOVED
from compute_hub.telemetry.serving import serve_metrics
from compute_hub.uploads import remove_broken_off
from kernel.clock import boottime_ms, unix_ms, utc_now
from kernel.database import open_engine
from kernel.logs import configure_logs
from scheduler.keeping import Terms, sweep

_NICENESS: Final = 10
_PAUSE_S: Final = 60
_PAUSE_PER_COST: Final = 10
"""A sweep looks at every job that left something: it takes a tenth of the time at most."""

_log = structlog.get_logger(__name__)


def run_keeper(settings: Settings) -> None:
    """Keep until SIGTERM or SIGINT."""
    configure_logs("keeper")
    serve_metrics(settings, "keeper")
    os.nice(_NICENESS)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    engine = open_engine(application_url(settings), part="keeper", pool_size=1, look=False)
    beat = settings.state_directory.resolve() / "keeper-swept"
    while True:
        began_ms = boottime_ms()
        again = False
        try:
            with KEEP_SECONDS.time():
                again = keep_once(engine, settings, stopping)
            beat.touch()
            KEEP_LAST.set(unix_ms(utc_now()) / 1000)
        except (DBAPIError, OSError) as error:
            KEEP_FAILURES.inc()
            _log.error("not_swept", reason=str(error))
        cost_s = (boottime_ms() - began_ms) / 1000
        if stopping.wait(0 if again else max(_PAUSE_S, cost_s * _PAUSE_PER_COST)):
            break
    engine.dispose()


def keep_once(engine: Engine, settings: Settings, stopping: threading.Event) -> bool:
    """One sweep, broken off when told to stop; whether there may be more to do at once. Raises DBAPIError, OSError."""
    terms = Terms(
        settings.files_kept_ms, settings.logs_kept_ms, settings.least_kept_ms, settings.store_full_percent
    )
    if broken_off := remove_broken_off(settings.uploads, utc_now()):
        _log.info("removed_broken_off_uploads", uploads=broken_off)
    more = removed = before_time = 0
    for swept in sweep(engine, settings.workspaces, terms, utc_now()):
        more, removed, before_time = swept.more, swept.removed, swept.before_time
        if stopping.is_set():
            break
    KEPT_REMOVED.labels("due").inc(removed - before_time)
    KEPT_REMOVED.labels("full").inc(before_time)
    if removed:
        _log.info("removed_what_jobs_left", jobs=removed, before_their_time=before_time)
    return bool(more)
