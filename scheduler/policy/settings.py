"""Which rules a policy applies; policies are named sets of them."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from scheduler.policy.errors import UnknownPolicy


class Order(StrEnum):
    """What comes first inside a queue."""

    SUBMITTED = "submitted"
    DURATION = "duration"
    SERVICE = "service"
    """Predicted duration × devices."""
    TURN = "turn"
    """The latest turn of `ordering`."""


class Backfill(StrEnum):
    """What may pass a job that does not fit."""

    NONE = "none"
    """Nothing: the first of a queue blocks the rest of it."""
    GREEDY = "greedy"
    """Everything that fits."""
    RESERVED = "reserved"
    """What delays no reservation, judged by enforced time limits."""


class PlacementRule(StrEnum):
    """Which of the fitting nodes a job gets."""

    DEFAULT = "default"
    RANDOM = "random"
    BEST_FIT = "best-fit"
    PACKING = "packing"
    FGD = "fgd"


SCORES_ALWAYS: Final = frozenset({PlacementRule.RANDOM, PlacementRule.PACKING, PlacementRule.FGD})
"""Rules that choose a node also for whole devices without processors and memory; the others take the best fit then."""


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """The rules of one policy.

    Attributes:
        learns: whether predictions are calibrated on finished jobs (else the estimate or the limit is used).
        evicts: whether running jobs may be stopped for stronger claims.
        min_run_ms: no job is evicted before it has run this long.
        grace_ms: between the order to stop and the end of an evicted job.
        evictions_per_cycle_max, evictions_per_job_max: caps.
    """

    name: str = "default"
    order: Order = Order.TURN
    backfill: Backfill = Backfill.RESERVED
    placement: PlacementRule = PlacementRule.DEFAULT
    learns: bool = True
    evicts: bool = True
    min_run_ms: int = 600_000
    grace_ms: int = 30_000
    evictions_per_cycle_max: int = 64
    evictions_per_job_max: int = 3


def _plain(name: str, order: Order, backfill: Backfill) -> PolicySettings:
    return PolicySettings(name, order, backfill, PlacementRule.BEST_FIT, learns=False, evicts=False)


POLICIES: Final = {
    "default": PolicySettings(),
    "fifo": _plain("fifo", Order.SUBMITTED, Backfill.NONE),
    "easy": _plain("easy", Order.SUBMITTED, Backfill.RESERVED),
    "sjf": _plain("sjf", Order.DURATION, Backfill.NONE),
    "srsf": _plain("srsf", Order.SERVICE, Backfill.NONE),
}
"""Policies by the names that `hub simulate --policy` takes."""


def policy_named(name: str) -> PolicySettings:
    """The policy of that name. Raises UnknownPolicy with the names there are."""
    if name not in POLICIES:
        raise UnknownPolicy(field="policy", kind="policy", name=name, known=", ".join(POLICIES))
    return POLICIES[name]


def placement_named(name: str) -> PlacementRule:
    """The placement rule of that name. Raises UnknownPolicy with the names there are."""
    try:
        return PlacementRule(name)
    except ValueError:
        known = ", ".join(rule.value for rule in PlacementRule)
        raise UnknownPolicy(field="placement", kind="placement", name=name, known=known) from None
