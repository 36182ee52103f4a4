"""`hub biller`: charges usage, captures what it costs, gives back what was lost or not used, has the ledger audited.

Several may run.
"""

import signal
import threading
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import Session

from compute_hub.billing.charging import (
    charge_job,
    jobs_to_charge,
    jobs_to_release,
    release_job,
    restore_lost_time,
)
from compute_hub.billing.funding import WAKE_CHANNEL
from compute_hub.billing.losses import jobs_with_losses
from compute_hub.settings import Settings
from compute_hub.stack.database import application_url
from compute_hub.telemetry.auditing import keep_auditing
from compute_hub.telemetry.instruments import BILL_LAST, BILL_REFUSALS, BILL_SECONDS, BILLED
from compute_hub.telemetry.serving import serve_metrics
from compute_hub.workers.logs import configure_logs
from kernel.clock import unix_ms, utc_now
from kernel.database import open_engine, transaction
from kernel.errors import HubError
from scheduler.controller.wakeups import Wakeups, notifications
from vouchers.afterlife import expire_vouchers
from vouchers.redemption import lapse_holds

_BATCH: Final = 200
_AUDIT_GRACE_S: Final = 5
_log = structlog.get_logger(__name__)


def run_biller(settings: Settings) -> None:
    """Bill until SIGTERM or SIGINT."""
    configure_logs("biller")
    serve_metrics(settings, "biller")
    url = application_url(settings)
    engine = open_engine(url, pool_size=3)
    wakeups = Wakeups()
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    wakeups.watch("database", notifications(url, WAKE_CHANNEL))
    auditing = keep_auditing(engine, settings.audit_interval_ms, stopping)
    while not stopping.is_set():
        wakeups.wait(settings.tick_ms / 1000)
        try:
            with BILL_SECONDS.time():
                bill_once(engine, utc_now())
                end_what_is_due(engine, utc_now())
            BILL_LAST.set(unix_ms(utc_now()) / 1000)
        except DBAPIError as error:
            _log.error("database_failed", reason=str(error.orig))
    wakeups.stop()
    auditing.join(timeout=_AUDIT_GRACE_S)
    engine.dispose()


def end_what_is_due(engine: Engine, at: datetime) -> int:
    """End the vouchers whose instant has come and holds at their far end; returns how many there were."""
    count = 0
    for end in (expire_vouchers, lapse_holds):
        while True:
            with transaction(engine) as session:
                ended = end(session, at)
            count += len(ended)
            if not ended:
                break
    return count


def bill_once(engine: Engine, at: datetime) -> int:
    """Charge, give back and release what is due now, each job in a transaction; returns how many were touched.

    A job that cannot be billed is logged and left for the next round; the others go on.
    """
    charged = _sweep(engine, lambda s, after: jobs_to_charge(s, _BATCH, after=after), charge_job, at)
    lost = _sweep(engine, lambda s, after: jobs_with_losses(s, _BATCH, after=after), restore_lost_time, at)
    over = _sweep(engine, lambda s, after: jobs_to_release(s, _BATCH, at, after=after), release_job, at)
    return charged + lost + over


def _sweep(
    engine: Engine,
    due: Callable[[Session, UUID | None], Sequence[UUID]],
    bill: Callable[[Session, UUID, datetime], object],
    at: datetime,
) -> int:
    """Page through the jobs that are due, so that those which are refused again and again hide no others."""
    count, after = 0, None
    while True:
        with transaction(engine) as session:
            jobs = due(session, after)
        for job_id in jobs:
            try:
                with transaction(engine) as session:
                    bill(session, job_id, at)
            except (HubError, IntegrityError) as refusal:
                BILL_REFUSALS.labels(type(refusal).__name__).inc()
                _log.error("billing_refused", job=str(job_id), kind=type(refusal).__name__, reason=str(refusal))
        count += len(jobs)
        BILLED.inc(len(jobs))
        if len(jobs) < _BATCH:
            return count
        after = jobs[-1]
