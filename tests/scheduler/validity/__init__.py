"""An independent judge of event logs: own code, nothing from the policy, so that no bug can excuse itself.

It reads plain facts (machines, queues, jobs, allocations, orders to stop, promises) and returns sentences about what
was broken; an empty list is a valid log.
"""

from tests.scheduler.validity.evictions import circles, entitled, reclaims, victims
from tests.scheduler.validity.facts import (
    Asked,
    Attempt,
    Bound,
    Kept,
    Log,
    Machine,
    Nominated,
    Piece,
    Promised,
    Stop,
)
from tests.scheduler.validity.idling import idle
from tests.scheduler.validity.lives import lives
from tests.scheduler.validity.machines import gangs, hosts, reservations, slots, switches, tails
from tests.scheduler.validity.quotas import lending, quotas
from tests.scheduler.validity.waiting import patience, promises

__all__ = [
    "Asked",
    "Attempt",
    "Bound",
    "Kept",
    "Log",
    "Machine",
    "Nominated",
    "Piece",
    "Promised",
    "Stop",
    "differences",
    "faults",
    "reclaims",
]


def faults(log: Log) -> list[str]:
    """Every rule the log breaks, as sentences; empty for a valid one."""
    asked = {one.job: one for one in log.asked}
    found: list[str] = []
    for judge in (slots, reservations, victims):
        found += judge(log)
    for rule in (
        hosts,
        gangs,
        switches,
        tails,
        lives,
        quotas,
        lending,
        entitled,
        circles,
        promises,
        patience,
        idle,
    ):
        found += rule(log, asked)
    return found


def differences(first: Log, second: Log) -> list[str]:
    """Determinism: where two logs of the same input differ."""
    found = [
        f"{left.job} differs: {left} and {right}"
        for left, right in zip(first.attempts, second.attempts, strict=False)
        if left != right
    ]
    if len(first.attempts) != len(second.attempts):
        found.append(f"{len(first.attempts)} attempts and {len(second.attempts)}")
    return found + ["the logs differ in their orders or promises"] * (first != second and not found)
