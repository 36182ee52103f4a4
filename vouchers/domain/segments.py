"""A hold's segment: how its cost divides between vouchers, the tenant's own sources and rounding.

Every part is a non-decreasing function of the cumulative cost and ends at what was set aside, so each charge is
the difference of two points and no charge within the segment can meet an empty source.
"""

from collections.abc import Sequence
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


def fill_in_order(amount: int, limits: Sequence[int]) -> tuple[tuple[int, ...], int]:
    """Take an amount from sources in order; per source what it gives, and what is missing in the end."""
    taken = []
    for limit in limits:
        taken.append(min(limit, amount))
        amount -= taken[-1]
    return tuple(taken), amount


def _reimbursed(shares: Sequence[Share]) -> int:
    return sum(share.amount_micros for share in shares if share.candidate.direction == BUYER_REIMBURSED)
