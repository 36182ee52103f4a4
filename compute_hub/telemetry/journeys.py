"""A job's way as it is told: a line in the log and a span for each step, all under the request that submitted it.

submit → admit → start → finish → charge → capture. Everything is told after its commit.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

import structlog
from sqlalchemy import Engine, select

from compute_hub.billing.tables import ChargeRow
from compute_hub.telemetry.instruments import ADMISSIONS, RECLAIM_SECONDS, START_SECONDS, WAIT_SECONDS
from compute_hub.telemetry.parts.sizes import size_class
from compute_hub.telemetry.tracing import Spans
from kernel.database import transaction
from kernel.traces import parse_trace, request_id
from scheduler.controller.watching import Step
from scheduler.tables import JobRow

_SPAN_NAMES: Final = {"admitted": "admit", "started": "start", "requeued": "finish", "ended": "finish"}
_CLAIMS_MAX: Final = 10_000

_log = structlog.get_logger(__name__)


class Journeys:
    """What the controller does to jobs, as logs, spans and times.

    Between a claim and the admission it leads to lies the reclaim; who leads remembers its claims, and a new leader
    forgets those of the one before.
    """

    def __init__(self, spans: Spans) -> None:
        self._spans = spans
        self._claimed_at: dict[UUID, datetime] = {}

    def moved(self, steps: Sequence[Step]) -> None:
        """Tell steps that are committed."""
        for step in steps:
            facts: dict[str, str | int] = {"job": str(step.job_id), "attempt": step.attempt}
            extra = {"outcome": step.outcome} if step.outcome else {"nodes": step.nodes} if step.nodes else {}
            _log.info(f"job_{step.name}", **facts, request_id=request_id(step.traceparent), **extra)
            self._time(step)
            self._tell(step, facts | ({"outcome": step.outcome} if step.outcome else {}))

    def _time(self, step: Step) -> None:
        trace_id = {"trace_id": request_id(step.traceparent) or step.job_id.hex}
        if step.name == "started":
            START_SECONDS.observe((step.at - step.since).total_seconds(), trace_id)
        elif step.name == "claimed" and len(self._claimed_at) < _CLAIMS_MAX:
            self._claimed_at.setdefault(step.job_id, step.at)
        elif step.name == "admitted":
            ADMISSIONS.labels("admitted").inc()
            waited_s = (step.at - step.since).total_seconds()
            WAIT_SECONDS.labels(size_class(step.cards_milli)).observe(waited_s, trace_id)
            claimed_at = self._claimed_at.pop(step.job_id, None)
            if claimed_at is not None:
                RECLAIM_SECONDS.observe((step.at - claimed_at).total_seconds(), trace_id)
        elif step.name == "ended":
            self._claimed_at.pop(step.job_id, None)

    def _tell(self, step: Step, facts: dict[str, str | int]) -> None:
        parent, name = parse_trace(step.traceparent), _SPAN_NAMES.get(step.name)
        if parent is None or name is None:
            return
        span = parent.effect("span", step.name, step.job_id, step.attempt)
        attributes = {f"hub.{fact}": value for fact, value in facts.items()}
        self._spans.tell(name, span, parent.span_id, step.since, step.at, attributes)


class ChargeJourneys:
    """What the biller does to jobs, as logs and spans."""

    def __init__(self, engine: Engine, spans: Spans) -> None:
        self._engine = engine
        self._spans = spans

    def charged(self, charges: Sequence[UUID], since: datetime, until: datetime) -> None:
        """Tell charges that are committed.

        Args:
            charges: their ids, of any jobs.
            since: when work on them began.
            until: when it was committed.
        """
        if not charges:
            return
        with transaction(self._engine) as session:
            query = select(ChargeRow, JobRow.traceparent).join(JobRow, JobRow.id == ChargeRow.job_id)
            found = session.execute(query.where(ChargeRow.id.in_(charges)).order_by(ChargeRow.id)).all()
            session.expunge_all()  # what is read is read after the transaction, too
        for charge, traceparent in found:
            facts: dict[str, str | int] = {
                "job": str(charge.job_id),
                "attempt": charge.attempt,
                "charge": charge.n,
                "amount_micros": charge.amount_micros,
            }
            _log.info("job_charged", **facts, request_id=request_id(traceparent))
            parent = parse_trace(traceparent)
            if parent is None:
                continue
            attributes = {f"hub.{fact}": value for fact, value in facts.items()}
            span = parent.effect("span", "charge", charge.id)
            self._spans.tell("charge", span, parent.span_id, since, until, attributes)
            captured: dict[str, str | int] = {
                "hub.job": str(charge.job_id),
                "hub.voucher_micros": charge.voucher_micros,
                "hub.tenant_micros": charge.tenant_micros,
            }
            capture = parent.effect("span", "capture", charge.id)
            self._spans.tell("capture", capture, span.span_id, max(since, charge.charged_at), until, captured)
