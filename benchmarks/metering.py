"""From a node's records to a closed month: how fast usage is taken in, charged and invoiced, on a durable server.

`python -m benchmarks.metering --json` prints one JSON object as its last line. Tenants with vouchers, own money and
running jobs (their holds are placed in one batch, `admissions_per_s`) send records as a node's report does, `BATCH` in
each durable transaction; after every round two billers charge them: rated, covered by voucher and own money, captured,
one charge per job and round. At the end the month of every tenant is closed. With `--fill` so many other records are
laid into the tables before a last round; `cost_growth` is what taking in and charging a record costs there against the
first round (`ingest_growth`, `charge_growth` each).

Goals: records_per_s ≥ 5,000; charges_per_s ≥ 2,000; a month of 1,000,000 records closed in < 300 s and < 1 GB;
cost_growth ≤ 1.2 at 10⁷ records. A centre of 2,240 cards with a record per card and minute makes 37 records a second.
"""

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Final
from uuid import UUID

from sqlalchemy import Engine, func, select, text
from sqlalchemy.orm import Session

from benchmarks.ledger_load import say
from compute_hub.billing.funding import Funding, pledge_alike
from compute_hub.billing.invoicing import close_month
from compute_hub.billing.rates import set_rate
from compute_hub.billing.tables import ChargeRow
from compute_hub.metering.tables import UnchargedUsageRow
from compute_hub.workers.biller import bill_once
from kernel.clock import unix_ms
from kernel.database import open_engine, transaction
from kernel.ids import derived_id
from kernel.migrations import migrate
from kernel.postgres import OWNER_ROLE, PrivatePostgres
from ledger.audit import audit
from scheduler.controller.ports import Admission
from scheduler.jobs import JobRequest, submit_job
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

_Job = tuple[UUID, UUID]
"""Tenant and job."""


def set_up(engine: Engine, tenants: int, jobs: int) -> tuple[list[_Job], float]:
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


def _start(engine: Engine, tenant_ids: Sequence[UUID], numbers: Sequence[int]) -> tuple[list[_Job], float]:
    """Submit, admit and place jobs; the seconds are those of the admission."""
    with transaction(engine) as session:
        jobs = [
            submit_job(
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
        pledge_alike(session, jobs, None)
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
            FUNDING.record_usage(session, "n", records[first : first + BATCH], AT)
    return time.perf_counter() - began


def fill(engine: Engine, count: int) -> None:
    """Lay so many charged records of other jobs into the tables, with everything that is kept of a charged record."""
    each = 10_000
    with transaction(engine) as session:
        charge_id = session.scalars(select(ChargeRow.id).limit(1)).one()
    for first in range(0, count, 1_000_000):
        with transaction(engine) as session:
            session.execute(
                _FILL,
                {"first": first, "last": min(first + 1_000_000, count) - 1, "each": each, "charge": charge_id},
            )
        say(f"filled to {min(first + 1_000_000, count):,}")
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE usage_records, charged_usage"))


_FILL: Final = text("""
    WITH other AS (
        INSERT INTO usage_records (id, job_id, run_id, attempt, rank, k, node, boot_id, model, started_at, offset_ms,
                                   duration_ms, slot_ms, busy_ms, memory_bytes_max, final, content_sha256, received_at)
        SELECT gen_random_uuid(), CAST(md5((n / :each)::text) AS uuid), CAST(md5((n / :each)::text) AS uuid), 1, 0,
               mod(n, :each), 'n', 'b', 'sim-a', '2026-01-01Z', 0, 1000, 1000000, 500, 0, false,
               repeat('0', 64),
               '2026-01-01Z'
          FROM generate_series(CAST(:first AS bigint), CAST(:last AS bigint)) AS n
        RETURNING job_id, attempt, rank, k)
    INSERT INTO charged_usage (job_id, attempt, rank, first_k, until_k, charge_id)
    SELECT job_id, attempt, rank, k, k + 1, CAST(:charge AS uuid) FROM other
""")


def one_round(engine: Engine, pool: Executor, jobs: Sequence[_Job], ks: range) -> tuple[float, float]:
    """Records of every job taken in, then charged by all billers: seconds per record and per charge."""
    records = [record(tenant_id, job_id, k) for k in ks for tenant_id, job_id in jobs]
    taken = take_in(engine, records)
    url = engine.url.render_as_string(hide_password=False)
    began = time.perf_counter()
    list(pool.map(_bill, [url] * BILLERS))
    charged = time.perf_counter() - began
    with transaction(engine) as session:
        left = session.scalars(select(func.count()).select_from(UnchargedUsageRow)).one()
    assert left == 0, left  # noqa: S101 - all is charged
    say(f"{len(records) / taken:,.0f} records/s, {len(jobs) / charged:,.0f} charges/s")
    return taken / len(records), charged / len(jobs)


def _bill(url: str) -> None:
    """One biller's round, in a process of its own; what another had locked is looked at again."""
    if url not in _ENGINES:
        _ENGINES[url] = open_engine(url, pool_size=1)
    while bill_once(_ENGINES[url], AT):
        pass


_ENGINES: Final[dict[str, Engine]] = {}


def close(engine: Engine, jobs: Sequence[_Job]) -> tuple[float, int]:
    """Close the month of every tenant; seconds, and what the invoices come to."""
    began, gross = time.perf_counter(), 0
    for tenant_id in sorted({tenant_id for tenant_id, _ in jobs}):
        with transaction(engine) as session:
            gross += close_month(session, tenant_id, "2026-03", by=BY, at=CLOSED_AT).gross_micros
    return time.perf_counter() - began, gross


def measure(engine: Engine, owner: Engine, pool: Executor, asked: argparse.Namespace) -> dict[str, float]:
    """Rounds of records and charges, then the month's end."""
    jobs, admitting = set_up(engine, asked.tenants, asked.jobs)
    say(f"{len(jobs) / admitting:,.0f} admissions/s")
    rounds = [
        one_round(engine, pool, jobs, range(number * asked.each, (number + 1) * asked.each))
        for number in range(asked.rounds)
    ]
    invoice_s, gross = close(engine, jobs)
    memory_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    records = asked.jobs * asked.rounds * asked.each
    with transaction(engine) as session:
        differences = len(audit(session).differences)
        charges = session.scalars(select(func.count()).select_from(ChargeRow)).one()
    expected = records * RECORD_MS * 36_000_000 // 3_600_000
    result = {
        "records": records,
        "charges": charges,
        "admissions_per_s": round(len(jobs) / admitting, 1),
        "records_per_s": round(1 / median(taken for taken, _ in rounds), 1),
        "charges_per_s": round(1 / median(charged for _, charged in rounds), 1),
        "invoice_s": round(invoice_s, 3),
        "memory_mb": round(memory_mb, 1),
        "violations": differences + (gross != expected),
    }
    if asked.fill:
        fill(owner, asked.fill)
        later = [
            one_round(engine, pool, jobs, range(number * asked.each, (number + 1) * asked.each))
            for number in range(asked.rounds, 2 * asked.rounds)
        ]
        before, after = ([median(column) for column in zip(*some, strict=True)] for some in (rounds, later))
        result |= {
            "filled": asked.fill,
            "ingest_growth": round(after[0] / before[0], 3),
            "charge_growth": round(after[1] / before[1], 3),
            "cost_growth": round((after[0] + after[1] / asked.each) / (before[0] + before[1] / asked.each), 3),
        }
    return result


def main() -> None:
    """Measure and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the result as one JSON line")
    parser.add_argument("--tenants", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--each", type=int, default=100, help="records of each job in each round")
    parser.add_argument(
        "--fill", type=int, default=0, help="other records laid into the tables before more rounds"
    )
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hub-bench-") as folder:
        server = PrivatePostgres(Path(folder) / "pg", durable=True)
        server.start()
        try:
            server.create_database("metering")
            migrate(server.url("metering", OWNER_ROLE))
            engine, owner = open_engine(server.url("metering")), open_engine(server.url("metering", OWNER_ROLE))
            with ProcessPoolExecutor(BILLERS, multiprocessing.get_context("spawn")) as pool:
                list(pool.map(_bill, [server.url("metering")] * BILLERS))
                result = measure(engine, owner, pool, asked)
            engine.dispose()
            owner.dispose()
        finally:
            server.stop()
    print(json.dumps(result) if asked.json else json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
