"""From a node's records to a closed month: how fast usage is taken in, charged and invoiced, on a durable server.

`python -m benchmarks.metering --json` prints one JSON object as its last line. Tenants with vouchers, own money and
running jobs (their holds are placed in one batch, `admissions_per_s`) send records as a node's report does, `BATCH` in
each durable transaction; after every round two billers charge them: rated, covered by voucher and own money, captured,
one charge per job and round. First `--rounds` with `--each` records for each job (`many_records_charges_per_s`), then
as many with `--few` (`charges_per_s`): in a centre a job sends a record a minute and the biller charges it at once, so
a charge is of one record, or of some after a delay. At the end the month of every tenant is closed. Beside the rates,
which rise and fall with whatever else the machine does, stands the processor time of client and server together.

`--sizes` measures instead what a record costs, from its report to its charge, with so many charged records of other
jobs in the tables; `--month` closes a month with so many charges, copied from those that were made.

Goals: records_per_s ≥ 5,000; charges_per_s ≥ 2,000; a month of 1,000,000 records closed in < 300 s and < 1 GB;
cost_growth ≤ 1.2 from 10⁵ to 10⁷ records. A centre of 2,240 cards with a record per card and minute makes 37 records
and charges a second.
"""

import argparse
import json
import multiprocessing
import resource
import tempfile
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path
from statistics import median

from sqlalchemy import Engine, func, select

from benchmarks.ledger_load import say
from benchmarks.metering_growth import growth, long_month
from benchmarks.metering_load import BILLERS, RECORD_MS, bill, close, one_round, set_up
from compute_hub.billing.tables import ChargeRow
from kernel.database import open_engine, transaction
from kernel.migrations import migrate
from kernel.postgres import OWNER_ROLE, PrivatePostgres
from ledger.audit import audit


def measure(engine: Engine, pool: Executor, asked: argparse.Namespace) -> dict[str, object]:
    """Rounds of records and charges, then the month's end."""
    jobs, admitting = set_up(engine, asked.tenants, asked.jobs)
    say(f"{len(jobs) / admitting:,.0f} admissions/s")
    lengths = [asked.each] * asked.rounds + [asked.few] * asked.rounds
    rounds = [
        one_round(engine, pool, jobs, range(sum(lengths[:number]), sum(lengths[: number + 1])))
        for number in range(len(lengths))
    ]
    many, few = rounds[: asked.rounds], rounds[asked.rounds :]
    invoice_s, gross = close(engine, jobs)
    memory_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    records = asked.jobs * sum(lengths)
    with transaction(engine) as session:
        differences = len(audit(session).differences)
        charges = session.scalars(select(func.count()).select_from(ChargeRow)).one()
    expected = records * RECORD_MS * 36_000_000 // 3_600_000
    return {
        "records": records,
        "charges": charges,
        "admissions_per_s": round(len(jobs) / admitting, 1),
        "records_per_s": round(median(one.records / one.taken_s for one in many), 1),
        "charges_per_s": round(median(one.charges / one.charged_s for one in few), 1),
        "charge_cpu_us": round(median(one.charged_cpu_s / one.charges for one in few) * 1e6, 1),
        "records_in_charge": asked.few,
        "many_records_charges_per_s": round(median(one.charges / one.charged_s for one in many), 1),
        "many_records_charge_cpu_us": round(median(one.charged_cpu_s / one.charges for one in many) * 1e6, 1),
        "many_records_in_charge": asked.each,
        "invoice_s": round(invoice_s, 3),
        "memory_mb": round(memory_mb, 1),
        "violations": differences + (gross != expected),
    }


def main() -> None:
    """Measure and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the result as one JSON line")
    parser.add_argument("--tenants", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--each", type=int, default=100, help="records of each job in each round")
    parser.add_argument("--few", type=int, default=2, help="records of each job in each of the later rounds")
    parser.add_argument("--sizes", type=int, nargs="+", default=(), help="measure growth: other records there")
    parser.add_argument("--warm-up", type=int, default=10, help="rounds at each size that are not counted")
    parser.add_argument("--month", type=int, default=0, help="measure closing a month of so many charges")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hub-bench-") as folder:
        server = PrivatePostgres(Path(folder) / "pg", durable=True)
        server.start()
        try:
            server.create_database("metering")
            migrate(server.url("metering", OWNER_ROLE))
            engine = open_engine(server.url("metering"))
            with ProcessPoolExecutor(BILLERS, multiprocessing.get_context("spawn")) as pool:
                list(pool.map(bill, [server.url("metering")] * BILLERS))
                if asked.sizes:
                    result = growth(engine, pool, server, asked)
                elif asked.month:
                    result = long_month(engine, pool, server, asked)
                else:
                    result = measure(engine, pool, asked)
            engine.dispose()
        finally:
            server.stop()
    print(json.dumps(result) if asked.json else json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
