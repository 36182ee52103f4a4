"""What is replayed: jobs of a trace as firms would submit them, at a speed.

Durations are divided by the speed and prices multiplied by it, so that amounts are those of the real month. Pure.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

from kernel.errors import Invalid
from kernel.money import format_yuan, parse_yuan
from scheduler.simulator.workload import TraceJob

MONTH_MS: Final = 30 * 86_400_000
SLOT_MS_PER_CARD_HOUR: Final = 3_600_000_000
_LIMIT_SPARE_S: Final = 3


class NothingInMonth(Invalid):
    """The trace has no job in the month asked for."""

    sentence = "--trace: no job of the trace is submitted in its first 30 days."


class ProgrammeNotCounted(Invalid):
    """A programme whose rule the recount does not speak."""

    sentence = (
        "--programme: {programme} {why}. The replay counts programmes in yuan with one ratio for everybody, "
        "claimed by the centre, and without days of public notice."
    )


@dataclass(frozen=True)
class PlayedJob:
    """A job of the trace as it is submitted; times in milliseconds of the replay."""

    name: str
    firm: str
    submitted_ms: int
    takes_ms: int
    real_ms: int
    nodes: int
    devices_per_node: int
    slots_milli: int

    @property
    def slots(self) -> int:
        """Milli-slots it holds while it runs."""
        return self.nodes * self.devices_per_node * self.slots_milli

    @property
    def limit_s(self) -> int:
        """The time limit its firm asks for: twice what it takes."""
        return -(-2 * self.takes_ms // 1000) + _LIMIT_SPARE_S


@dataclass(frozen=True)
class Rule:
    """What a programme's document says of who pays: its share of a bill and the most of a voucher."""

    slug: str
    ratio: Fraction
    cap_micros: int | None
    firm_region: str
    centre_region: str | None
    quarterly: bool


def jobs_of_month(
    trace: Sequence[TraceJob], *, count: int, speed: int, firms: int, devices_per_node: int
) -> tuple[PlayedJob, ...]:
    """Every k-th job of the trace's first 30 days, so that there are `count` or as many as it has.

    A gang that does not fill whole nodes is spread evenly, with the same number of devices. A trace without tenants
    gets `firms`, drawn from the jobs' names. Raises NothingInMonth.
    """
    ordered = sorted(trace, key=lambda entry: (entry.job.submitted_ms, entry.job.id))
    first_ms = ordered[0].job.submitted_ms if ordered else 0
    month = [entry for entry in ordered if entry.job.submitted_ms < first_ms + MONTH_MS]
    month = [entry for entry in month if entry.job.devices_per_node > 0]  # what needs no card costs nothing
    if not month:
        raise NothingInMonth
    count = min(count, len(month))
    chosen = [month[number * len(month) // count] for number in range(count)]
    return tuple(_played(entry, first_ms, speed, firms, devices_per_node) for entry in chosen)


def _played(entry: TraceJob, first_ms: int, speed: int, firms: int, devices_per_node: int) -> PlayedJob:
    job = entry.job
    devices = job.devices_per_node * job.nodes + job.tail_devices
    nodes = next(n for n in range(-(-devices // devices_per_node), devices + 1) if devices % n == 0)
    return PlayedJob(
        name=job.id,
        firm=job.tenant or job.user or f"firm-{_number(job.id) % firms + 1:02d}",
        submitted_ms=(job.submitted_ms - first_ms) // speed,
        takes_ms=max(1, round(Fraction(entry.duration_ms, speed))),
        real_ms=entry.duration_ms,
        nodes=nodes,
        devices_per_node=devices // nodes,
        slots_milli=job.slots_milli,
    )


def _number(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def price_at(price_cny: str, speed: int) -> str:
    """The price of a card-hour at a speed, in yuan. Raises MalformedAmount."""
    return format_yuan(parse_yuan(price_cny, field="--price") * speed)


def rule_of(document: dict[str, Any]) -> Rule:
    """What the recount must know of a programme, read from its document. Raises ProgrammeNotCounted."""
    slug = str(document["programme"])
    reasons = {
        f"counts {document['asset']}": document["asset"] != "CNY",
        "is paid back to the buyer": document["settlement"]["direction"] != "centre_claims",
        "has several ratios": len(document["ratios"]) != 1 or "when" in document["ratios"][0],
        "has days of notice": document["review"].get("notice_days", 0) != 0,
    }
    for why, applies in reasons.items():
        if applies:
            raise ProgrammeNotCounted(programme=slug, why=why)
    ratio = Fraction(document["ratios"][0]["ratio"])
    ceilings = [Fraction(entry["ratio"]) for entry in document.get("ceilings", [])]
    caps = [parse_yuan(entry["amount"]) for entry in document["caps"] if "when" not in entry]
    centre = document["eligible"]["centre_regions"][0]
    firm = document["eligible"]["enterprise_regions"][0]
    return Rule(
        slug=slug,
        ratio=min([ratio, *ceilings]),
        cap_micros=min(caps, default=None),
        firm_region="331003" if firm == "any" else firm.ljust(6, "0") if firm.isdecimal() else firm,
        centre_region=None if centre == "any" else centre.ljust(6, "0"),
        quarterly=document["settlement"]["cycle"] == "quarter",
    )


def worth_micros(jobs: Sequence[PlayedJob], price_micros: int) -> int:
    """About what jobs cost at a price per card-hour."""
    return sum(job.takes_ms * job.slots for job in jobs) * price_micros // SLOT_MS_PER_CARD_HOUR
