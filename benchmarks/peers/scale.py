"""A full centre: the whole hub with simulated nodes behind one Ray actor, more jobs than it has devices, all paid for.

The nodes are those of `hub replay`: they obey, meter and report like supervisors, and what they run is only counted.
"""

import json
import statistics
import threading
from collections.abc import Callable, Mapping
from math import inf, isinf
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Engine, TextClause, text

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
"""By name; None for what did not happen, and for a time beyond what the controller's histograms tell apart."""

DEVICES: Final = 8
_SPARE_PERCENT: Final = 10
"""Devices beyond those that are to be busy at every moment: one is free between two jobs."""

_ARRAY: Final = 100
_LENGTHS: Final = 10
"""Arrays run for so many lengths of time, from a tenth to nearly twice the mean, so that some job always ends."""
_METER_MS: Final = 60_000
_LOOK_S: Final = 0.25
_FILL_S: Final = 60
"""So long filling the centre may take; jobs run meanwhile, too."""
_CREDIT_CODE: Final = "91331003MA0EXAMPL0"
_STEPS: Final = ("tick", "admit", "sync")

_LIVE: Final = text(
    "SELECT count(*) FILTER (WHERE state = 'running'), count(*) FILTER (WHERE state = 'queued'),"
    " count(*) FILTER (WHERE ended_at IS NULL) FROM jobs"
)
_STARTED: Final = text("SELECT count(*), clock_timestamp() FROM runs WHERE started_at IS NOT NULL")
_EPOCH: Final = text("SELECT epoch FROM scheduler_leader")
_WRONG: Final = text(
    "SELECT (SELECT count(*) FROM jobs WHERE state NOT IN ('succeeded', 'cancelled')),"
    " (SELECT count(*) FROM uncharged_usage) + (SELECT count(*) FROM jobs WHERE started_at IS NOT NULL"
    " AND NOT EXISTS (SELECT FROM charges WHERE charges.job_id = jobs.id)),"
    " (SELECT count(*) FROM job_funding WHERE state <> 'released')"
)


def scale(
    folder: Path, running: int, queued: int, run_s: int, hold_s: int, say: Callable[[str], None]
) -> Figures:
    """Keep so many devices busy, let so many jobs wait, watch that a while, see everything end. Raises NotDone."""
    stack = ReplayStack(
        folder.resolve(),
        say,
        nodes=_nodes_for(running),
        devices=DEVICES,
        price_cny="12.50",
        region="331003",
        meter_interval_ms=_METER_MS,
        patient=False,
    )
    with stack:
        engine = open_engine(application_url(stack.settings), pool_size=1)
        try:
            return _Centre(stack, engine, say).hold(running, queued, run_s, hold_s)
        finally:
            engine.dispose()


def _nodes_for(running: int) -> int:
    return -(-running * (100 + _SPARE_PERCENT) // (100 * DEVICES))


class _Centre:
    def __init__(self, stack: ReplayStack, engine: Engine, say: Callable[[str], None]) -> None:
        self._stack = stack
        self._engine = engine
        self._say = say

    def hold(self, running: int, queued: int, run_s: int, hold_s: int) -> Figures:
        """Submit as many as fill the centre and the queue, and what will have run by the end of the watch."""
        devices = _nodes_for(running) * DEVICES
        jobs = devices + queued + devices * (hold_s + _FILL_S) // run_s
        patience_s = 300 + 4 * run_s
        with self._tenant() as client:
            began = perf_counter()
            arrays = self._submit(client, jobs, run_s)
            submitted_s = perf_counter() - began
            self._say(f"{jobs} jobs are queued after {submitted_s:.0f} s")
            self._until(lambda: self._live()[0] >= running, patience_s, "devices were idle")
            filled_s = perf_counter() - began
            self._say(f"the centre is full after {filled_s:.0f} s")
            explained_ms = self._explain(client)
            watched = self._watch(client, run_s, hold_s)
            began = perf_counter()
            for array in arrays:
                client.post(f"/v1/job-arrays/{array}:cancel")
            self._until(lambda: self._live()[2] == 0, patience_s, "jobs had not ended")
            ended_s = perf_counter() - began
            self._say(f"all have ended {ended_s:.0f} s after they were cancelled")
            self._until(lambda: self._wrong() == (0, 0, 0), patience_s, "not every job was charged")
        return {
            "jobs": jobs,
            "submissions_per_s": round(jobs / submitted_s, 1),
            "filled_after_s": round(filled_s, 1),
            "explained_ms": explained_ms,
            **watched,
            "cancelled_after_s": round(ended_s, 1),
        }

    def _watch(self, client: HubClient, run_s: int, hold_s: int) -> Figures:
        """For a while submit a job now and then, and take what the controller, the API and the tables say of it."""
        live, submits_ms, never = [self._live()], list[float](), threading.Event()
        steps, (started, since) = self._steps(), self._one(_STARTED)
        deadline = boottime_ms() + hold_s * 1000
        singles = []
        while boottime_ms() < deadline:
            began = perf_counter()
            singles.append(client.post("/v1/jobs", _job(run_s))["id"])
            submits_ms.append((perf_counter() - began) * 1000)
            live.append(self._live())
            never.wait(_LOOK_S)
        until, (ended, at) = self._steps(), self._one(_STARTED)
        for single in singles:
            client.post(f"/v1/jobs/{single}:cancel")
        submits_ms.sort()
        found: Figures = {
            "least_running": min(running for running, _, _ in live),
            "least_queued": min(queued for _, queued, _ in live),
            "starts_per_s": round((ended - started) / (at - since).total_seconds(), 1),
            "submits": len(submits_ms),
            "submit_p50_ms": round(statistics.median(submits_ms), 1),
            "submit_p99_ms": round(submits_ms[-(-99 * len(submits_ms) // 100) - 1], 1),
            "terms": self._one(_EPOCH)[0],
        }
        for step in _STEPS:
            taken = {bound: until[step][bound] - steps[step].get(bound, 0) for bound in until[step]}
            found |= {f"{step}s": taken[inf]} | {
                f"{step}_p{part}_ms": _quantile(taken, part / 100) for part in (50, 99)
            }
        return found | self._memory()

    def _tenant(self) -> HubClient:
        with HubClient(self._stack.url, self._stack.key(Role.OPERATOR, "benchmark")) as operator:
            firm = operator.post(
                "/v1/enterprises", {"credit_code": _CREDIT_CODE, "name": "Benchmark Ltd.", "region": "331003"}
            )
            deposit = {"amount_cny": "1000000.00", "reference": "benchmark"}
            operator.post(f"/v1/enterprises/{firm['id']}/deposits", deposit)
            request = {"role": "tenant", "person": "benchmark", "tenant_id": firm["id"]}
            return HubClient(self._stack.url, operator.post("/v1/api-keys", request)["key"])

    def _submit(self, client: HubClient, jobs: int, run_s: int) -> list[str]:
        found = []
        for n, first in enumerate(range(0, jobs, _ARRAY)):
            job = _job(run_s * (1 + 2 * (n % _LENGTHS)) / _LENGTHS)
            array = {"job": job, "size": min(_ARRAY, jobs - first)}
            found.append(str(client.post("/v1/job-arrays", array)["id"]))
        return found

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

    def _live(self) -> tuple[int, int, int]:
        """How many run, wait, and are not over."""
        running, queued, live = map(int, self._one(_LIVE))
        return running, queued, live

    def _one(self, query: TextClause) -> tuple[Any, ...]:
        with transaction(self._engine) as session:
            return tuple(session.execute(query).one())

    def _wrong(self) -> tuple[int, ...]:
        with transaction(self._engine) as session:
            return tuple(map(int, session.execute(_WRONG).one()))

    def _until(self, done: Callable[[], bool], seconds: int, what: str) -> None:
        deadline, never = boottime_ms() + seconds * 1000, threading.Event()
        while not done():
            if boottime_ms() > deadline:
                raise NotDone(what=what, seconds=seconds, logs=self._stack.logs)
            never.wait(_LOOK_S)

    def _steps(self) -> dict[str, dict[float, float]]:
        """Of the controller's steps, by name, how many took at most so many seconds."""
        (file,) = targets_directory(self._stack.settings).glob("controller-*.json")
        (target,) = json.loads(file.read_text())[0]["targets"]
        found: dict[str, dict[float, float]] = {step: {inf: 0.0} for step in _STEPS}
        for family in text_string_to_metric_families(httpx.get(f"http://{target}/metrics").text):
            for sample in family.samples:
                if sample.name == "hub_scheduler_step_seconds_bucket" and sample.labels["step"] in found:
                    found[sample.labels["step"]][float(sample.labels["le"])] = sample.value
        return found

    def _memory(self) -> Figures:
        """Resident memory of the controller, and of all API processes together."""
        found: Figures = {}
        for part in ("controller", "api"):
            pids = {
                int(file.stem.rpartition("-")[2])
                for file in targets_directory(self._stack.settings).glob(f"{part}-*.json")
            }
            used = sum(psutil.Process(pid).memory_info().rss for pid in pids)
            found[f"{part}_rss_mb"] = round(used / 1e6, 1)
        return found


def _job(run_s: float) -> dict[str, Any]:
    job = {"name": "scale", "argv": [PROGRAM, str(round(run_s * 1000))], "accelerator": MODEL, "grace_s": 1}
    return job | {"environment": ENVIRONMENT, "time_limit_s": 600, "memory_mib": 256}


def _quantile(at_most: Mapping[float, float], part: float) -> float | None:
    """In milliseconds, as Prometheus works it out: evenly spread within its bucket; None beyond the last bound."""
    wanted, before, below = part * at_most[inf], 0.0, 0.0
    for bound, count in sorted(at_most.items()):
        if count >= wanted and count > below:
            share = (wanted - below) / (count - below)
            return None if isinf(bound) else round(1000 * (before + (bound - before) * share), 1)
        before, below = bound, count
    return None
