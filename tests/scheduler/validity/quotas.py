"""Rules of queues: bounds, limits and unlent guarantees, at every level of the tree and at every moment."""

from collections import defaultdict
from collections.abc import Callable

from tests.scheduler.validity.facts import Asked, Attempt, Log, Tree

Change = tuple[int, int]
"""(time in ms, milli-slots or jobs more)."""


def quotas(log: Log, asked: dict[str, Asked]) -> list[str]:
    """What may not be evicted stays within guarantee and borrow limit; numbers of jobs within their limits."""
    tree = Tree(log)
    found = []
    for bound in log.bounds:
        mine = [one for one in log.attempts if bound.queue in tree.path(asked[one.job].queue)]
        found += [
            f"queue {bound.queue} exceeds its bound of {model} by jobs nobody may evict"
            for model, most in bound.most_milli.items()
            if _peak(_firm(log, mine, asked, model)) > most
        ]
        if bound.running_max is not None and _peak(_count(mine)) > bound.running_max:
            found.append(f"queue {bound.queue} runs more jobs than its limit")
        if bound.user_running_max is not None:
            users = _groups(mine, lambda one: asked[one.job].user)
            found += [
                f"user {user!r} runs more jobs in {bound.queue} than the limit"
                for user, theirs in users.items()
                if _peak(_count(theirs)) > bound.user_running_max
            ]
    arrays = _groups(
        [one for one in log.attempts if asked[one.job].array_max], lambda one: asked[one.job].array
    )
    found += [
        f"array {array!r} runs more jobs than its limit"
        for array, theirs in arrays.items()
        if _peak(_count(theirs)) > asked[theirs[0].job].array_max
    ]
    return found


def _model(log: Log, attempt: Attempt) -> str:
    return next(machine.model for machine in log.machines if machine.name == attempt.nodes[0])


def _firm(log: Log, attempts: list[Attempt], asked: dict[str, Asked], model: str) -> list[Change]:
    return [
        change
        for one in attempts
        if not asked[one.job].preemptible and _model(log, one) == model
        for change in ((one.start_ms, one.milli), (one.end_ms, -one.milli))
    ]


def _count(attempts: list[Attempt]) -> list[Change]:
    return [change for one in attempts for change in ((one.start_ms, 1), (one.end_ms, -1))]


def _groups(attempts: list[Attempt], key: Callable[[Attempt], str]) -> dict[str, list[Attempt]]:
    groups: dict[str, list[Attempt]] = defaultdict(list)
    for attempt in attempts:
        groups[key(attempt)].append(attempt)
    return groups


def _peak(changes: list[tuple[int, int]]) -> int:
    level = highest = 0
    for _, change in sorted(changes):
        level += change
        highest = max(highest, level)
    return highest


def lending(log: Log, asked: dict[str, Asked]) -> list[str]:
    """Whenever something starts, the machines still hold what every queue does not lend, used or not."""
    if not any(bound.unlent_milli for bound in log.bounds):
        return []
    tree = Tree(log)
    found = []
    for model in sorted({machine.model for machine in log.machines}):
        attempts = [one for one in log.attempts if _model(log, one) == model]
        for at_ms in sorted({one.start_ms for one in attempts}):
            use: dict[str, int] = defaultdict(int)
            for one in attempts:
                if one.start_ms <= at_ms < one.end_ms:
                    use[asked[one.job].queue] += one.milli
            there = sum(m.devices for m in log.machines if m.model == model and m.there(at_ms)) * 1000
            if sum(kept(tree, queue, model, use) for queue in tree.children[None]) > there:
                found.append(f"at {at_ms} a start takes {model} that a queue does not lend")
    return found


def kept(tree: Tree, queue: str, model: str, use: dict[str, int]) -> int:
    """What the queue and all below use or do not lend."""
    below = sum(kept(tree, child, model, use) for child in tree.children.get(queue, ()))
    return max(use[queue] + below, tree.bounds[queue].unlent_milli.get(model, 0))
