"""Does a record cost more in bigger tables, and how long and how much memory does closing a long month take?

Other jobs' charged records are laid into the tables by set, with the indexes made afterwards, until there are as many
as each size says; at each, rounds of records are taken in and charged. Ids are derived, so they fall anywhere in their
index: its pages are read in first, and rounds that are not counted touch them once, because PostgreSQL logs a page
whole at its first touch after a checkpoint. What is compared is processor time of client and server, not seconds.
"""

import argparse
import resource
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from statistics import median
from typing import Final

from sqlalchemy import Engine, text

from benchmarks.ledger_load import say
from benchmarks.metering_load import Round, close, one_round, set_up
from compute_hub.billing.tables import ChargeLineRow, ChargeRow
from kernel.database import open_engine
from kernel.postgres import PrivatePostgres
from vouchers.tables import CoverageLine, CoveredCharge

_RECORDS_OF_CHARGE: Final = 20
_CHARGES_OF_JOB: Final = 500
_AT_ONCE: Final = 1_000_000

_WITHOUT_INDEXES: Final = """
    ALTER TABLE uncharged_usage DROP CONSTRAINT fk_uncharged_usage_job_id_attempt_rank_k;
    ALTER TABLE usage_records DROP CONSTRAINT pk_usage_records, DROP CONSTRAINT uq_usage_records_job_id_attempt_rank_k;
"""
_WITH_INDEXES: Final = """
    SET LOCAL maintenance_work_mem = '1GB';
    ALTER TABLE usage_records ADD CONSTRAINT pk_usage_records PRIMARY KEY (id) WITH (fillfactor = 70),
        ADD CONSTRAINT uq_usage_records_job_id_attempt_rank_k UNIQUE (job_id, attempt, rank, k);
    ALTER INDEX pk_usage_records RESET (fillfactor);
    ALTER TABLE uncharged_usage ADD CONSTRAINT fk_uncharged_usage_job_id_attempt_rank_k
        FOREIGN KEY (job_id, attempt, rank, k) REFERENCES usage_records (job_id, attempt, rank, k);
"""
_RECORDS: Final = text("""
    INSERT INTO usage_records (id, job_id, run_id, attempt, rank, k, node, boot_id, model, started_at, offset_ms,
                               duration_ms, slot_ms, busy_ms, memory_bytes_max, final, content_sha256, received_at)
    SELECT gen_random_uuid(), job_id, job_id, 1, 0, mod(n, :each), 'n', 'b', 'sim-a', '2026-01-01Z',
           mod(n, :each) * 1000, 1000, 1000000, 500, 0, false, repeat('0', 64), '2026-01-01Z'
      FROM (SELECT n, CAST(md5((n / :each)::text) AS uuid) AS job_id
              FROM generate_series(CAST(:first AS bigint), CAST(:last AS bigint)) AS n) AS numbered
""")
_CHARGES: Final = text("""
    WITH other AS (
        INSERT INTO charges (id, job_id, tenant_id, n, attempt, model, month, slot_ms, amount_micros, voucher_micros,
                             tenant_micros, rounding_micros, forgone_micros, charged_at)
        SELECT gen_random_uuid(), CAST(md5((n / :each)::text) AS uuid), CAST(md5('firm') AS uuid),
               mod(n, :each) / :of_charge, 1, 'sim-a', '2026-01', 1000000 * :of_charge, 1, 0, 1, 0, 0, '2026-01-01Z'
          FROM generate_series(CAST(:first AS bigint), CAST(:last AS bigint), :of_charge) AS n
        RETURNING id, job_id, n)
    INSERT INTO charged_usage (job_id, attempt, rank, first_k, until_k, charge_id)
    SELECT job_id, 1, 0, n * :of_charge, (n + 1) * :of_charge, id FROM other
""")
_READ_IN: Final = (
    "SELECT count(id) FROM usage_records WHERE id IS NOT NULL",
    "SELECT count(job_id) FROM usage_records WHERE job_id IS NOT NULL",
)
# Sorted by id, so that the copies fill their indexes from one end to the other.
_COPIES: Final = """
    CREATE TEMP TABLE copies AS
    SELECT gen_random_uuid() AS id, charges.id AS original, number
      FROM charges, generate_series(1, CAST(:times AS bigint)) AS number ORDER BY 1
"""
_COPIED: Final = (
    (ChargeRow, "id", {"id": "copies.id", "n": "x.n + 1000 * copies.number"}),
    (ChargeLineRow, "charge_id", {"charge_id": "copies.id"}),
    (CoveredCharge, "charge_id", {"charge_id": "copies.id"}),
    (CoverageLine, "charge_id", {"id": "gen_random_uuid()", "charge_id": "copies.id"}),
)
"""What is copied, by which column it belongs to its charge, and what a copy has of its own."""


def growth(
    engine: Engine, pool: Executor, server: PrivatePostgres, asked: argparse.Namespace
) -> dict[str, object]:
    """Processor time of a record at each size; `cost_growth` is the largest beside the smallest."""
    jobs, _ = set_up(engine, asked.tenants, asked.jobs)
    one_round(engine, pool, jobs, range(asked.each))
    done, filled, sizes = 1, 0, []
    for size in asked.sizes:
        fill(server, filled, size)
        filled = size
        rounds = []
        for number in range(asked.warm_up + asked.rounds):
            once = one_round(engine, pool, jobs, range(done * asked.each, (done + 1) * asked.each))
            done += 1
            if number >= asked.warm_up:
                rounds.append(once)
        sizes.append({"filled": size} | _cost(rounds))
        say(f"{sizes[-1]}")
    first, last = sizes[0], sizes[-1]
    return {"records_in_charge": asked.each, "sizes": sizes} | {
        f"{name}_growth": round(last[f"{name}_cpu_us"] / first[f"{name}_cpu_us"], 3)
        for name in ("ingest", "charge", "cost")
    }


def _cost(rounds: Sequence[Round]) -> dict[str, float]:
    """Processor time of taking a record in, of a charge, and of a record with its part of the charge."""
    return {
        "ingest_cpu_us": round(median(one.taken_cpu_s / one.records for one in rounds) * 1e6, 1),
        "charge_cpu_us": round(median(one.charged_cpu_s / one.charges for one in rounds) * 1e6, 1),
        "cost_cpu_us": round(
            median((one.taken_cpu_s + one.charged_cpu_s) / one.records for one in rounds) * 1e6, 1
        ),
    }


def fill(server: PrivatePostgres, have: int, count: int) -> None:
    """Lay charged records of other jobs into the tables until there are `count`, where there are `have` of them."""
    began = time.perf_counter()
    facts = {"each": _RECORDS_OF_CHARGE * _CHARGES_OF_JOB, "of_charge": _RECORDS_OF_CHARGE}
    engine = open_engine(server.url("metering", "postgres"), idle_ms=0)
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.exec_driver_sql(_WITHOUT_INDEXES)
        for first in range(have, count, _AT_ONCE):
            part = {"first": first, "last": min(first + _AT_ONCE, count) - 1}
            connection.execute(_RECORDS, part | {"each": facts["each"]})
            connection.execute(_CHARGES, part | facts)
        connection.exec_driver_sql(_WITH_INDEXES)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE usage_records, charges, charged_usage"))
        connection.execute(text("CHECKPOINT"))
        connection.execute(text("SET enable_seqscan = off"))
        for statement in _READ_IN:
            connection.execute(text(statement))
    engine.dispose()
    say(f"filled to {count:,} in {time.perf_counter() - began:.0f} s")


def long_month(
    engine: Engine, pool: Executor, server: PrivatePostgres, asked: argparse.Namespace
) -> dict[str, object]:
    """Close a month of `--month` charges of one record each; the invoices must come to what was charged."""
    jobs, _ = set_up(engine, asked.tenants, asked.jobs)
    one_round(engine, pool, jobs, range(1))
    times = asked.month // len(jobs)
    copy_charges(server, times - 1)
    seconds, gross = close(engine, jobs)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    with engine.connect() as connection:
        charges, charged = connection.execute(
            text("SELECT count(*), sum(amount_micros) FROM charges WHERE month = '2026-03'")
        ).one()
    return {
        "charges": charges,
        "invoice_s": round(seconds, 3),
        "memory_mb": round(memory, 1),
        "violations": int(gross != charged),
    }


def copy_charges(server: PrivatePostgres, times: int) -> None:
    """Add so many copies of every charge with its lines and coverage, as other charges of the same jobs."""
    began = time.perf_counter()
    engine = open_engine(server.url("metering", "postgres"), idle_ms=0)
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.execute(text("SET LOCAL work_mem = '256MB'"))
        connection.execute(text(_COPIES), {"times": times})
        connection.execute(text("ANALYZE copies"))
        for table, key, changes in _COPIED:
            names = [column.name for column in table.__table__.columns]
            values = ", ".join(changes.get(name, f"x.{name}") for name in names)
            connection.execute(
                text(
                    f"INSERT INTO {table.__tablename__} ({', '.join(names)}) SELECT {values}"  # noqa: S608 - names of ours
                    f" FROM copies JOIN {table.__tablename__} x ON x.{key} = copies.original ORDER BY copies.id"
                )
            )
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))
        connection.execute(text("CHECKPOINT"))
    engine.dispose()
    say(f"copied {times} times in {time.perf_counter() - began:.0f} s")
