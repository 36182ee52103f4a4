"""`POST /v1/jobs:estimate`: what a job would cost, who would pay it, and when it would start."""

from datetime import datetime

from fastapi import APIRouter
from sqlalchemy.orm import Session

from compute_hub.api.call import Caller
from compute_hub.api.charges import CoverageView, coverage_fields
from compute_hub.api.job_submission import JobSubmission
from compute_hub.api.shapes import View
from compute_hub.api.submitting import checked_job
from compute_hub.billing.domain.rating import Priced
from compute_hub.billing.estimates import Cost, estimate_job
from compute_hub.telemetry.tracing import traceparent
from kernel.money import format_yuan
from scheduler.jobs import queue_jobs

router = APIRouter(prefix="/v1", tags=["jobs"])


class PriceView(View):
    """A part of the card time at one price; `time_window` is the time of day that made it."""

    price_cny_per_card_hour: str
    time_window: str
    card_ms: int


class CostView(View):
    """What a duration costs and who pays it; without coverage the sentence says why nobody would."""

    model: str
    duration_s: int
    cost_cny: str
    voucher_cny: str
    tenant_cny: str
    affordable: bool
    sentence: str
    prices: list[PriceView]
    coverage: CoverageView | None


class ModelCostView(View):
    """What the limit would cost on another model that the job accepts."""

    model: str
    cost_cny: str


class EstimateView(View):
    """On the dearest model it accepts: the cost of the limit and of the predicted duration, and a likely start."""

    limit: CostView
    predicted: CostView
    other_models: list[ModelCostView]
    starts_at: datetime | None
    start_sentence: str
    warnings: list[str]


@router.post("/jobs:estimate", name="estimate_job")
def estimate(body: JobSubmission, call: Caller) -> EstimateView:
    """Say what a job would cost, which voucher would pay what and why, and when it would start; submit nothing."""

    def action(session: Session, at: datetime) -> EstimateView:
        job = checked_job(session, body, call, at, traceparent())
        queue_jobs(session, [job])
        centre = call.settings.centre_facts
        found = estimate_job(session, job, body.voucher_ids, project=body.project, centre=centre, at=at)
        return EstimateView(
            limit=_cost(found.limit),
            predicted=_cost(found.predicted),
            other_models=[
                ModelCostView(model=cost.model, cost_cny=format_yuan(cost.cost_micros)) for cost in found.others
            ],
            starts_at=found.starts_at,
            start_sentence=found.start_sentence,
            warnings=list(found.warnings),
        )

    return call.preview(action)


def _cost(cost: Cost) -> CostView:
    coverage = cost.coverage
    fields = None if coverage is None else coverage_fields(coverage)
    return CostView(
        model=cost.model,
        duration_s=-(-cost.duration_ms // 1000),
        cost_cny=format_yuan(cost.cost_micros),
        voucher_cny="0.000000" if fields is None else str(fields["voucher_cny"]),
        tenant_cny=format_yuan(cost.cost_micros) if fields is None else str(fields["tenant_cny"]),
        affordable=coverage is not None,
        sentence=cost.refusal if coverage is None else coverage.sentence,
        prices=[_price(piece) for piece in cost.prices],
        coverage=None if fields is None else CoverageView.model_validate(fields),
    )


def _price(piece: Priced) -> PriceView:
    return PriceView(
        price_cny_per_card_hour=format_yuan(piece.price_micros),
        time_window=piece.window,
        card_ms=piece.slot_ms // 1000,
    )
