"""What is told of a job's way, and what is counted where it is told."""

import json
import threading
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
import structlog
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from sqlalchemy import Engine, select

from compute_hub.settings import Settings
from compute_hub.telemetry.forecasting import estimate_once, keep_estimating
from compute_hub.telemetry.instruments import ControllerGauge
from compute_hub.telemetry.journeys import Journeys
from compute_hub.telemetry.parts.queue import ended
from compute_hub.telemetry.registry import REGISTRY
from compute_hub.telemetry.tables import StartEstimateRow
from compute_hub.telemetry.tracing import Attributes, open_spans
from kernel.database import transaction
from kernel.traces import Trace, new_trace, parse_trace, request_id
from scheduler.controller.watching import Step
from scheduler.tables import JobRow
from tests.compute_hub.billing.house import NOW, House
from tests.end_to_end.collecting import Collector

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
JOB = UUID("018f0000-0000-7000-8000-000000000001")
BEGAN = datetime(2026, 3, 10, tzinfo=UTC)


class Told:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Trace, str, datetime, datetime]] = []

    def tell(
        self,
        name: str,
        span: Trace,
        parent: str,
        since: datetime,
        until: datetime,
        attributes: Attributes,  # noqa: ARG002 - the protocol's
        *,
        served: bool = False,  # noqa: ARG002 - the protocol's
    ) -> None:
        self.spans.append((name, span, parent, since, until))

    def close(self) -> None:
        """Nothing is left."""


def step(name: Any, seconds: int, traceparent: str = PARENT, **facts: Any) -> Step:  # noqa: ANN401 - any field
    return Step(name, JOB, 1, traceparent, BEGAN, BEGAN + timedelta(seconds=seconds), **facts)


def figures(name: str) -> dict[str, float]:
    return {
        sample.name + json.dumps(sample.labels, sort_keys=True): sample.value
        for family in text_string_to_metric_families(generate_latest(REGISTRY).decode())
        for sample in family.samples
        if sample.name.startswith(name)
    }


def test_a_step_told_twice_is_one_span_and_every_step_belongs_to_the_submission() -> None:
    told = Told()
    journeys = Journeys(told)
    journeys.moved([step("admitted", 5, cards_milli=1000), step("started", 6), step("ended", 9)])
    journeys.moved([step("started", 6)])
    assert [name for name, *_ in told.spans] == ["admit", "start", "finish", "start"]
    assert told.spans[1] == told.spans[3]
    assert len({span.span_id for _, span, *_ in told.spans}) == 3
    assert {span.trace_id for _, span, *_ in told.spans} == {request_id(PARENT)}
    assert {parent for _, _, parent, *_ in told.spans} == {"00f067aa0ba902b7"}


def test_a_job_that_nobody_traces_is_logged_all_the_same() -> None:
    told = Told()
    with structlog.testing.capture_logs() as lines:
        Journeys(told).moved([step("ended", 9, traceparent="", outcome="failed")])
    assert told.spans == []
    assert [(line["event"], line["job"], line["outcome"]) for line in lines] == [
        ("job_ended", str(JOB), "failed")
    ]


def test_a_reclaim_lasts_from_the_first_claim_to_the_admission() -> None:
    name = "hub_scheduler_reclaim_seconds"
    before = figures(name)
    journeys = Journeys(Told())
    journeys.moved([step("claimed", 10), step("claimed", 12)])
    journeys.moved([step("admitted", 14, cards_milli=500)])
    journeys.moved([step("admitted", 20, cards_milli=500)])  # nobody was stopped for this one
    after = figures(name)
    grown = {key: value - before[key] for key, value in after.items() if value != before[key]}
    assert grown[f"{name}_sum{{}}"] == 4
    assert grown[f"{name}_count{{}}"] == 1


def test_waits_are_counted_by_size_with_the_trace_of_an_example() -> None:
    Journeys(Told()).moved([step("admitted", 7, cards_milli=8000)])
    exemplars = {
        sample.exemplar.labels["trace_id"]
        for family in text_string_to_metric_families(generate_latest(REGISTRY).decode())
        for sample in family.samples
        if sample.name == "hub_job_wait_seconds_bucket" and sample.exemplar and sample.labels["size"] == "2-8"
    }
    assert exemplars == {request_id(PARENT)}


def test_the_size_of_each_plan_is_counted_by_what_it_decides() -> None:
    before = figures("hub_scheduler_plan_jobs_sum")
    ControllerGauge(Journeys(Told()).moved).planned(starts=3, evictions=1)
    after = figures("hub_scheduler_plan_jobs_sum")
    grown = {name: value - before.get(name, 0) for name, value in after.items()}
    assert grown == {
        'hub_scheduler_plan_jobs_sum{"decision": "start"}': 3,
        'hub_scheduler_plan_jobs_sum{"decision": "stop"}': 1,
    }


@pytest.mark.parametrize(
    "header",
    [
        "",
        "nonsense",
        PARENT.upper(),
        PARENT + "-more",
        f"ff{PARENT[2:]}",
        f"00-{'0' * 32}-00f067aa0ba902b7-01",
        f"00-4bf92f3577b34da6a3ce929d0e0e4736-{'0' * 16}-01",
    ],
)
def test_what_is_no_traceparent_is_not_taken_for_one(header: str) -> None:
    assert parse_trace(header) is None


def test_a_traceparent_comes_out_as_it_went_in() -> None:
    assert str(parse_trace(PARENT)) == PARENT
    assert parse_trace(PARENT[:-1] + "0") == Trace(PARENT[3:35], PARENT[36:52], sampled=False)
    made = new_trace()
    assert parse_trace(str(made)) == made
    assert made.child().trace_id == made.trace_id


def test_spans_reach_a_receiver_of_otlp_and_those_not_sampled_do_not() -> None:
    collector = Collector()
    collector.listen()
    spans = open_spans(Settings(otlp_endpoint=collector.address), "test")
    heard, quiet = new_trace(), Trace(new_trace().trace_id, "00f067aa0ba902b7", sampled=False)
    until = BEGAN + timedelta(microseconds=1_000_001)
    for trace in (heard, quiet):
        spans.tell("做", trace, "", BEGAN, until, {'odd "name"\n': "价值 🚀"})
    spans.close()
    (span,) = collector.trace(heard.trace_id)
    assert (span.name, span.parent_id, span.until_ns - span.since_ns) == ("做", "", 1_000_001_000)
    assert span.attributes == {'odd "name"\n': "价值 🚀"}
    assert collector.trace(quiet.trace_id) == []
    collector.close()


@pytest.mark.slow
def test_telling_spans_neither_waits_nor_fails_when_nobody_listens() -> None:
    spans = open_spans(Settings(otlp_endpoint="http://127.0.0.1:9"), "test")
    spans.tell("x", new_trace(), "", BEGAN, BEGAN, {})
    stopping = threading.Thread(target=spans.close)
    stopping.start()
    stopping.join(timeout=60)
    assert not stopping.is_alive()


def test_a_waiting_jobs_start_is_estimated_once_and_held_against_the_truth(engine: Engine) -> None:
    house = House(engine)
    first, second = (house.submit(models=("sim-a",)) for _ in range(2))
    assert estimate_once(engine, (), NOW) == 2
    assert estimate_once(engine, (), NOW) == 0
    with transaction(engine) as session:
        rows = {row.job_id: row for row in session.scalars(select(StartEstimateRow))}
        assert min(row.start_estimate_at for row in rows.values()) == NOW  # one of them could start at once
        later = max(rows.values(), key=lambda row: (row.start_estimate_at, row.job_id))
        assert later.start_estimate_at > NOW
    other = ({first, second} - {later.job_id}).pop()
    assert house.admit(later.job_id, at=later.start_estimate_at + timedelta(minutes=3)) is None
    house.end(other, NOW, state="cancelled", reason="cancelled")
    judged_at = datetime.now(UTC)
    assert estimate_once(engine, (), judged_at) == 0
    with transaction(engine) as session:
        (row,) = session.scalars(select(StartEstimateRow)).all()
        assert (row.job_id, row.judged_at) == (later.job_id, judged_at)
        samples = {
            (sample.family.name, sample.labels): sample.value
            for sample in ended().read(session, judged_at + timedelta(seconds=1))
        }
    assert samples["hub_start_estimates_total", ("late",)] == 1
    assert samples["hub_start_estimates_total", ("early",)] == 0
    assert samples["hub_start_estimate_error_seconds_total", ("late",)] == 180


def test_a_job_that_has_waited_for_long_is_not_estimated_any_more(engine: Engine) -> None:
    house = House(engine)
    house.submit()
    assert estimate_once(engine, (), NOW + timedelta(minutes=1)) == 0


def test_the_thread_of_estimates_ends_when_told(engine: Engine) -> None:
    stopping = threading.Event()
    thread = keep_estimating(engine, (), stopping)
    stopping.set()
    thread.join(timeout=60)
    assert not thread.is_alive()
    with transaction(engine) as session:
        assert session.scalars(select(JobRow)).all() == []
