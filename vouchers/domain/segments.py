"""A hold's segment: how its cost divides between vouchers, the tenant's own sources and rounding.

Every part is a non-decreasing function of the cumulative cost and ends at what was set aside, so each charge is
the difference of two points and no charge within the segment can meet an empty source. What leaves a card-time voucher
grows with the time as well, so a point lies within the segment's time where one takes part.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from vouchers.domain.coverage import BUYER_REIMBURSED, Plan, Share


@dataclass(frozen=True)
class Parts:
    """How the first so many micro-yuan of a segment are paid.

    `own` is per source of the tenant, in their order. A buyer who is reimbursed pays the voucher's share itself
    first, so such shares are in `own` too. `rounding` is what the centre bears, some millionths of a yuan.
    """

    shares: tuple[Share, ...]
    own: tuple[int, ...]
    rounding: int


@dataclass(frozen=True)
class Segment:
    """A plan and what each of the tenant's own sources set aside for it, in order."""

    plan: Plan
    own_limits: tuple[int, ...] = ()

    def own_micros(self, cost_micros: int) -> int:
        """What the tenant itself has to pay of the first so many micro-yuan, reimbursements not deducted."""
        shares = self.plan.shares(cost_micros, 0)
        return self.plan.tenant_micros(cost_micros) + _reimbursed(shares)

    def parts(self, cost_micros: int, card_ms: int) -> Parts:
        """How the first so many micro-yuan, which used so much card time, are paid."""
        shares = self.plan.shares(cost_micros, card_ms)
        tenant = self.plan.tenant_micros(cost_micros)
        rounding = cost_micros - tenant - sum(share.amount_micros for share in shares)
        own, _ = fill_in_order(tenant + _reimbursed(shares), self.own_limits)
        return Parts(shares, own, rounding)


@dataclass(frozen=True)
class Stretch:
    """The part of a segment that one charge took: from where to where of its cumulative cost and card time."""

    from_micros: int
    until_micros: int
    from_ms: int
    until_ms: int

    def end_without(self, micros: int) -> tuple[int, int]:
        """Cost and card time at which the stretch would end if so many micro-yuan of it had not been used."""
        end = self.until_micros - micros
        cost, time = self.until_micros - self.from_micros, self.until_ms - self.from_ms
        return end, self.from_ms + time * (end - self.from_micros) // cost


@dataclass(frozen=True)
class Unwound:
    """Two points of a segment, in cumulative cost and card time: what lies between them goes back."""

    before: tuple[int, int]
    after: tuple[int, int]


def unwind(
    stretches: Mapping[int, Stretch], restored_micros: int, until_micros: int
) -> Iterator[tuple[int, Unwound]]:
    """Per segment, newest first, what of a charge goes back when `until_micros` of it are given back in all.

    `restored_micros` were given back before, from its newest end as well.
    """
    for segment in sorted(stretches, reverse=True):
        stretch = stretches[segment]
        cost = stretch.until_micros - stretch.from_micros
        before, after = min(restored_micros, cost), min(until_micros, cost)
        restored_micros, until_micros = restored_micros - before, until_micros - after
        if after > before:
            yield segment, Unwound(stretch.end_without(before), stretch.end_without(after))


def fill_in_order(amount: int, limits: Sequence[int]) -> tuple[tuple[int, ...], int]:
    """Take an amount from sources in order; per source what it gives, and what is missing in the end."""
    taken = []
    for limit in limits:
        taken.append(min(limit, amount))
        amount -= taken[-1]
    return tuple(taken), amount


def _reimbursed(shares: Sequence[Share]) -> int:
    return sum(share.amount_micros for share in shares if share.candidate.direction == BUYER_REIMBURSED)
