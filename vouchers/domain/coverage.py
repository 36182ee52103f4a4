"""Who pays which part of a cost: ratio tiers, remaining values, stacking ceilings and exclusions.

A plan is made once, for the cost a hold covers, and fixes which vouchers take part. Shares of any smaller cost
follow from the same plan, so the charges of a job telescope: every share is a non-decreasing function of the
cumulative cost, is rounded down to the smallest unit, and never exceeds what the hold set aside. Exact amounts are
whole numbers of such parts of a micro-yuan that every ratio of one is whole.

For a fixed set of vouchers the rules are nested bounds (voucher within programme within level within all), for
which filling in burn order gives the largest total (a polymatroid). Ceilings and exclusions bind only those who
take part, so the sets of conditional programmes are tried one by one; the best plan is the tenant's cheapest,
and among equals the one that burns earlier vouchers first. Card time that takes part is drawn before money, as far as
everybody's bounds let it, because it can pay for nothing else.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache, cached_property, lru_cache
from itertools import combinations, product
from math import lcm
from operator import attrgetter
from typing import Any, Final, Self

from kernel.errors import Unfunded
from vouchers.domain.terms import CNY, Ceiling, Exclusion

_Poured = tuple[int, str]
"""What a voucher pays, in parts of a micro-yuan, and the words for what kept it from paying more."""

CONDITIONAL_PROGRAMMES_MAX: Final = 10
_KNOWN_MAX: Final = 8
_STORED_MAX: Final = 8_192
ALL_LEVELS: Final = ""
CENTRE_CLAIMS: Final = "centre_claims"
BUYER_REIMBURSED: Final = "buyer_reimbursed"


class TooManyProgrammes(Unfunded):
    """More programmes with ceilings or exclusions than can be weighed against each other."""

    sentence = (
        "vouchers: {count} programmes with ceilings or exclusions could pay; at most {allowed} are weighed "
        "against each other, so name the vouchers to use."
    )


@dataclass(frozen=True)
class Candidate:
    """A voucher that may pay for this kind of charge, with the rules that hold for it.

    `ratio` is of the cost left after card time; `limit` is what remains on it, in its asset's smallest unit.
    `burn` orders: priority, expiry, width of scope, age, id.
    """

    voucher: str
    number: str
    version: str
    programme: str
    level: str
    asset: str
    ratio: Fraction
    limit: int
    clause: str
    burn: tuple[int | str, ...]
    direction: str = CENTRE_CLAIMS
    ceilings: tuple[Ceiling, ...] = ()
    exclusions: tuple[Exclusion, ...] = ()

    @property
    def conditional(self) -> bool:
        """Whether taking part binds others."""
        return bool(self.ceilings or self.exclusions)

    def excludes(self, other: "Candidate") -> bool:
        """Whether a clause of this one's programme keeps the other's from paying too."""
        return self.programme != other.programme and any(
            exclusion.hits(other.programme, other.level) for exclusion in self.exclusions
        )

    def to_json(self) -> dict[str, Any]:
        """As a JSON object, from which shares can be computed again years later."""
        return {
            "voucher": self.voucher,
            "number": self.number,
            "version": self.version,
            "programme": self.programme,
            "level": self.level,
            "asset": self.asset,
            "ratio": str(self.ratio),
            "limit": self.limit,
            "clause": self.clause,
            "burn": list(self.burn),
            "direction": self.direction,
            "ceilings": [[entry.clause, entry.level, str(entry.ratio)] for entry in self.ceilings],
            "exclusions": [[entry.clause, entry.programme, entry.level] for entry in self.exclusions],
        }

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Self:
        """What `to_json` wrote."""
        rules = {
            "ratio": _ratio(stored["ratio"]),
            "burn": tuple(stored["burn"]),
            "ceilings": tuple(
                Ceiling(clause, level, _ratio(ratio)) for clause, level, ratio in stored["ceilings"]
            ),
            "exclusions": tuple(Exclusion(*entry) for entry in stored["exclusions"]),
        }
        return cls(**(stored | rules))


@dataclass(frozen=True)
class Share:
    """What one voucher pays of a cost: exact and rounded down, and the clause that kept it from paying more.

    Exactly it is `parts` of which a micro-yuan has `scale`. `amount_micros` is the money it is worth; `quantity` is
    what leaves the voucher (milliseconds for card time).
    """

    candidate: Candidate
    parts: int
    scale: int
    amount_micros: int
    quantity: int
    bound_by: str

    @property
    def exact(self) -> Fraction:
        """What it pays in micro-yuan, before rounding."""
        return Fraction(self.parts, self.scale)


@dataclass(frozen=True)
class Plan:
    """The vouchers that take part, in the order they burn, for a hold of this cost and card time."""

    cost_micros: int
    card_ms: int
    candidates: tuple[Candidate, ...]
    _known: dict[int, tuple[list[_Poured], list["_Room"]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @cached_property
    def scale(self) -> int:
        """How many parts a micro-yuan is counted in, so that every amount is a whole number of them."""
        return _scale(self.candidates, self.card_ms)

    @property
    def draws_card_time(self) -> bool:
        """Whether a voucher that takes part gives card time instead of money."""
        return any(candidate.asset != CNY for candidate in self.candidates)

    def shares(self, cost_micros: int, card_ms: int) -> tuple[Share, ...]:
        """What each voucher pays of the first `cost_micros` of this hold, which used `card_ms` of card time."""
        filled, _ = self._filled(cost_micros)
        return tuple(
            Share(
                candidate,
                amount,
                self.scale,
                amount // self.scale,
                _quantity(candidate, amount, self.scale, cost_micros, card_ms),
                bound_by,
            )
            for candidate, (amount, bound_by) in zip(self.candidates, filled, strict=True)
        )

    def tenant_micros(self, cost_micros: int) -> int:
        """What public money leaves of the first `cost_micros` to the tenant, rounded up as a whole."""
        filled, _ = self._filled(cost_micros)
        return cost_micros - sum(amount for amount, _ in filled) // self.scale

    def ceilings_reached(self, cost_micros: int) -> tuple[Ceiling, ...]:
        """The ceilings that let nothing more through."""
        if not any(candidate.ceilings for candidate in self.candidates):
            return ()
        _, rooms = self._filled(cost_micros)
        return tuple(room.ceiling for room in rooms if room.ceiling is not None and room.left == 0)

    def _filled(self, cost_micros: int) -> tuple[list[_Poured], list["_Room"]]:
        """What `_fill` finds, which is asked several times for the few costs that a charge lies between."""
        if cost_micros not in self._known:
            if len(self._known) == _KNOWN_MAX:
                self._known.clear()
            self._known[cost_micros] = _fill(self, cost_micros, self.scale)
        return self._known[cost_micros]


@lru_cache(_STORED_MAX)
def stored_plan(cost_micros: int, card_ms: int, candidates: str) -> Plan:
    """The plan of a hold whose candidates were written as JSON; a running job's is asked for at each of its charges."""
    return Plan(cost_micros, card_ms, tuple(Candidate.from_json(stored) for stored in json.loads(candidates)))


def plan_coverage(cost_micros: int, card_ms: int, candidates: Sequence[Candidate]) -> Plan:
    """The tenant's cheapest plan for a cost.

    Raises:
        TooManyProgrammes: more than ten programmes bind each other.
    """
    ordered = sorted(
        (
            candidate
            for candidate in candidates
            if candidate.limit > 0 and candidate.ratio > 0 and (candidate.asset == CNY or card_ms > 0)
        ),
        key=lambda candidate: (candidate.asset == CNY, *candidate.burn),
    )
    scale = _scale(ordered, card_ms)
    splits = (
        _split(Plan(cost_micros, card_ms, taking_part), ordered, scale)
        for taking_part in _compatible_sets(ordered)
    )
    best = max(splits, key=lambda split: (sum(split), split))
    paying = tuple(candidate for candidate, amount in zip(ordered, best, strict=True) if amount > 0)
    return Plan(cost_micros, card_ms, paying)


def _split(plan: Plan, ordered: Sequence[Candidate], scale: int) -> tuple[int, ...]:
    """What each of all candidates pays by a plan of some of them."""
    filled, _ = _fill(plan, plan.cost_micros, scale)
    amounts = dict(zip(plan.candidates, (amount for amount, _ in filled), strict=True))
    return tuple(amounts.get(candidate, 0) for candidate in ordered)


def _compatible_sets(candidates: Sequence[Candidate]) -> Iterator[tuple[Candidate, ...]]:
    """Every set of programmes that exclude nobody among themselves; unconditional ones always take part.

    Card time, which pays first, may take up a ceiling under which money would have left room for more money elsewhere:
    where there is a ceiling it may be left out as well.
    """
    binding = {candidate.programme for candidate in candidates if candidate.conditional} | {
        other.programme for one, other in product(candidates, repeat=2) if one.excludes(other)
    }
    if any(candidate.ceilings for candidate in candidates):
        binding |= {candidate.programme for candidate in candidates if candidate.asset != CNY}
    if len(binding) > CONDITIONAL_PROGRAMMES_MAX:
        raise TooManyProgrammes(count=len(binding), allowed=CONDITIONAL_PROGRAMMES_MAX)
    for size in range(len(binding) + 1):
        for left_out in combinations(sorted(binding), size):
            taking_part = tuple(candidate for candidate in candidates if candidate.programme not in left_out)
            if not any(one.excludes(other) for one, other in product(taking_part, repeat=2)):
                yield taking_part


@cache
def _ratio(text: str) -> Fraction:
    return Fraction(text)


@dataclass(slots=True)
class _Room:
    """What a nested bound still lets through, whom it binds, and the words for it."""

    left: int
    words: str
    level: str = ALL_LEVELS
    programme: str = ""
    ratio: Fraction = Fraction(1)
    ceiling: Ceiling | None = None

    def binds(self, candidate: Candidate) -> bool:
        """Whether what the candidate pays goes through here."""
        if self.programme:
            return candidate.programme == self.programme and candidate.ratio <= self.ratio
        return self.level in {ALL_LEVELS, candidate.level}


def _scale(candidates: Iterable[Candidate], card_ms: int) -> int:
    """A number of parts of a micro-yuan in which every bound that `_fill` meets is whole.

    Ceilings and ratios are of the cost; a limit in card time is of the cost over the card time, and what card time
    leaves is multiplied by ratios once more.
    """
    timed, common = False, 1
    for candidate in candidates:
        timed |= candidate.asset != CNY
        common = lcm(
            common, candidate.ratio.denominator, *(rule.ratio.denominator for rule in candidate.ceilings)
        )
    return common * common * card_ms if timed else common


def _fill(plan: Plan, cost_micros: int, scale: int) -> tuple[list[_Poured], list[_Room]]:
    """Fill the vouchers in order: per voucher the exact amount and what bound it, and the ceilings' rooms.

    Amounts are whole numbers of parts of which a micro-yuan has `scale`.
    """
    cost = cost_micros * scale
    ceilings = _ceilings(plan.candidates, cost)
    filled: list[_Poured] = []
    left = cost
    for timed in (True, False):
        paying = [candidate for candidate in plan.candidates if (candidate.asset != CNY) == timed]
        ratios = _ratios(paying, left)
        for candidate in paying:
            limit = candidate.limit * (cost // plan.card_ms if timed else scale)
            bounds = [*ratios, _Room(limit, "nothing more remains on it"), *ceilings]
            filled.append(_pour(candidate, bounds, [*ratios, *ceilings]))
        left = cost - sum(amount for amount, _ in filled)
    return filled, ceilings


def _pour(candidate: Candidate, bounds: Iterable[_Room], rooms: Iterable[_Room]) -> _Poured:
    """The most that every bound lets through, taken out of every room on its way."""
    tightest = min((room for room in bounds if room.binds(candidate)), key=attrgetter("left"))
    amount, words = max(tightest.left, 0), tightest.words
    for room in rooms:
        if room.binds(candidate):
            room.left -= amount
    return amount, words


def _ceilings(candidates: Iterable[Candidate], cost: int) -> list[_Room]:
    """Per level, and for all of them, the lowest ceiling anybody taking part brings; at most the cost."""
    rooms = {ALL_LEVELS: _Room(cost, "the charge is covered")}
    for candidate in candidates:
        for ceiling in candidate.ceilings:
            left = _part(cost, ceiling.ratio)
            if ceiling.level not in rooms or left < rooms[ceiling.level].left:
                rooms[ceiling.level] = _Room(left, ceiling.clause, ceiling.level, ceiling=ceiling)
    return list(rooms.values())


def _ratios(candidates: Iterable[Candidate], base: int) -> list[_Room]:
    """A programme's vouchers of a ratio and below together pay no more than that ratio of the cost."""
    distinct = {(one.programme, one.ratio.as_integer_ratio()): one for one in candidates}
    return [
        _Room(_part(base, one.ratio), one.clause, programme=one.programme, ratio=one.ratio)
        for one in distinct.values()
    ]


def _part(whole: int, ratio: Fraction) -> int:
    """A ratio of a whole, of which `_scale` has seen to it that it is whole as well."""
    return whole * ratio.numerator // ratio.denominator


def _quantity(candidate: Candidate, amount: int, scale: int, cost_micros: int, card_ms: int) -> int:
    """What leaves the voucher: the money, or the same part of the card time used so far."""
    if candidate.asset == CNY:
        return amount // scale
    return min(amount * card_ms // (cost_micros * scale), candidate.limit) if cost_micros else 0
