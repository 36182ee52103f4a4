"""What the meters measured, what of it was work, whether all of it arrived, and whether the biller keeps up."""

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from fractions import Fraction
from typing import Final

from sqlalchemy import text
from sqlalchemy.orm import Session

from compute_hub.telemetry.centre import Part
from compute_hub.telemetry.families import Family, Sample
from compute_hub.telemetry.history import History

USED = Family(
    "hub_used_card_seconds_total",
    "Card time that jobs had and meters measured: the denominator of the busy rate.",
    ("model",),
    "counter",
)
BUSY = Family(
    "hub_busy_card_seconds_total",
    "Of the used card time, the part with work on it: the numerator of the busy rate. A meter that cannot see the "
    "card counts the time its processes computed, at most all of it.",
    ("model",),
    "counter",
)
DELIVERED = Family(
    "hub_delivered_pflop_seconds_total",
    "PFLOPS × seconds delivered: the numerator of the effective rate, whose denominator is the peak of what is "
    "available over the same time (hub_peak_pflops). With the basis busy_time it is an upper bound: busy card time "
    "at the card's peak, because no card counts its operations here.",
    ("model", "basis"),
    "counter",
)
RECORDS = Family(
    "hub_usage_records_total", "Usage records received from meters, each counted once.", ("model",), "counter"
)
ENERGY = Family(
    "hub_energy_joules_total",
    "Energy that jobs took on their cards, by how it is known: measured by a sensor, or estimated from the model's "
    "declared power and busy time. Cards that are given to nobody are not in it.",
    ("model", "basis"),
    "counter",
)
LAG = Family(
    "hub_metering_lag_seconds",
    "How long the oldest usage record that is not charged yet has waited; 0 if none.",
)
UNCHARGED = Family("hub_metering_uncharged_records", "Usage records that wait for the biller.")
GAPS = Family(
    "hub_metering_gaps",
    "Runs of the last day whose records cannot be complete: missing (a number was left out), unfinished (ended over "
    "ten minutes ago without a final record).",
    ("kind",),
)
MISMATCHES = Family(
    "hub_usage_mismatches_total",
    "Usage records that contradict another record or the run they name; never billed.",
    (),
    "counter",
)

_USED = """
    SELECT model, sum(slot_ms), sum(least(busy_ms * 1000, slot_ms)), count(*)
      FROM usage_records WHERE received_at > :since AND received_at <= :until GROUP BY model"""
_ENERGY = """
    SELECT model, energy_basis, sum(energy_mj)
      FROM usage_records WHERE received_at > :since AND received_at <= :until AND energy_mj IS NOT NULL
     GROUP BY model, energy_basis"""
_UNCHARGED = text("""
    SELECT count(*), min(r.received_at) FROM uncharged_usage JOIN usage_records r USING (job_id, attempt, rank, k)""")
_MISSING = text("""
    SELECT count(*) FROM (
        SELECT FROM usage_records WHERE received_at > :since
         GROUP BY job_id, attempt, rank HAVING max(k) - min(k) + 1 > count(*)) g""")
_UNFINISHED = text("""
    SELECT count(*) FROM runs r
     WHERE r.ended_at > :since AND r.ended_at < :quiet AND r.started_at IS NOT NULL AND NOT EXISTS (
        SELECT FROM usage_records u
         WHERE u.job_id = r.job_id AND u.attempt = r.attempt AND u.rank = r.rank AND u.final)""")
_MISMATCHES = text("SELECT count(*) FROM usage_mismatches")
_DAY: Final = timedelta(days=1)
_QUIET: Final = timedelta(minutes=10)


def usage(peak_pflops: Mapping[str, tuple[str, Fraction]]) -> Part:
    """Card time since the beginning; `peak_pflops` as for the capacity."""
    used, energy = History(_USED, keys=1), History(_ENERGY, keys=2)

    def read(session: Session, at: datetime) -> Iterator[Sample]:
        for (model,), (slot_ms, busy_slot_ms, count) in used.sums(session, at).items():
            yield USED(slot_ms / 1e6, model)
            yield BUSY(busy_slot_ms / 1e6, model)
            yield RECORDS(count, model)
            if model in peak_pflops:
                yield DELIVERED(busy_slot_ms / 1e6 * float(peak_pflops[model][1]), model, "busy_time")

        for (model, basis), (millijoules,) in energy.sums(session, at).items():
            yield ENERGY(millijoules / 1000, model, basis)

    return Part("usage", 2000, (USED, BUSY, DELIVERED, RECORDS, ENERGY), read)


def metering() -> Part:
    """Whether records are complete and charged."""

    def read(session: Session, at: datetime) -> Iterator[Sample]:
        count, oldest = session.execute(_UNCHARGED).one()
        yield UNCHARGED(count)
        yield LAG(0 if oldest is None else max(0, (at - oldest).total_seconds()))
        yield GAPS(session.scalar(_MISSING, {"since": at - _DAY}) or 0, "missing")
        yield GAPS(session.scalar(_UNFINISHED, {"since": at - _DAY, "quiet": at - _QUIET}) or 0, "unfinished")
        yield MISMATCHES(session.scalar(_MISMATCHES) or 0)

    return Part("metering", 2000, (LAG, UNCHARGED, GAPS, MISMATCHES), read)
