"""Jobs on their way: how many wait, for what and for how long, and whether somebody leads the scheduler."""

from collections.abc import Iterator
from datetime import datetime
from typing import Final

from sqlalchemy import text
from sqlalchemy.orm import Session

from compute_hub.telemetry.centre import Part
from compute_hub.telemetry.families import Bounded, Family, Sample
from compute_hub.telemetry.history import History
from compute_hub.telemetry.parts.sizes import MODELS_MAX, SIZE_CLASS_SQL

ANY_MODEL: Final = "several"
"""The model of a job that takes more than one."""

JOBS = Family("hub_jobs", "Jobs that have not ended, by state and kind.", ("state", "kind"))
DEPTH = Family(
    "hub_queue_jobs",
    "Jobs that wait, by the model they ask for and their size class in cards.",
    ("model", "size"),
)
DEMAND = Family("hub_queue_devices", "Accelerators that waiting jobs ask for.", ("model",))
OLDEST = Family(
    "hub_queue_oldest_wait_seconds",
    "How long the job that waits longest has waited, of those that could start (not held, not before its time, "
    "nothing to wait for); 0 when none does.",
    ("model",),
)
ENDED = Family(
    "hub_jobs_ended_total",
    "Jobs that have ended, by final state, kind and reason.",
    ("state", "kind", "reason"),
    "counter",
)
PREEMPTIONS = Family(
    "hub_preemptions_total", "Attempts that were ended to make room for another job.", (), "counter"
)
RUNS_ENDED = Family(
    "hub_runs_ended_total",
    "Processes of jobs on nodes (runs) that have ended, by reason. start_failed counts sandbox failures; "
    "node_lost, lease_lost, supervisor_lost, journal_full, device_held and node_failed are the centre's doing.",
    ("reason",),
    "counter",
)
ESTIMATES = Family(
    "hub_start_estimates_total",
    "Start estimates that were held against the real start, by whether the job started early or late. A sample of the "
    "jobs that had to wait, estimated when they were submitted.",
    ("direction",),
    "counter",
)
ESTIMATE_ERROR = Family(
    "hub_start_estimate_error_seconds_total",
    "By how much those jobs started earlier or later than estimated; over hub_start_estimates_total the mean error.",
    ("direction",),
    "counter",
)
EPOCH = Family("hub_scheduler_leader_epoch", "Which term of leadership the scheduler is in.")
LEASE = Family(
    "hub_scheduler_leader_lease_seconds",
    "How long the leading controller's lease still lasts; negative when nobody leads.",
)

DIRECTIONS: Final = ("early", "late")
LIVE_STATES: Final = ("queued", "starting", "running", "stopping")

_LIVE = text(f"""
    SELECT state, kind, CASE WHEN cardinality(models) = 1 THEN models[1] ELSE :several END, {SIZE_CLASS_SQL},
           count(*), sum(node_count * devices_per_node * slots_milli), min(queued_at) FILTER (
               WHERE NOT held AND greatest(not_before, retry_at, queued_at) <= :at AND NOT EXISTS (
                   SELECT FROM jobs before WHERE before.id = ANY (jobs.depends_on) AND before.ended_at IS NULL))
      FROM jobs WHERE ended_at IS NULL GROUP BY 1, 2, 3, 4""")  # noqa: S608 - a constant of this package
_EVICTIONS = text("SELECT sum(evictions) FROM jobs WHERE ended_at IS NULL")
_MODELS = text("SELECT DISTINCT model FROM devices")
_LEADER = text("SELECT epoch, expires_at FROM scheduler_leader")
_JOBS_ENDED = """
    SELECT state, kind, coalesce(end_reason, ''), count(*), sum(evictions) FROM jobs
     WHERE ended_at > :since AND ended_at <= :until GROUP BY 1, 2, 3"""
_RUNS_ENDED = """
    SELECT coalesce(end_reason, ''), count(*) FROM runs WHERE ended_at > :since AND ended_at <= :until GROUP BY 1"""

_ESTIMATES = """
    SELECT CASE WHEN started_at < start_estimate_at THEN 'early' ELSE 'late' END, count(*),
           sum(abs(extract(epoch FROM started_at - start_estimate_at)))
      FROM start_estimates WHERE judged_at > :since AND judged_at <= :until GROUP BY 1"""


def queue() -> Part:
    """Jobs that have not ended, and who leads."""

    def read(session: Session, at: datetime) -> Iterator[Sample]:
        rows = session.execute(_LIVE, {"several": ANY_MODEL, "at": at}).all()
        known = {str(model) for model in session.scalars(_MODELS)}
        models = Bounded(known | {row[2] for row in rows}, MODELS_MAX)
        for state in LIVE_STATES:
            yield JOBS(0, state, "batch")
        waits = dict.fromkeys(map(models, known), 0.0)
        yield from (DEMAND(0, model) for model in waits)
        for state, kind, model, size, count, milli, oldest in rows:
            yield JOBS(count, state, kind)
            if state == "queued":
                name = models(model)
                yield DEPTH(count, name, size)
                yield DEMAND(float(milli) / 1000, name)
                if oldest is not None:
                    waits[name] = max(waits.get(name, 0), (at - oldest).total_seconds())
        yield from (OLDEST(wait, model) for model, wait in waits.items())
        for epoch, expires_at in session.execute(_LEADER):
            yield EPOCH(epoch)
            yield LEASE((expires_at - at).total_seconds())

    return Part("queue", 2000, (JOBS, DEPTH, DEMAND, OLDEST, EPOCH, LEASE), read)


def ended() -> Part:
    """What has become of jobs and of their runs, since the beginning."""
    jobs, runs = History(_JOBS_ENDED, keys=3), History(_RUNS_ENDED, keys=1)
    estimates = History(_ESTIMATES, keys=1)

    def read(session: Session, at: datetime) -> Iterator[Sample]:
        yield PREEMPTIONS(session.scalar(_EVICTIONS) or 0)
        for (state, kind, reason), (count, evictions) in jobs.sums(session, at).items():
            yield ENDED(count, state, kind, reason)
            yield PREEMPTIONS(evictions)
        for (reason,), (count,) in runs.sums(session, at).items():
            yield RUNS_ENDED(count, reason)
        judged = estimates.sums(session, at)
        for direction in DIRECTIONS:
            count, error_s = judged.get((direction,), (0, 0))
            yield ESTIMATES(count, direction)
            yield ESTIMATE_ERROR(error_s, direction)

    return Part("ended", 2000, (ENDED, PREEMPTIONS, RUNS_ENDED, ESTIMATES, ESTIMATE_ERROR), read)
