"""`hub biller`: charges usage, captures what it costs and releases what is left. Several may run."""

import signal
import threading
from typing import Final

import structlog
from sqlalchemy import Engine

from compute_hub.billing.charging import charge_job, jobs_to_charge, jobs_to_release, release_job
from compute_hub.billing.funding import WAKE_CHANNEL
from compute_hub.settings import Settings
from compute_hub.stack.database import application_url
from compute_hub.workers.logs import configure_logs
from kernel.clock import utc_now
from kernel.database import open_engine, transaction
from kernel.errors import HubError
from scheduler.controller.wakeups import Wakeups, notifications

_BATCH: Final = 200
_log = structlog.get_logger(__name__)


def run_biller(settings: Settings) -> None:
    """Bill until SIGTERM or SIGINT."""
    configure_logs("biller")
    url = application_url(settings)
    engine = open_engine(url, pool_size=2)
    wakeups = Wakeups()
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    wakeups.watch("database", notifications(url, WAKE_CHANNEL))
    while not stopping.is_set():
        wakeups.wait(settings.tick_ms / 1000)
        bill_once(engine)
    wakeups.stop()
    engine.dispose()


def bill_once(engine: Engine) -> int:
    """Charge and release what is due now, each job in its own transaction; returns how many jobs were touched.

    A job that cannot be billed is logged and left for the next round; the others go on.
    """
    with transaction(engine) as session:
        charging = jobs_to_charge(session, _BATCH)
    for job_id in charging:
        try:
            with transaction(engine) as session:
                charge_job(session, job_id, utc_now())
        except HubError as refusal:
            _log.error("charge_refused", job=str(job_id), code=refusal.code, reason=str(refusal))
    with transaction(engine) as session:
        releasing = jobs_to_release(session, _BATCH)
    for job_id in releasing:
        with transaction(engine) as session:
            release_job(session, job_id, utc_now())
    return len(charging) + len(releasing)
