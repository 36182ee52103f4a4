"""What a scrape costs of a large centre: 10,000 devices, 1,000 enterprises, 100,000 jobs in the database.

`scrape_ms_p99` is the time of scrapes that each find every part due, in the process that serves them; what a scrape
does not wait for is `collect_ms_max`, the longest reading of a part. `bytes` and `series` are of one exposition.

`request_overhead_us` is what measuring adds to one request of the API, and `job_overhead_us` what is counted and told
of one job beside its request (steps, charge, its share of the controller's rounds), in processor time: with and without
by turns in one process, the median of rounds. `throughput_share` is the two over the processor time a job has at
`--jobs-per-s` on two cores: what metrics and logs cost the throughput benchmark at most.
"""

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Final, Literal
from uuid import UUID

import structlog
from sqlalchemy import Connection, create_engine, text
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from compute_hub.telemetry.centre import Centre
from compute_hub.telemetry.http import Measured
from compute_hub.telemetry.instruments import ControllerGauge
from compute_hub.telemetry.journeys import Journeys
from compute_hub.telemetry.metrics import parts
from compute_hub.telemetry.tracing import NoSpans
from kernel.database import open_engine
from kernel.logs import configure_logs
from kernel.migrations import migrate
from kernel.postgres import OWNER_ROLE, PrivatePostgres
from kernel.traces import new_trace
from scheduler.controller.watching import Nobody, Step, Watcher
from vouchers.accounts import CREDIT_GRANTED

_CORES: Final = 2
MODELS = ("A100", "910B", "MLU590", "V100")


@dataclass(frozen=True)
class Size:
    """How large the centre is. Of the jobs a fifth waits, at most one per device runs, the rest has ended."""

    devices: int
    tenants: int
    jobs: int

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        return self.jobs // 5

    @property
    def running(self) -> int:
        """Jobs with one card each."""
        return min(self.devices, self.jobs // 10)

    @property
    def ended(self) -> int:
        """Jobs with a run, two usage records and a charge of ¥1, six tenths of it paid by vouchers."""
        return self.jobs - self.waiting - self.running


_SEED = Path(__file__).with_name("metrics_seed.sql")


_EMPTY = {
    "bigint": "0",
    "boolean": "false",
    "timestamp with time zone": "now()",
    "jsonb": "'{}'",
    "ARRAY": "'{}'",
    "text": "''",
}
_REQUIRED = text("""
    SELECT table_name, column_name, data_type FROM information_schema.columns
     WHERE table_schema = 'public' AND is_nullable = 'NO' AND column_default IS NULL AND is_identity = 'NO'
       AND table_name IN ('jobs', 'runs', 'usage_records', 'charges', 'rates', 'vouchers', 'applications',
                          'enterprises')""")


def seed(connection: Connection, size: Size) -> None:
    """Fill an empty database with a centre of that size, as its owner."""
    facts = {
        **vars(size),
        "waiting": size.waiting,
        "running": size.running,
        "models": list(MODELS),
        "credit_granted": CREDIT_GRANTED.id,
    }
    for table, column, kind in connection.execute(_REQUIRED).all():
        if kind in _EMPTY:  # what no metric reads stays empty
            connection.execute(text(f"ALTER TABLE {table} ALTER {column} SET DEFAULT {_EMPTY[kind]}"))
    for statement in _SEED.read_text(encoding="utf-8").split(";\n"):
        if statement.strip():
            connection.execute(text(statement), facts)


def measure(centre: Centre, scrapes: int) -> dict[str, float | int]:
    """Scrape again and again, each time when everything that was being read is there."""
    exposition, took_ms = centre.scrape().decode(), []
    for _ in range(scrapes):
        centre.settle()
        began_ns = time.perf_counter_ns()
        exposition = centre.scrape().decode()
        took_ms.append((time.perf_counter_ns() - began_ns) / 1e6)
    samples = [line for line in exposition.splitlines() if not line.startswith("#")]
    return {
        "scrape_ms_p50": round(_quantile(took_ms, 0.5), 1),
        "scrape_ms_p99": round(_quantile(took_ms, 0.99), 1),
        "collect_ms_max": round(1000 * _largest(samples, "hub_collector_duration_seconds")),
        "failed_parts": int(sum(_values(samples, "hub_collector_failed"))),
        "bytes": len(exposition.encode()),
        "series": len(samples),
    }


def request_overhead_us(rounds: int = 15, requests: int = 500) -> float:
    """Processor time that the API's middleware adds to a request that does nothing else."""

    async def answer(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def receive() -> Message:
        return {"type": "http.request", "body": b""}

    async def send(_message: Message) -> None:
        return

    async def time_ns(app: ASGIApp) -> int:
        began_ns = time.process_time_ns()
        for _ in range(requests):
            await app({"type": "http", "method": "GET", "headers": []}, receive, send)
        return time.process_time_ns() - began_ns

    async def compare() -> float:
        differences = [await time_ns(Measured(answer)) - await time_ns(answer) for _ in range(rounds)]
        return round(statistics.median(differences) / requests / 1000, 1)

    return asyncio.run(compare())


def job_overhead_us(rounds: int = 30, jobs: int = 200) -> float:
    """Processor time of everything that is counted and told of one job but its request, logs included."""
    spans, traceparent, at = NoSpans(), str(new_trace()), datetime(2026, 1, 1, tzinfo=UTC)
    watcher = ControllerGauge(Journeys(spans).moved)

    def steps(job_id: UUID) -> list[Step]:
        names: tuple[Literal["admitted", "started", "ended"], ...] = ("admitted", "started", "ended")
        return [Step(name, job_id, 1, traceparent, at, at, "", ("node-1",), 1000) for name in names]

    def live(watching: Watcher, told: list[list[Step]]) -> int:
        began_ns = time.process_time_ns()
        for moved in told:
            for step in moved:
                with watching.timing("tick"), watching.timing("admit"):
                    watching.moved((step,))
                watching.led(leading=True)
        return time.process_time_ns() - began_ns

    told = [steps(UUID(int=number)) for number in range(jobs)]
    with (
        Path(os.devnull).open("w", encoding="utf-8") as nowhere,
        redirect_stderr(nowhere),
    ):
        configure_logs("bench")
        differences = [live(watcher, told) - live(Nobody(), told) for _ in range(rounds)]
        line_ns = _log_line_ns()
    return round((statistics.median(differences) / jobs + 3 * line_ns) / 1000, 1)


def overheads(jobs_per_s: float) -> dict[str, float | int]:
    """What measuring costs of the throughput at so many jobs a second on two cores."""
    request_us, job_us = request_overhead_us(), job_overhead_us()
    share = (request_us + job_us) * jobs_per_s / (_CORES * 1e6)
    return {"request_overhead_us": request_us, "job_overhead_us": job_us, "throughput_share": round(share, 5)}


def _log_line_ns(lines: int = 2000) -> float:
    """Processor time of one line about a job; supervisor (two) and biller (one) write as much of each."""
    log = structlog.get_logger("bench")
    began_ns = time.process_time_ns()
    for number in range(lines):
        log.info("job_charged", job="j", attempt=1, charge=number, amount_micros=number, request_id="r")
    return (time.process_time_ns() - began_ns) / lines


def _quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def _values(samples: Sequence[str], family: str) -> list[float]:
    return [float(line.rpartition(" ")[2]) for line in samples if line.startswith(f"{family}{{")]


def _largest(samples: Sequence[str], family: str) -> float:
    return max(_values(samples, family))


def main() -> None:
    """Run and print."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--json", action="store_true", help="print one JSON object")
    options.add_argument("--devices", type=int, default=10_000)
    options.add_argument("--tenants", type=int, default=1_000)
    options.add_argument("--jobs", type=int, default=100_000)
    options.add_argument("--scrapes", type=int, default=100)
    options.add_argument(
        "--jobs-per-s", type=float, default=20, help="of the throughput benchmark, for the share"
    )
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="hub-bench-") as folder:
        server = PrivatePostgres(Path(folder) / "pg", durable=False)
        server.start()
        try:
            server.create_database("hub")
            migrate(server.url("hub", OWNER_ROLE))
            owner = create_engine(server.url("hub", OWNER_ROLE))
            with owner.begin() as connection:
                seed(connection, Size(chosen.devices, chosen.tenants, chosen.jobs))
            with owner.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.execute(text("ANALYZE"))
            owner.dispose()
            engine = open_engine(server.url("hub"))
            peaks = {model: ("fp16", Fraction(312, 1000)) for model in MODELS}
            centre = Centre(engine, [replace(part, interval_ms=0) for part in parts(peaks)])
            figures = measure(centre, chosen.scrapes) | overheads(chosen.jobs_per_s)
            centre.close()
            engine.dispose()
        finally:
            server.stop()
    print(
        json.dumps(figures) if chosen.json else "\n".join(f"{name}: {value}" for name, value in figures.items())
    )


if __name__ == "__main__":
    main()
