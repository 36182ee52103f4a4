"""The load of the metering benchmarks: firms with money and running jobs, whose records are taken in and charged.

Each round tells seconds, and the processor seconds of client and server, which hardly depend on what else runs.
"""

import json
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from uuid import UUID

from sqlalchemy import Engine, func, select, text
from sqlalchemy.orm import Session

from benchmarks.ledger_load import say
from compute_hub.billing.funding import Funding, pledge_funding
from compute_hub.billing.invoicing import close_month
from compute_hub.billing.rates import set_rate
from compute_hub.metering.tables import UnchargedUsageRow
from compute_hub.workers.biller import bill_once
from kernel.clock import unix_ms
from kernel.database import open_engine, transaction
from kernel.ids import derived_id
from scheduler.controller.ports import Admission
from scheduler.jobs import JobRequest, new_job, queue_jobs
from scheduler.node.protocol import DeviceShare, UsageRecord
from vouchers.applications import final_approval, first_review, submit_application
from vouchers.domain.facts import CentreFacts
from vouchers.enterprises import register_enterprise
from vouchers.issuing import issue_voucher
from vouchers.programmes import publish_programme
from vouchers.wallets import deposit

AT: Final = datetime(2026, 3, 10, 2, 0, tzinfo=UTC)
CLOSED_AT: Final = datetime(2026, 4, 2, tzinfo=UTC)
MODEL: Final = "sim-a"
BATCH: Final = 500
BILLERS: Final = 2
RECORD_MS: Final = 1000
BY: Final = derived_id("benchmark", "operator")
FUNDING: Final = Funding(3_600_000, CentreFacts("331003", 400))
REQUEST: Final = JobRequest(name="job", argv=("x",), models=(MODEL,), environment="e", time_limit_ms=10**9)
PROGRAMME: Final = Path(__file__).parents[1] / "examples" / "programmes" / "huangyan.json"
VOUCHER_MICROS: Final = 20_000 * 1_000_000

Job = tuple[UUID, UUID]
"""Tenant and job."""


def set_up(engine: Engine, tenants: int, jobs: int) -> tuple[list[Job], float]:
    """Tenants with money and a voucher, one priced node with a card for each job, and the jobs running on them.

    Returns:
        The jobs, and how many seconds placing their holds took.
    """
    with transaction(engine) as session:
        programme = json.loads(PROGRAMME.read_text(encoding="utf-8"))
        publish_programme(session, programme, by="officer", at=AT)
        set_rate(session, MODEL, 36_000_000, effective_from=AT, by=BY, at=AT)
        session.execute(
            text(
                "INSERT INTO nodes VALUES ('n', 'h', 'up', '{}', 9000000, 9000000, '{}', :at, :at)"
            ).bindparams(at=AT)
        )
        session.execute(
            text(
                "INSERT INTO devices (node, index, model, vendor, healthy)"
                " SELECT 'n', n, :model, 'cambricon', true FROM generate_series(1, :jobs) AS n"
            ),
            {"model": MODEL, "jobs": jobs},
        )
        tenant_ids = [_tenant(session, number, programme["programme"]) for number in range(tenants)]
    started, took = [], 0.0
    for first in range(0, jobs, 500):
        numbers = range(first + 1, min(first + 500, jobs) + 1)
        more, seconds = _start(engine, tenant_ids, numbers)
        started += more
        took += seconds
    return started, took


def _tenant(session: Session, number: int, programme: str) -> UUID:
    tenant_id = register_enterprise(
        session, credit_code=f"91331003B{number:08d}X", name=f"Bench {number}", region="331003", at=AT
    )
    deposit(session, tenant_id, 10**13, f"benchmark {number}", AT)
    application = submit_application(
        session, enterprise_id=tenant_id, programme=programme, requested=VOUCHER_MICROS, by="tenant", at=AT
    )
    first_review(session, application, by="first", at=AT)
    final_approval(session, application, by="second", at=AT)
    issue_voucher(session, application, by="officer", at=AT)
    return tenant_id


def _start(engine: Engine, tenant_ids: Sequence[UUID], numbers: Sequence[int]) -> tuple[list[Job], float]:
    """Submit, admit and place jobs; the seconds are those of the admission."""
    with transaction(engine) as session:
        jobs = [
            new_job(
                session,
                derived_id("benchmark-job", number),
                REQUEST,
                tenant_id=tenant_ids[number % len(tenant_ids)],
                submitted_by=BY,
                environments=("e",),
                at=AT,
            )
            for number in numbers
        ]
        queue_jobs(session, jobs)
        pledge_funding(session, jobs, None)
        began = time.perf_counter()
        refused = FUNDING.admit(session, [Admission(job, {MODEL: 1000}) for job in jobs], AT)
        took = time.perf_counter() - began
        assert refused == {}, refused  # noqa: S101 - the tenants have money
        for job, number in zip(jobs, numbers, strict=True):
            job.state, job.attempt, job.placed_at = "running", 1, AT
            names = {"run": derived_id("run", job.id, 1, 0), "job": job.id, "n": number, "at": AT}
            session.execute(_RUN, names)
            session.execute(_ALLOCATION, names)
    return [(job.tenant_id, job.id) for job in jobs], took


_RUN: Final = text(
    "INSERT INTO runs (id, job_id, attempt, rank, node, epoch, state, devices, acknowledged)"
    " VALUES (:run, :job, 1, 0, 'n', 1, 'running', '[]', false)"
)
_ALLOCATION: Final = text(
    "INSERT INTO allocations SELECT gen_random_uuid(), :run, 'n', index, model,"
    " int8range(number * 1000, number * 1000 + 1000), tstzrange(:at, NULL) FROM devices WHERE index = :n"
)


def record(tenant_id: UUID, job_id: UUID, k: int) -> UsageRecord:
    """The k-th second of a job."""
    return UsageRecord(
        id=str(derived_id("usage", job_id, 1, 0, k)),
        run_id=str(derived_id("run", job_id, 1, 0)),
        job_id=str(job_id),
        tenant_id=str(tenant_id),
        attempt=1,
        rank=0,
        k=k,
        boot_id="b",
        offset_ms=k * RECORD_MS,
        duration_ms=RECORD_MS,
        started_unix_ms=unix_ms(AT),
        devices=(DeviceShare(0),),
        slot_ms=RECORD_MS * 1000,
        cpu_ms=RECORD_MS // 2,
        final=False,
    )


def take_in(engine: Engine, records: Sequence[UsageRecord]) -> float:
    """Send records as a node does; seconds it took."""
    began = time.perf_counter()
    for first in range(0, len(records), BATCH):
        with transaction(engine) as session:
            FUNDING.record_usage(session, {"n": records[first : first + BATCH]}, AT)
    return time.perf_counter() - began


@dataclass(frozen=True)
class Round:
    """What one round took: seconds and processor seconds, of taking records in and of charging them."""

    records: int
    charges: int
    taken_s: float
    charged_s: float
    taken_cpu_s: float
    charged_cpu_s: float


def one_round(engine: Engine, pool: Executor, jobs: Sequence[Job], ks: range) -> Round:
    """Records of every job taken in, then charged by all billers."""
    records = [record(tenant_id, job_id, k) for k in ks for tenant_id, job_id in jobs]
    url = engine.url.render_as_string(hide_password=False)
    server, client = server_s(engine), time.process_time()
    taken = take_in(engine, records)
    taken_cpu = time.process_time() - client + server_s(engine) - server
    server, began = server_s(engine), time.perf_counter()
    billed = sum(pool.map(bill, [url] * BILLERS))
    charged = time.perf_counter() - began
    charged_cpu = billed + server_s(engine) - server
    with transaction(engine) as session:
        left = session.scalars(select(func.count()).select_from(UnchargedUsageRow)).one()
    assert left == 0, left  # noqa: S101 - all is charged
    say(
        f"{len(records) / taken:,.0f} records/s ({taken_cpu / len(records) * 1e6:.0f} µs of processor each),"
        f" {len(jobs) / charged:,.0f} charges/s of {len(ks)} ({charged_cpu / len(jobs) * 1e6:.0f} µs each)"
    )
    return Round(len(records), len(jobs), taken, charged, taken_cpu, charged_cpu)


def bill(url: str) -> float:
    """One biller's round, in a process of its own; what another had locked is looked at again. Processor seconds."""
    if url not in _ENGINES:
        _ENGINES[url] = open_engine(url, pool_size=1)
    began = time.process_time()
    while bill_once(_ENGINES[url], AT):
        pass
    return time.process_time() - began


_ENGINES: Final[dict[str, Engine]] = {}


def server_s(engine: Engine) -> float:
    """Processor seconds of all processes of the database server that live now."""
    with engine.connect() as connection:
        backend = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                words = (entry / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
                spent = int((entry / "schedstat").read_text(encoding="ascii").split()[0])
            except OSError:  # it has just ended
                continue
            parents[int(entry.name)] = (int(words[1]), spent)
    return sum(spent for parent, spent in parents.values() if parent == parents[backend][0]) / 1e9


def close(engine: Engine, jobs: Sequence[Job]) -> tuple[float, int]:
    """Close the month of every tenant; seconds, and what the invoices come to."""
    began, gross = time.perf_counter(), 0
    for tenant_id in sorted({tenant_id for tenant_id, _ in jobs}):
        with transaction(engine) as session:
            gross += close_month(session, tenant_id, "2026-03", by=BY, at=CLOSED_AT).gross_micros
    return time.perf_counter() - began, gross
