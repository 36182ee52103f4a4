"""The month counted again by somebody who does not trust the hub: from what ran on the nodes and the published rules.

Nothing of the hub's rating, coverage or invoicing is imported. Known are: the schedule the nodes wrote, the price of a
card-hour, the programme's share, and in which order a firm's holds, charges and releases were booked.
"""

import csv
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Final, Literal

SLOT_MS_PER_CARD_HOUR: Final = 1000 * 3_600_000
_MICROS_PER_FEN: Final = 10_000
_VAT: Final = Fraction(6, 100)


@dataclass(frozen=True)
class Ran:
    """What the nodes say of a job: slot-milliseconds in all, and how long each of its runs was."""

    slot_ms: int
    durations_ms: frozenset[int]
    end_reasons: frozenset[str]


@dataclass(frozen=True)
class Event:
    """One step in the booking of a firm's job. `amount` is a hold's micro-yuan or a charge's slot-milliseconds.

    `charge` is the charge's id, or the segment that is held or released.
    """

    kind: Literal["hold", "charge", "release"]
    job: str
    amount: int = 0
    charge: str = ""


@dataclass(frozen=True)
class Due:
    """What a charge comes to, in micro-yuan, and what each of the firm's vouchers pays of it."""

    cost: int
    vouchers: tuple[int, ...]

    @property
    def voucher(self) -> int:
        """What its vouchers pay together."""
        return sum(self.vouchers)

    @property
    def firm(self) -> int:
        """What the firm pays itself."""
        return self.cost - self.voucher


@dataclass
class _Segment:
    """One hold: how much, what each voucher had left when it was placed, what it keeps of it, what was used."""

    cost: int
    voucher_left: tuple[int, ...]
    kept: tuple[int, ...]
    taken: tuple[int, ...]
    used: int = 0


@dataclass
class _Job:
    units: int = 0
    cost: int = 0
    segments: list[_Segment] = field(default_factory=list)


class Booking:
    """One firm's month: its vouchers and its jobs.

    Vouchers of one programme pay its ratio of a bill together: the first of them until it is used up, then the next.

    Args:
        price_micros: of a card-hour.
        ratio: the programme's share of every bill.
        faces_micros: of the firm's vouchers, in the order in which they are used up.
    """

    def __init__(self, price_micros: int, ratio: Fraction, faces_micros: Sequence[int]) -> None:
        self._price = price_micros
        self._ratio = ratio
        self.voucher_left = tuple(faces_micros)
        self._jobs: defaultdict[str, _Job] = defaultdict(_Job)
        self.dues: dict[str, Due] = {}

    def book(self, events: Iterable[Event]) -> None:
        """Book events in their order."""
        for event in events:
            job = self._jobs[event.job]
            if event.kind == "hold":
                left = self.voucher_left
                kept = self._shares(event.amount, left)
                job.segments.append(_Segment(event.amount, left, kept, taken=(0,) * len(left)))
                self.voucher_left = _less(left, kept)
            elif event.kind == "charge":
                self.dues[event.charge] = self._charge(job, event.amount)
            else:
                for segment in job.segments:
                    self.voucher_left = _less(self.voucher_left, _less(segment.taken, segment.kept))
                job.segments.clear()

    def _shares(self, cost: int, left: Sequence[int]) -> tuple[int, ...]:
        """What vouchers that have so much left pay of a cost, each rounded down."""
        shares, wanted = [], self._ratio * cost
        for limit in left:
            share = min(wanted, Fraction(limit))
            shares.append(int(share))
            wanted -= share
        return tuple(shares)

    def _charge(self, job: _Job, slot_ms: int) -> Due:
        """A job's bill is rounded as a whole, half up; a charge is what it grows by."""
        job.units += slot_ms * self._price
        whole = (2 * job.units + SLOT_MS_PER_CARD_HOUR) // (2 * SLOT_MS_PER_CARD_HOUR)
        cost, job.cost = whole - job.cost, whole
        left, vouchers = cost, (0,) * len(self.voucher_left)
        for segment in job.segments:
            part = min(left, segment.cost - segment.used)
            segment.used += part
            taken = self._shares(segment.used, segment.voucher_left)
            vouchers = _less(vouchers, _less(segment.taken, taken))
            segment.taken = taken
            left -= part
        return Due(cost - left, vouchers)


def _less(some: Sequence[int], others: Sequence[int]) -> tuple[int, ...]:
    return tuple(one - other for one, other in zip(some, others, strict=True))


def read_schedule(path: Path) -> dict[str, Ran]:
    """What ran, by the hub's job ids."""
    slot_ms: dict[str, int] = defaultdict(int)
    durations: dict[str, set[int]] = defaultdict(set)
    reasons: dict[str, set[str]] = defaultdict(set)
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            job, span = row["job_id"], int(row["end_ms"]) - int(row["start_ms"])
            slot_ms[job] += span * (int(row["slot_hi"]) - int(row["slot_lo"]))
            durations[job].add(span)
            reasons[job].add(row["end_reason"])
    return {job: Ran(slot_ms[job], frozenset(durations[job]), frozenset(reasons[job])) for job in slot_ms}


def payable_micros(dues: Iterable[Due]) -> int:
    """What a firm's invoice asks for: what is its own, rounded half up to the fen."""
    return _half_up(Fraction(sum(due.firm for due in dues), _MICROS_PER_FEN)) * _MICROS_PER_FEN


def vat_micros(payable: int) -> int:
    """The tax contained in an invoice, rounded half up to the fen."""
    return _half_up(payable * _VAT / (1 + _VAT) / _MICROS_PER_FEN) * _MICROS_PER_FEN


def _half_up(value: Fraction) -> int:
    return int(value + Fraction(1, 2))


def totals(dues: Mapping[str, Due]) -> tuple[int, int, int]:
    """Gross, the voucher's and the firm's own."""
    values = dues.values()
    return sum(due.cost for due in values), sum(due.voucher for due in values), sum(due.firm for due in values)
