"""A full centre: the whole hub with simulated nodes behind one Ray actor, more jobs than it has devices, all paid for.

The nodes are those of `hub replay`: they obey, meter and report like supervisors, and what they run is only counted.
"""

import json
import threading
from collections.abc import Callable
from math import isinf
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Engine, text

from benchmarks.peers.ours import NotDone
from compute_hub.identity.roles import Role
from compute_hub.replay.stack import ENVIRONMENT, MODEL, ReplayStack
from compute_hub.sdk import HubClient
from compute_hub.stack.database import application_url
from compute_hub.telemetry.serving import targets_directory
from kernel.clock import boottime_ms
from kernel.database import open_engine, transaction
from scheduler.node.simulated import PROGRAM

Figures = dict[str, float | None]
"""By name; None for a time beyond what the controller's histograms tell apart."""

DEVICES: Final = 8
_ARRAY: Final = 1000
_METER_MS: Final = 60_000
_LOOK_S: Final = 0.5
_CREDIT_CODE: Final = "91331003MA0EXAMPL0"
_STEPS: Final = ("tick", "admit", "sync")

_LIVE: Final = text(
    "SELECT count(*) FILTER (WHERE state = 'running'), count(*) FILTER (WHERE state = 'queued'),"
    " count(*) FILTER (WHERE ended_at IS NULL) FROM jobs"
)
_WRONG: Final = text(
    "SELECT (SELECT count(*) FROM jobs WHERE state <> 'succeeded'),"
    " (SELECT count(*) FROM uncharged_usage)"
    " + (SELECT count(*) FROM jobs WHERE NOT EXISTS (SELECT FROM charges WHERE charges.job_id = jobs.id)),"
    " (SELECT count(*) FROM job_funding WHERE state <> 'released')"
)


def scale(folder: Path, running: int, queued: int, run_s: int, say: Callable[[str], None]) -> Figures:
    """Fill so many devices, let so many jobs wait, and see that all of them end and are charged. Raises NotDone."""
    stack = ReplayStack(
        folder.resolve(),
        say,
        nodes=running // DEVICES,
        devices=DEVICES,
        price_cny="12.50",
        region="331003",
        meter_interval_ms=_METER_MS,
    )
    with stack:
        engine = open_engine(application_url(stack.settings), pool_size=1)
        try:
            return _Centre(stack, engine, say).fill(running, queued, run_s)
        finally:
            engine.dispose()


class _Centre:
    def __init__(self, stack: ReplayStack, engine: Engine, say: Callable[[str], None]) -> None:
        self._stack = stack
        self._engine = engine
        self._say = say
        self._most = [0, 0]

    def fill(self, running: int, queued: int, run_s: int) -> Figures:
        jobs, patience_s = running + queued, 120 + 4 * run_s * (queued // running + 2)
        with self._tenant() as client:
            began = perf_counter()
            self._submit(client, jobs, run_s)
            submitted_s = perf_counter() - began
            self._say(f"{jobs} jobs are queued after {submitted_s:.0f} s")
            explained_ms = self._explain(client)
            self._until(self._over, patience_s, "jobs had not ended")
            ended_s = perf_counter() - began
            self._say(f"all have ended after {ended_s:.0f} s")
            self._until(lambda: self._wrong() == (0, 0, 0), patience_s, "not every job was charged")
            charged_s = perf_counter() - began
        most_running, most_queued = self._most
        return {
            "jobs": jobs,
            "most_running": most_running,
            "most_queued": most_queued,
            "submissions_per_s": round(jobs / submitted_s, 1),
            "jobs_per_s": round(jobs / ended_s, 1),
            "charged_after_s": round(charged_s - ended_s, 1),
            "explained_ms": explained_ms,
        } | self._controller()

    def _tenant(self) -> HubClient:
        with HubClient(self._stack.url, self._stack.key(Role.OPERATOR, "benchmark")) as operator:
            firm = operator.post(
                "/v1/enterprises", {"credit_code": _CREDIT_CODE, "name": "Benchmark Ltd.", "region": "331003"}
            )
            deposit = {"amount_cny": "1000000.00", "reference": "benchmark"}
            operator.post(f"/v1/enterprises/{firm['id']}/deposits", deposit)
            request = {"role": "tenant", "person": "benchmark", "tenant_id": firm["id"]}
            return HubClient(self._stack.url, operator.post("/v1/api-keys", request)["key"])

    def _submit(self, client: HubClient, jobs: int, run_s: int) -> None:
        job: dict[str, Any] = {"name": "scale", "argv": [PROGRAM, str(run_s * 1000)], "accelerator": MODEL}
        job |= {"environment": ENVIRONMENT, "time_limit_s": 600, "grace_s": 1, "memory_mib": 256}
        for first in range(0, jobs, _ARRAY):
            client.post("/v1/job-arrays", {"job": job, "size": min(_ARRAY, jobs - first)})

    def _explain(self, client: HubClient) -> float:
        """How long the answer to why the last job waits takes; the second one, as the first builds the picture."""
        took = 0.0
        for _ in range(2):
            (last,) = client.get("/v1/jobs", limit=1, state="queued")["items"]
            began = perf_counter()
            told = client.get(f"/v1/jobs/{last['id']}/explanation")
            took = perf_counter() - began
            self._say(f"{told['code']}: {told['sentence']}")
        return round(took * 1000, 1)

    def _over(self) -> bool:
        with transaction(self._engine) as session:
            running, queued, live = map(int, session.execute(_LIVE).one())
        self._most = [max(self._most[0], running), max(self._most[1], queued)]
        return live == 0

    def _wrong(self) -> tuple[int, ...]:
        with transaction(self._engine) as session:
            return tuple(map(int, session.execute(_WRONG).one()))

    def _until(self, done: Callable[[], bool], seconds: int, what: str) -> None:
        deadline, never = boottime_ms() + seconds * 1000, threading.Event()
        while not done():
            if boottime_ms() > deadline:
                raise NotDone(what=what, seconds=seconds, logs=self._stack.logs)
            never.wait(_LOOK_S)

    def _controller(self) -> Figures:
        """What the controller measured of itself: how long its steps took, and the memory of its process."""
        (file,) = targets_directory(self._stack.settings).glob("controller-*.json")
        (target,) = json.loads(file.read_text())[0]["targets"]
        counted: dict[tuple[str, str], float] = {}
        for family in text_string_to_metric_families(httpx.get(f"http://{target}/metrics").text):
            for sample in family.samples:
                if sample.name.startswith("hub_scheduler_step_seconds"):
                    part = sample.name.rpartition("_")[2] + sample.labels.get("le", "")
                    counted[sample.labels["step"], part] = sample.value
        found: Figures = {}
        for step in _STEPS:
            count = counted[step, "count"]
            found[f"{step}s"] = count
            found[f"{step}_mean_ms"] = round(1000 * counted[step, "sum"] / count, 1)
            bounds = sorted(
                float(part.removeprefix("bucket"))
                for name, part in counted
                if name == step and part.startswith("bucket")
            )
            within = [bound for bound in bounds if _at(counted, step, bound) >= 0.99 * count]
            found[f"{step}_p99_at_most_ms"] = None if isinf(within[0]) else round(1000 * within[0], 1)
        pid = int(file.stem.rpartition("-")[2])
        found["controller_rss_mb"] = round(psutil.Process(pid).memory_info().rss / 1e6, 1)
        return found


def _at(counted: dict[tuple[str, str], float], step: str, bound: float) -> float:
    return next(
        value
        for (name, part), value in counted.items()
        if name == step and part.startswith("bucket") and float(part.removeprefix("bucket")) == bound
    )
