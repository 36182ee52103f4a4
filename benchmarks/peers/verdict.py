"""What must not have happened, whatever struck a hub: counted in its database, its journals, its jobs' own words.

Every figure is zero on a hub that is whole: nothing here says how soon.
"""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Final
from uuid import UUID

import psutil
import psycopg

from benchmarks.peers.load import BEATS, BEGAN
from benchmarks.peers.ours import Hub
from compute_hub.stack.database import application_url
from kernel.database import open_engine, picture
from ledger.audit import audit
from scheduler.controller.settling import INFRASTRUCTURE

_ROUNDING_MS: Final = 50
_CENTRES: Final = sorted(INFRASTRUCTURE | {"never_started"})
"""Ends of runs that are the centre's fault; the jobs of the load give no reason for another one but to be done."""

_UNENDED: Final = """
    SELECT count(*) FROM jobs j LEFT JOIN job_funding f ON f.job_id = j.id
    WHERE j.ended_at IS NULL OR f.state IS DISTINCT FROM 'released'"""
_UNMETERED_ENDS: Final = """
    SELECT count(*) FROM runs r WHERE r.started_at IS NOT NULL
        AND NOT EXISTS (SELECT FROM usage_records u WHERE u.run_id = r.id AND u.final)"""
_UNCHARGED: Final = "SELECT count(*) FROM uncharged_usage"
_BADLY_ENDED: Final = """
    SELECT count(*) FROM jobs j WHERE j.state = 'failed'
        AND (j.max_retries > 0 OR NOT EXISTS (SELECT FROM runs r WHERE r.job_id = j.id AND r.attempt = j.attempt
            AND r.end_reason = ANY (%s)))"""
_DOUBLED: Final = """
    SELECT count(*) FROM allocations a JOIN allocations b ON a.id < b.id
    WHERE a.slots && b.slots AND a.span && b.span"""
_OVERLAPPING_RUNS: Final = """
    SELECT count(*) FROM runs a JOIN runs b ON a.job_id = b.job_id AND a.rank = b.rank AND a.attempt < b.attempt
    WHERE a.started_at IS NOT NULL AND b.started_at < coalesce(a.ended_at, 'infinity')"""
_ORPHAN_HOLDS: Final = """
    SELECT count(*) FROM job_funding f JOIN jobs j ON j.id = f.job_id
    WHERE j.ended_at IS NOT NULL AND f.state <> 'released'"""
_OPEN_HOLDS: Final = "SELECT count(*) FROM holds WHERE state = 'open'"
_UNMETERED: Final = """
    SELECT coalesce(sum(greatest(0, extract(epoch FROM r.ended_at - r.started_at) * 1000
        - coalesce(u.ms, 0) - %s)), 0)::bigint
    FROM runs r LEFT JOIN (SELECT run_id, sum(duration_ms) AS ms FROM usage_records GROUP BY run_id) u
        ON u.run_id = r.id
    WHERE r.end_reason NOT IN ('node_lost', 'supervisor_lost', 'never_started') AND r.started_at IS NOT NULL"""
_MISMATCHES: Final = "SELECT count(*) FROM usage_mismatches"
_UNRESTORED: Final = """
    SELECT coalesce(sum(abs(c.micros - coalesce(l.restored_micros, 0))), 0)::bigint
    FROM (SELECT DISTINCT r.job_id, r.attempt FROM runs r JOIN jobs j ON j.id = r.job_id
          WHERE r.attempt = ANY (j.lost_attempts)) lost
    JOIN (SELECT job_id, attempt, sum(amount_micros) AS micros FROM charges GROUP BY job_id, attempt) c
        USING (job_id, attempt)
    LEFT JOIN lost_attempts l USING (job_id, attempt)"""


def unsettled(hub: Hub) -> str:
    """What a hub still has to do before it can be judged; empty when nothing, or when nobody can be asked."""
    try:
        with hub.database() as connection:
            facts = {
                "jobs": _one(connection, _UNENDED),
                "meters": _one(connection, _UNMETERED_ENDS),
                "charges": _one(connection, _UNCHARGED),
            }
    except psycopg.OperationalError as error:
        return str(error)
    return ", ".join(f"{count} {name}" for name, count in facts.items() if count)


def counts(hub: Hub) -> dict[str, int]:
    """What happened that must not have, to all jobs there ever were."""
    with hub.database() as connection:
        return {
            "doubled_runs": _one(connection, _DOUBLED)
            + _one(connection, _OVERLAPPING_RUNS)
            + overlapping_beats(hub.stack.settings.workspaces),
            "orphan_processes": len(running_jobs(hub)),
            "orphan_holds": _one(connection, _ORPHAN_HOLDS),
            "unmetered_ms": _one(connection, _UNMETERED, _ROUNDING_MS),
            "mismatched_records": _one(connection, _MISMATCHES),
        }


def final_counts(hub: Hub) -> dict[str, int]:
    """The same, and what can only be said when all has settled; of the jobs that `Hub.submit` submitted."""
    with hub.database() as connection:
        known = connection.execute("SELECT id FROM jobs").fetchall()
        submitted = {UUID(job_id) for job_id in hub.submitted}
        lost = len(submitted ^ {job_id for (job_id,) in known})
        lost += _one(connection, "SELECT count(*) FROM jobs WHERE ended_at IS NULL") + _one(
            connection, _BADLY_ENDED, _CENTRES
        )
        more = {
            "unended_meters": _one(connection, _UNMETERED_ENDS),
            "uncharged_records": _one(connection, _UNCHARGED),
            "unrestored_micros": _one(connection, _UNRESTORED),
        }
        holds = _one(connection, _OPEN_HOLDS)
    found = counts(hub)
    found["orphan_holds"] += holds
    return {"lost_jobs": lost} | found | more | {"wrong_balances": wrong_balances(hub)}


def wrong_balances(hub: Hub) -> int:
    """What of the ledger does not follow from its transfers."""
    engine = open_engine(application_url(hub.stack.settings), part="judge", pool_size=1)
    with picture(engine) as session:
        found = len(audit(session).differences)
    engine.dispose()
    return found


def overlapping_beats(workspaces: Path) -> int:
    """By the jobs' own words: ranks that were begun twice in an attempt, or still ran when the next attempt did."""
    wrong = 0
    for ranks in _spoken(workspaces):
        wrong += sum(lines.count(BEGAN) != 1 for lines in ranks)
        times = [[float(line) for line in lines if line and line != BEGAN] for lines in ranks]
        wrong += sum(before[-1] >= after[0] for before, after in pairwise(some for some in times if some))
    return wrong


def _spoken(workspaces: Path) -> Iterator[list[list[str]]]:
    """For each rank of each job what its attempts wrote down, in their order; the last word may have been cut short."""
    for job in workspaces.glob("*/*-*-*-*-*"):
        by_rank: dict[str, list[tuple[int, list[str]]]] = {}
        for file in job.glob(f"attempt-*/rank-*/{BEATS}"):
            attempt = int(file.parts[-3].removeprefix("attempt-"))
            lines = file.read_text(encoding="ascii").split("\n")[:-1]
            by_rank.setdefault(file.parts[-2], []).append((attempt, lines))
        for attempts in by_rank.values():
            yield [lines for _, lines in sorted(attempts) if lines]


def running_jobs(hub: Hub) -> list[str]:
    """Programs of the load that run although no job does, by their command lines."""
    with hub.database() as connection:
        if _one(connection, "SELECT count(*) FROM runs WHERE state <> 'ended'"):
            return []
    found = processes_of(hub.stack.settings.state_directory)
    return [one for one in found if "/bin/bash" in one.split()[0] and " -c " in one]


def processes_of(folder: Path) -> list[str]:
    """Command lines that name a hub's folder."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = " ".join(process.info["cmdline"] or ())
        if str(folder.resolve()) in command:
            found.append(command)
    return found


def _one(connection: psycopg.Connection, query: str, *values: object) -> int:
    row = connection.execute(query.encode(), values or None).fetchone()
    return int(row[0]) if row else 0
