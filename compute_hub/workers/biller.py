"""`hub biller`: charges usage, captures what it costs, gives back what was lost or not used, has the ledger audited.

Several may run.
"""

import os
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import Session

from compute_hub.billing.charging import Billed, charge_jobs, release_job, restore_lost_time
from compute_hub.billing.funding import WAKE_CHANNEL
from compute_hub.billing.losses import jobs_with_losses
from compute_hub.billing.uncharged import jobs_to_charge, jobs_to_release
from compute_hub.billing.waiting import give_back_waiting, jobs_to_give_back
from compute_hub.queues import live_queues
from compute_hub.settings import Settings
from compute_hub.stack.database import application_url
from compute_hub.telemetry.auditing import keep_auditing
from compute_hub.telemetry.forecasting import keep_estimating
from compute_hub.telemetry.instruments import BILL_LAST, BILL_REFUSALS, BILL_SECONDS, BILLED
from compute_hub.telemetry.journeys import ChargeJourneys
from compute_hub.telemetry.serving import serve_metrics
from compute_hub.telemetry.tracing import open_spans
from compute_hub.workers.alerts import keep_alerting
from kernel.clock import boottime_ms, unix_ms, utc_now
from kernel.collecting import collect_seldom
from kernel.database import glance, open_engine, transaction
from kernel.errors import HubError
from kernel.logs import configure_logs
from scheduler.controller.wakeups import Wakeups, notifications
from vouchers.afterlife import expire_vouchers
from vouchers.cycles import begin_cycles, close_cycles
from vouchers.redemption import lapse_holds

_PAGE: Final = 5_000
"""Jobs looked up at once, in the order of tenants, so that billers at work at the same time each find their own."""

_BATCH: Final = 250
"""Jobs billed in one transaction: enough that its statements cost little, few enough that nobody waits long for it."""

_Bill = Callable[[Session, Sequence[UUID], datetime], Billed]
"""Bills jobs in one transaction."""

_GATHER_S: Final = 0.25
"""From the first word after a pause until what came meanwhile is billed together."""

_BREATH_MS: Final = 1000
"""From one round to the next while there is always something to bill: billed together, many cost little more."""

_NICENESS: Final = 5
"""What is held is safe, so charging it waits for those who start jobs."""

_AUDIT_GRACE_S: Final = 5
_log = structlog.get_logger(__name__)


def run_biller(settings: Settings) -> None:
    """Bill until SIGTERM or SIGINT."""
    configure_logs("biller")
    serve_metrics(settings, "biller")
    url = application_url(settings)
    os.nice(_NICENESS)
    engine = open_engine(url, part="biller", pool_size=4, look=False)
    wakeups = Wakeups()
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    wakeups.watch("database", notifications(url, WAKE_CHANNEL))
    next_look = rested = 0
    spans = open_spans(settings, "biller")
    journeys = ChargeJourneys(engine, spans)
    auditing = keep_auditing(engine, settings.audit_interval_ms, stopping)
    estimating = keep_estimating(engine, live_queues(settings), stopping)
    alerting = keep_alerting(engine, settings.state_directory.resolve() / "mail", stopping)
    collect_seldom()
    while not stopping.is_set():
        wakeups.wait(settings.tick_ms / 1000)
        wakeups.gather(max(_GATHER_S, (rested - boottime_ms()) / 1000))
        began = boottime_ms()
        try:
            with BILL_SECONDS.time():
                if bill_once(engine, utc_now(), journeys):
                    rested = began + _BREATH_MS
                if boottime_ms() >= next_look:
                    next_look = boottime_ms() + settings.tick_ms
                    end_what_is_due(engine, utc_now())
            BILL_LAST.set(unix_ms(utc_now()) / 1000)
        except DBAPIError as error:
            _log.error("database_failed", reason=str(error.orig))
    wakeups.stop()
    auditing.join(timeout=_AUDIT_GRACE_S)
    alerting.join(timeout=_AUDIT_GRACE_S)
    estimating.join(timeout=_AUDIT_GRACE_S)
    spans.close()
    engine.dispose()


def end_what_is_due(engine: Engine, at: datetime) -> int:
    """End vouchers whose instant has come, holds at their far end and budget cycles; returns how many there were."""
    count = 0
    for end in (expire_vouchers, lapse_holds, begin_cycles, close_cycles):
        while True:
            with transaction(engine) as session:
                ended = end(session, at)
            count += len(ended)
            if not ended:
                break
    return count


def bill_once(engine: Engine, at: datetime, journeys: ChargeJourneys | None = None) -> int:
    """Charge, give back and release what is due now, many jobs in a transaction; returns how many were touched.

    A job that cannot be billed is logged and left for the next round; the others go on. What is rare, losses and
    releases without a last record, goes one by one.

    Args:
        engine: of the application role.
        at: now.
        journeys: who is told of charges once they are committed.
    """
    sweep = _Sweep(engine, at, journeys)
    charged = sweep(lambda s, after: jobs_to_charge(s, _PAGE, after=after), _charge)
    lost = sweep(lambda s, after: jobs_with_losses(s, _PAGE, after=after), _one(restore_lost_time), 1)
    back = sweep(lambda s, after: jobs_to_give_back(s, _PAGE, after=after), _give_back)
    over = sweep(lambda s, after: jobs_to_release(s, _PAGE, at, after=after), _charge)
    if over:
        sweep(lambda s, after: jobs_to_release(s, _PAGE, at, after=after), _one(release_job), 1)
    return charged + lost + back + over


def _charge(session: Session, jobs: Sequence[UUID], at: datetime) -> Billed:
    return charge_jobs(session, jobs, at, wait=False)


def _give_back(session: Session, jobs: Sequence[UUID], at: datetime) -> Billed:
    give_back_waiting(session, jobs, at)
    return Billed((), (), {})


def _one(bill: Callable[[Session, UUID, datetime], None]) -> _Bill:
    def alone(session: Session, jobs: Sequence[UUID], at: datetime) -> Billed:
        bill(session, jobs[0], at)
        return Billed((), (), {})

    return alone


@dataclass(frozen=True)
class _Sweep:
    """One round over the jobs that are due."""

    engine: Engine
    at: datetime
    journeys: ChargeJourneys | None

    def __call__(
        self, due: Callable[[Session, UUID | None], Sequence[UUID]], bill: _Bill, together: int = _BATCH
    ) -> int:
        """Page through the jobs that are due, so that those which are refused again and again hide no others."""
        count, after = 0, None
        while True:
            with glance(self.engine) as session:
                jobs = due(session, after)
            for first in range(0, len(jobs), together):
                self._bill(jobs[first : first + together], bill)
            count += len(jobs)
            BILLED.inc(len(jobs))
            if len(jobs) < _PAGE:
                return count
            after = jobs[-1]

    def _bill(self, jobs: Sequence[UUID], bill: _Bill) -> None:
        """Bill jobs together; if all are refused, each half by itself, so that only the culprit stays behind."""
        began = utc_now()
        try:
            with transaction(self.engine) as session:
                billed = bill(session, jobs, self.at)
        except (HubError, IntegrityError) as refusal:
            if len(jobs) == 1:
                _tell(jobs[0], refusal)
                return
            for some in (jobs[: len(jobs) // 2], jobs[len(jobs) // 2 :]):
                self._bill(some, bill)
            return
        for job_id, reason in billed.refused.items():
            _tell(job_id, reason)
        if self.journeys is not None:
            self.journeys.charged(billed.charges, began, utc_now())


def _tell(job_id: UUID, refusal: Exception) -> None:
    kind = type(refusal).__name__
    BILL_REFUSALS.labels(kind).inc()
    _log.error("billing_refused", job=str(job_id), kind=kind, reason=str(refusal))
