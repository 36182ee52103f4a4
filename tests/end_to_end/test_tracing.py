"""One job through all processes: one trace at a real OTLP receiver, one word that finds it in every log."""

import json
import threading
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from kernel.clock import boottime_ms
from tests.end_to_end.collecting import Collected
from tests.end_to_end.conftest import RunningHub

pytestmark = pytest.mark.slow

TRACE: Final = "0af7651916cd43dd8448eb211c80319c"
CALLER: Final = "b7ad6b7169203331"
PATIENCE_MS: Final = 180_000
TELLERS: Final = {
    "submit_job": "hub-api",
    "admit": "hub-controller",
    "start": "hub-controller",
    "finish": "hub-controller",
    "charge": "hub-biller",
    "capture": "hub-biller",
}
SUBMISSION: Final = {
    "name": "traced",
    "argv": ["sh", "-c", "echo parent=$TRACEPARENT; sleep 1"],
    "accelerator": "MLU370-X8",
    "environment": "digits",
    "time_limit_s": 60,
}


@pytest.fixture(scope="module")
def journey(hub: RunningHub) -> tuple[str, list[Collected]]:
    """A job submitted by somebody who traces, and the spans of its trace once it is charged."""
    headers = {
        "Authorization": f"Bearer {hub.keys['tenant']}",
        "Idempotency-Key": "traced",
        "traceparent": f"00-{TRACE}-{CALLER}-01",
    }
    answer = httpx.post(f"{hub.url}/v1/jobs", json=SUBMISSION, headers=headers, timeout=60)
    assert answer.status_code == 201, answer.text
    assert answer.headers["x-request-id"] == TRACE
    never, deadline = threading.Event(), boottime_ms() + PATIENCE_MS
    while not TELLERS.keys() <= {
        span.name for span in hub.collector.trace(TRACE)
    }:  # each process sends when it likes
        assert boottime_ms() < deadline, hub.collector.trace(TRACE)
        never.wait(0.2)
    return answer.json()["id"], hub.collector.trace(TRACE)


def test_from_submission_to_capture_is_one_trace(journey: tuple[str, list[Collected]]) -> None:
    job, spans = journey
    named = {span.name: span for span in spans}
    assert {name: named[name].service for name in TELLERS} == TELLERS
    submitted = named["submit_job"]
    assert submitted.parent_id == CALLER
    for name in ("admit", "start", "finish", "charge"):
        assert {span.parent_id for span in spans if span.name == name} == {submitted.span_id}, name
    charges = {span.span_id for span in spans if span.name == "charge"}
    assert {span.parent_id for span in spans if span.name == "capture"} == charges
    assert {span.attributes["hub.job"] for span in spans} == {job}
    assert named["admit"].until_ns <= named["start"].until_ns <= named["finish"].until_ns
    assert named["finish"].until_ns - named["finish"].since_ns >= 1_000_000_000
    assert named["finish"].attributes["hub.outcome"] == "succeeded"
    assert all(span.since_ns <= span.until_ns for span in spans)


def test_a_job_can_carry_its_trace_on(hub: RunningHub, journey: tuple[str, list[Collected]]) -> None:
    job, spans = journey
    (submitted,) = [span for span in spans if span.name == "submit_job"]
    assert f"parent=00-{TRACE}-{submitted.span_id}-01" in hub.command("job", "logs", job).stdout


def lines_about(logs: list[Path], job: str) -> list[dict[str, Any]]:
    return [
        json.loads(line) for log in logs for line in log.read_text(encoding="utf-8").splitlines() if job in line
    ]


def test_one_job_id_is_found_in_every_log_with_the_request_that_caused_it(
    hub: RunningHub, journey: tuple[str, list[Collected]]
) -> None:
    job, _ = journey
    logs = [*(hub.state / "logs").glob("*.log"), *(hub.state / "nodes").glob("*/supervisor.log")]
    never, deadline = threading.Event(), boottime_ms() + PATIENCE_MS
    expected = [
        ("api", "request"),
        ("controller", "job_admitted"),
        ("supervisor", "run_started"),
        ("controller", "job_started"),
        ("supervisor", "run_ended"),
        ("controller", "job_ended"),
        ("biller", "job_charged"),
    ]
    found: list[dict[str, Any]] = []
    while not {event for _, event in expected} <= {line["event"] for line in found}:
        assert boottime_ms() < deadline, found
        never.wait(0.2)
        found = lines_about(logs, job)
    assert {(line["process"].split()[0], line["event"]) for line in found} >= set(expected)
    assert {line["request_id"] for line in found} == {TRACE}
    assert {line["job"] for line in found} == {job}


def test_every_line_of_the_hubs_own_logs_is_a_json_object_that_names_its_process(hub: RunningHub) -> None:
    # Controllers are left out: Ray's library writes lines of its own to their standard error.
    names = ("api.log", "biller.log", "node-node-1.log", "node-node-2.log")
    logs = [*(hub.state / "logs" / name for name in names), *(hub.state / "nodes").glob("*/supervisor.log")]
    assert len(logs) == 6
    for log in logs:
        for line in log.read_text(encoding="utf-8").splitlines():
            assert {"process", "level", "timestamp", "event"} <= set(json.loads(line)), (log.name, line)
