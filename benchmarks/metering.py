"""From a node's records to a closed month: how fast usage is taken in, charged and invoiced, on a durable server.

`python -m benchmarks.metering --json` prints one JSON object as its last line. One client sends records as a node's
report does (100 in each durable transaction); after every round one biller charges them (charge, cover and capture of
each job in a transaction); at the end the month is closed. `cost_growth` is what taking in a record of the last round
costs against one of the first.

Goals: records_per_s ≥ 5,000; charges_per_s ≥ 2,000; a month of 1,000,000 records closed in < 300 s and < 1 GB;
cost_growth ≤ 1.2. A centre of 2,240 cards with a record per card and minute makes 37 records a second.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from uuid import UUID

from sqlalchemy import Engine, text

from benchmarks.ledger_load import say
from compute_hub.billing.funding import Funding, pledge_alike
from compute_hub.billing.invoicing import close_month
from compute_hub.billing.rates import set_rate
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
from vouchers.domain.facts import CentreFacts
from vouchers.enterprises import register_enterprise
from vouchers.wallets import deposit

AT: Final = datetime(2026, 3, 10, 2, 0, tzinfo=UTC)
CLOSED_AT: Final = datetime(2026, 4, 2, tzinfo=UTC)
MODEL: Final = "sim-a"
BATCH: Final = 100
RECORD_MS: Final = 1000
BY: Final = derived_id("benchmark", "operator")
FUNDING: Final = Funding(3_600_000, CentreFacts("331003", 400))
REQUEST: Final = JobRequest(name="job", argv=("x",), models=(MODEL,), environment="e", time_limit_ms=10**9)


def set_up(engine: Engine, jobs: int) -> tuple[UUID, list[UUID]]:
    """One tenant with money, one priced node with a card for each job, and the jobs running on them."""
    with transaction(engine) as session:
        tenant_id = register_enterprise(
            session, credit_code="91331003BENCH0001X", name="Bench", region="331003", at=AT
        )
        deposit(session, tenant_id, 10**14, "benchmark", AT)
        set_rate(session, MODEL, 36_000_000, effective_from=AT, by=BY, at=AT)
        session.execute(
            text(
                "INSERT INTO nodes VALUES ('n', 'h', 'up', '{}', 9000000, 9000000, '{}', :at, :at)"
            ).bindparams(at=AT)
        )
        session.execute(
            text(
                "INSERT INTO devices (node, index, model, vendor, healthy)"
                " SELECT 'n', n, :model, 'simulated', true FROM generate_series(1, :jobs) AS n"
            ),
            {"model": MODEL, "jobs": jobs},
        )
    return tenant_id, [_start(engine, tenant_id, number) for number in range(1, jobs + 1)]


def _start(engine: Engine, tenant_id: UUID, number: int) -> UUID:
    job_id = derived_id("benchmark-job", number)
    with transaction(engine) as session:
        job = submit_job(
            session, job_id, REQUEST, tenant_id=tenant_id, submitted_by=BY, environments=("e",), at=AT
        )
        pledge_alike(session, [job], [])
        refused = FUNDING.admit(session, [Admission(job, {MODEL: 1000})], AT)
        assert refused == {}, refused  # noqa: S101 - the tenant has money
        job.state, job.attempt, job.placed_at = "running", 1, AT
        session.flush()
        names = {"run": derived_id("run", job_id, 1, 0), "job": job_id, "n": number, "at": AT}
        session.execute(
            text(
                "INSERT INTO runs (id, job_id, attempt, rank, node, epoch, state, devices, acknowledged)"
                " VALUES (:run, :job, 1, 0, 'n', 1, 'running', '[]', false)"
            ),
            names,
        )
        session.execute(
            text(
                "INSERT INTO allocations SELECT gen_random_uuid(), :run, 'n', index, model,"
                " int8range(number * 1000, number * 1000 + 1000), tstzrange(:at, NULL) FROM devices WHERE index = :n"
            ),
            names,
        )
    return job_id


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


def measure(engine: Engine, jobs: int, rounds: int, each: int) -> dict[str, float]:
    """Rounds of records and charges, then the month's end."""
    tenant_id, job_ids = set_up(engine, jobs)
    taken, charged = [], []
    for number in range(rounds):
        ks = range(number * each, (number + 1) * each)
        records = [record(tenant_id, job_id, k) for job_id in job_ids for k in ks]
        taken.append(take_in(engine, records))
        began = time.perf_counter()
        touched = bill_once(engine, AT)
        charged.append(time.perf_counter() - began)
        assert touched == jobs, touched  # noqa: S101 - one charge per job and round
        rates = f"{len(records) / taken[-1]:,.0f} records/s, {jobs / charged[-1]:,.0f} charges/s"
        say(f"round {number + 1}/{rounds}: {rates}")
    began = time.perf_counter()
    with transaction(engine) as session:
        invoice = close_month(session, tenant_id, "2026-03", by=BY, at=CLOSED_AT)
    invoice_s = time.perf_counter() - began
    with transaction(engine) as session:
        differences = len(audit(session).differences)
    expected = jobs * rounds * each * RECORD_MS * 36_000_000 // 3_600_000
    return {
        "records": jobs * rounds * each,
        "records_per_s": round(jobs * rounds * each / sum(taken), 1),
        "charges_per_s": round(jobs * rounds / sum(charged), 1),
        "invoice_s": round(invoice_s, 3),
        "memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "cost_growth": round(taken[-1] / taken[0], 3),
        "violations": differences + (invoice.gross_micros != expected),
    }


def main() -> None:
    """Measure and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the result as one JSON line")
    parser.add_argument("--jobs", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--each", type=int, default=60, help="records of each job in each round")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hub-bench-") as folder:
        server = PrivatePostgres(Path(folder) / "pg", durable=True)
        server.start()
        try:
            server.create_database("metering")
            migrate(server.url("metering", OWNER_ROLE))
            engine = open_engine(server.url("metering"))
            result = measure(engine, asked.jobs, asked.rounds, asked.each)
            engine.dispose()
        finally:
            server.stop()
    print(json.dumps(result) if asked.json else json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
