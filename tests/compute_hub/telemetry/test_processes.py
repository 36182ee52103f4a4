import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from compute_hub.settings import Settings
from compute_hub.stack.ports import free_port
from compute_hub.telemetry.serving import NoPortFree, serve_metrics, targets_directory
from kernel.clock import boottime_ms
from tests.conftest import Database
from tests.end_to_end.conftest import HUB

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PATIENCE_S = 120
OPENMETRICS = {"Accept": "application/openmetrics-text; version=1.0.0"}


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def api(database: Database, state: Path) -> Iterator[str]:
    """`hub api` with two workers; its address."""
    port = free_port()
    environment = {
        **os.environ,
        "HUB_STATE_DIRECTORY": str(state),
        "HUB_DATABASE_URL": database.url,
        "HUB_API_PORT": str(port),
        "HUB_API_WORKERS": "2",
    }
    log = state.with_name("api.log").open("wb")
    process = subprocess.Popen([str(HUB), "api"], env=environment, stderr=log)
    log.close()
    workers = psutil.Process(process.pid)
    yield f"http://127.0.0.1:{port}"
    tree = workers.children(recursive=True)
    process.terminate()
    assert process.wait(120) == 0
    _, left = psutil.wait_procs(tree, timeout=60)
    assert left == []
    assert targets(state) == [], "who has ended is no target any more"


def targets(state: Path) -> list[str]:
    files = sorted(targets_directory(Settings(state_directory=state)).glob("api-*.json"))
    return [json.loads(file.read_text())[0]["targets"][0] for file in files]


def samples(target: str) -> list[Sample]:
    text = httpx.get(f"http://{target}/metrics", headers=OPENMETRICS, timeout=PATIENCE_S).text
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def await_that(is_so: Callable[[], bool]) -> None:
    never, deadline = threading.Event(), boottime_ms() + PATIENCE_S * 1000
    while not is_so():
        assert boottime_ms() < deadline
        never.wait(0.2)


def await_workers(api: str, state: Path, count: int) -> list[str]:
    def are_there() -> bool:
        with suppress(httpx.TransportError):
            return len(targets(state)) == count and httpx.get(f"{api}/healthz").is_success
        return False

    await_that(are_there)
    return targets(state)


def refused_by(workers: list[str]) -> list[Sample]:
    found = [sample for worker in workers for sample in samples(worker)]
    return [s for s in found if s.name == "hub_http_requests_total" and s.labels["status"] == "401"]


def requests_logged(state: Path) -> list[dict[str, Any]]:
    lines = state.with_name("api.log").read_text().rpartition("\n")[0].splitlines()
    return [line for line in map(json.loads, lines) if line["event"] == "request"]


@pytest.mark.slow
def test_what_several_api_workers_count_adds_up_to_what_was_asked_of_them(api: str, state: Path) -> None:
    workers = await_workers(api, state, 2)
    for number in range(60):
        headers = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"} if number % 2 else {}
        headers |= {"Connection": "close"}
        answer = httpx.get(f"{api}/v1/jobs/{number}", headers=headers, timeout=PATIENCE_S)
        assert answer.status_code == 401
        assert len(answer.headers["x-request-id"]) == 32
        assert (answer.headers["x-request-id"] == TRACE) == bool(number % 2)
    httpx.get(f"{api}/nothing/here/{'x' * 200}", timeout=PATIENCE_S)
    # What has been answered is counted a moment later.
    await_that(lambda: sum(s.value for s in refused_by(workers)) == 60)
    await_that(lambda: any(s.labels.get("status") == "404" for worker in workers for s in samples(worker)))
    found = [sample for worker in workers for sample in samples(worker)]
    assert {s.labels["route"] for s in refused_by(workers)} == {"/v1/jobs/{job_id}"}
    (unmatched,) = [s for s in found if s.name == "hub_http_requests_total" and s.labels["status"] == "404"]
    assert unmatched.labels["route"] == "other"
    exemplars = {s.exemplar.labels["trace_id"] for s in found if s.exemplar is not None}
    assert TRACE in exemplars
    answer = httpx.post(f"{api}/v1/jobs", json={}, timeout=PATIENCE_S)
    await_that(lambda: bool(requests_logged(state)))
    (line,) = requests_logged(state)
    assert (line["route"], line["status"], line["process"]) == ("/v1/jobs", answer.status_code, "api")
    assert line["request_id"] == answer.headers["x-request-id"]
    centre = httpx.get(f"{api}/metrics", timeout=PATIENCE_S).text
    assert "hub_devices" in centre
    assert "hub_http_requests_total" not in centre


PROCESS = """
import sys
from compute_hub.settings import Settings
from compute_hub.stack.ports import free_port
from compute_hub.telemetry.serving import serve_metrics
print(serve_metrics(Settings(state_directory=sys.argv[1]), "biller").announced, flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_a_process_clears_away_what_a_killed_one_announced_and_its_own_file_goes_with_it(
    tmp_path: Path,
) -> None:
    announced = []
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        announced.append((process, Path(process.stdout.readline().strip())))
        if len(announced) == 1:
            assert announced[0][1].exists()
            process.kill()
            process.communicate()
            assert announced[0][1].exists()
    (_, stale), (living, file) = announced
    assert not stale.exists()
    assert json.loads(file.read_text())[0]["labels"] == {"job": "hub-biller", "process": "biller"}
    living.communicate()
    assert not file.exists()


def test_workers_take_consecutive_ports_and_say_when_none_is_left(tmp_path: Path) -> None:
    first = free_port()
    settings = Settings(state_directory=tmp_path, metrics_port=first)
    ports = [serve_metrics(settings, "api").port for _ in range(2)]
    assert ports[0] >= first
    assert ports[1] > ports[0]
    with pytest.raises(NoPortFree, match="are taken"):
        serve_metrics(Settings(state_directory=tmp_path, metrics_port=ports[0]), "api", ports_tried=1)
