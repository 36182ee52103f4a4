"""A full centre without machines: the hub's own controller, database, money and API, on simulated nodes.

The controller runs in this process (so that its cycles can be timed and its memory read), API and biller in theirs.
"""

import json
import resource
import shutil
import statistics
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any, Final, Self

import httpx
from sqlalchemy import Engine, text

from benchmarks.peers.ours import MODEL, NotDone, free_port
from benchmarks.peers.simulated import SimulatedNodes
from compute_hub.billing.funding import Funding
from compute_hub.identity.keys import issue_key
from compute_hub.identity.roles import Role
from compute_hub.sdk import HubClient
from compute_hub.settings import Settings, inherited_environment
from compute_hub.stack.children import Child, stop_all
from compute_hub.stack.database import application_url, prepare_database
from kernel.clock import boottime_ms, utc_now
from kernel.database import open_engine, transaction
from scheduler.controller.desired import Store
from scheduler.controller.loop import Controller, Pace
from scheduler.controller.wakeups import Wakeups, notifications
from scheduler.controller.watching import Step
from scheduler.jobs import WAKE_CHANNEL

DEVICES: Final = 8
_ARRAY: Final = 1000
_READY_S: Final = 120
_LOOK_S: Final = 0.5
_CREDIT_CODE: Final = "91331003MA0EXAMPL0"

_LIVE: Final = text(
    "SELECT count(*) FILTER (WHERE state = 'running'), count(*) FILTER (WHERE state = 'queued'),"
    " count(*) FILTER (WHERE ended_at IS NULL) FROM jobs"
)
_WRONG: Final = text(
    "SELECT (SELECT count(*) FROM jobs WHERE state <> 'succeeded'),"
    " (SELECT count(*) FROM uncharged_usage) +"
    " (SELECT count(*) FROM jobs WHERE NOT EXISTS (SELECT FROM charges WHERE charges.job_id = jobs.id)),"
    " (SELECT count(*) FROM job_funding WHERE state <> 'released')"
)


class _Times:
    """Implements `scheduler.controller.watching.Watcher`: keeps how long each step took, in milliseconds."""

    def __init__(self) -> None:
        self.taken: dict[str, list[float]] = {"admit": [], "tick": []}
        self.failures = 0

    @contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        began = perf_counter()
        yield
        self.taken[step].append((perf_counter() - began) * 1000)

    def timing(self, step: str) -> AbstractContextManager[object]:
        """Time one step."""
        return self._timed(step)

    def led(self, *, leading: bool) -> None:
        """Nobody competes here."""

    def failed(self) -> None:
        """A round ended in an error."""
        self.failures += 1

    def moved(self, steps: Sequence[Step]) -> None:
        """The database is asked at the end instead."""


class Centre:
    """Database, API and biller of a hub whose nodes are simulated, with one enterprise that has money."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        plain = folder.resolve() / "plain"
        plain.mkdir(parents=True)
        facts = {
            "state_directory": str(folder.resolve() / "state"),
            "api_port": str(free_port()),
            "environments": json.dumps({"plain": {"directory": str(plain)}}),
            "prices": json.dumps([{"model": MODEL, "price_cny_per_card_hour": "12.50"}]),
        }
        parsed: dict[str, Any] = {
            name: json.loads(value) if value.startswith(("[", "{")) else value for name, value in facts.items()
        }
        self.settings = Settings(**parsed)
        self.say = say
        self._variables = {f"HUB_{name.upper()}": value for name, value in facts.items()}
        self._ending = ExitStack()
        self.engine: Engine
        self.client: HubClient
        self.key = ""

    def __enter__(self) -> Self:
        with ExitStack() as starting:
            server = prepare_database(self.settings, utc_now())
            assert server is not None  # noqa: S101 - no database is named in these settings
            starting.callback(server.stop)
            self.engine = open_engine(application_url(self.settings), pool_size=4)
            starting.callback(self.engine.dispose)
            children = [self._child("api"), self._child("biller")]
            starting.callback(stop_all, children)
            url = f"http://{self.settings.api_host}:{self.settings.api_port}"
            self.until(lambda: _answers(f"{url}/readyz"), _READY_S, "the API was not ready")
            self.key = self._tenant_key(url)
            self.client = starting.enter_context(HubClient(url, self.key))
            self._ending = starting.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.close()

    def live(self) -> tuple[int, int, int]:
        """How many jobs run, wait, and have not ended."""
        with transaction(self.engine) as session:
            running, queued, live = session.execute(_LIVE).one()
        return int(running), int(queued), int(live)

    def wrong(self) -> tuple[int, int, int]:
        """Jobs that did not succeed, jobs or records that are not charged, holds that are not released."""
        with transaction(self.engine) as session:
            failed, uncharged, held = session.execute(_WRONG).one()
        return int(failed), int(uncharged), int(held)

    def submit(self, jobs: int) -> None:
        """Queue so many jobs of one device, in arrays."""
        job: dict[str, object] = {"name": "scale", "argv": ["/usr/bin/true"], "accelerator": MODEL}
        job |= {"environment": "plain"} | {
            "time_limit_s": 600,
            "grace_s": 1,
            "memory_mib": 256,
            "cpu_milli": 1000,
        }
        for first in range(0, jobs, _ARRAY):
            self.client.post("/v1/job-arrays", {"job": job, "size": min(_ARRAY, jobs - first)})

    def until(self, done: Callable[[], bool], seconds: int, what: str) -> None:
        """Look again and again. Raises NotDone."""
        deadline, never = boottime_ms() + seconds * 1000, threading.Event()
        while not done():
            if boottime_ms() > deadline:
                raise NotDone(what=what, seconds=seconds, logs=self.settings.state_directory / "logs")
            never.wait(_LOOK_S)

    def _child(self, part: str) -> Child:
        return Child(
            part,
            [str(Path(sys.executable).with_name("hub")), part],
            log=self.settings.state_directory / "logs" / f"{part}.log",
            environment=inherited_environment(**self._variables),
        )

    def _tenant_key(self, url: str) -> str:
        with transaction(self.engine) as session:
            key = issue_key(session, Role.OPERATOR, "benchmark", at=utc_now())
        with HubClient(url, key) as operator:
            firm = operator.post(
                "/v1/enterprises", {"credit_code": _CREDIT_CODE, "name": "Benchmark Ltd.", "region": "331003"}
            )
            deposit = {"amount_cny": "1000000.00", "reference": "benchmark"}
            operator.post(f"/v1/enterprises/{firm['id']}/deposits", deposit)
            request = {"role": "tenant", "person": "benchmark", "tenant_id": firm["id"]}
            return str(operator.post("/v1/api-keys", request)["key"])


@contextmanager
def controlled(centre: Centre, nodes: int, run_ms: int) -> Iterator[_Times]:
    """A controller on so many simulated nodes, in a thread, for the length of the block."""
    settings, times, wakeups = centre.settings, _Times(), Wakeups()
    url = application_url(settings)
    engine = open_engine(url, pool_size=2, idle_ms=60_000)
    machines = SimulatedNodes(nodes, DEVICES, MODEL, run_ms, wakeups)
    controller = Controller(
        engine,
        machines,
        Funding(settings.hold_horizon_ms, settings.centre_facts),
        Store(settings.uploads, settings.workspaces),
        holder="benchmark",
        pace=Pace(settings.tick_ms, 60_000, 60_000),
        wakeups=wakeups,
        watcher=times,
    )
    wakeups.watch("database", notifications(url, WAKE_CHANNEL))
    thread = threading.Thread(target=controller.run, name="controller")
    thread.start()
    try:
        yield times
    finally:
        controller.stop()
        wakeups.stop()
        thread.join()
        machines.close()
        engine.dispose()


def scale(folder: Path, running: int, queued: int, run_s: int, say: Callable[[str], None]) -> dict[str, float]:
    """Fill so many devices, let so many jobs wait, and see that all of them end and are charged. Raises NotDone."""
    patience_s = 60 + 3 * run_s * (queued // running + 2)
    with Centre(folder, say) as centre, controlled(centre, running // DEVICES, run_s * 1000) as times:
        count = len(_devices(centre))
        centre.until(lambda: len(_devices(centre)) == running, _READY_S, "nodes had not joined")
        say(f"{count} devices before, {running} now; {running + queued} jobs in arrays")
        began = perf_counter()
        centre.submit(running + queued)
        submitted_s = perf_counter() - began
        most_running = most_queued = 0

        def over() -> bool:
            nonlocal most_running, most_queued
            now_running, now_queued, live = centre.live()
            most_running, most_queued = max(most_running, now_running), max(most_queued, now_queued)
            return live == 0

        centre.until(over, patience_s, "jobs had not ended")
        ended_s = perf_counter() - began
        say(f"all ended after {ended_s:.0f} s; waiting for the last charge")
        centre.until(lambda: centre.wrong() == (0, 0, 0), patience_s, "not everything was charged")
        return {
            "jobs": running + queued,
            "most_running": most_running,
            "most_queued": most_queued,
            "submissions_per_s": round((running + queued) / submitted_s, 1),
            "jobs_per_s": round((running + queued) / ended_s, 1),
            "charged_s": round(perf_counter() - began - ended_s, 1),
            "failed_steps": times.failures,
            "memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        } | _quantiles(times)


def _quantiles(times: _Times) -> dict[str, float]:
    found = {}
    for step, taken in times.taken.items():
        found[f"{step}s"] = float(len(taken))
        ordered = sorted(taken)
        found[f"{step}_p50_ms"] = round(statistics.median(ordered), 1)
        found[f"{step}_p99_ms"] = round(ordered[max(0, -(-99 * len(ordered) // 100) - 1)], 1)
    return found


def _devices(centre: Centre) -> list[int]:
    with transaction(centre.engine) as session:
        return list(session.scalars(text("SELECT number FROM devices ORDER BY number")))


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).is_success
    except httpx.TransportError:
        return False
