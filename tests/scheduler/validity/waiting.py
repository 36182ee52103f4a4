"""Rules of waiting: promises hold, and nobody waits past its turn and the limits ahead."""

from collections import defaultdict
from itertools import pairwise

from tests.scheduler.validity.facts import Asked, Attempt, Log, Promised, Tree
from tests.scheduler.validity.quotas import kept


def promises(log: Log, asked: dict[str, Asked]) -> list[str]:
    """A hard promise is never moved back, and is kept: the job starts by then.

    Excused are the loss of a promised node, room made for a claim inside its guarantee, and a promise whose
    holder its own queue's bounds keep back.
    """
    tree = Tree(log)
    starts: dict[str, list[int]] = defaultdict(list)
    for attempt in log.attempts:
        starts[attempt.job].append(attempt.start_ms)
    rows: dict[tuple[str, str], list[Promised]] = defaultdict(list)
    for promise in sorted(log.promises, key=lambda one: one.at_ms):
        if promise.hard:
            rows[promise.job, promise.model].append(promise)
    found = []
    for (job, _), made in rows.items():
        for before, after in pairwise(made):
            same_wait = not any(before.at_ms <= start <= after.at_ms for start in starts[job])
            if same_wait and after.from_ms > before.from_ms and not _excused(log, asked, before, after.at_ms):
                found.append(f"the promise to {job} moves from {before.from_ms} back to {after.from_ms}")
        last = made[-1]
        held = log.cycles_ms and last.at_ms < last.from_ms
        began = min((start for start in starts[job] if start >= last.at_ms), default=None)
        late = began is None or began > last.from_ms
        if held and late and not bounded(tree, asked[job]) and not _excused(log, asked, last, last.from_ms):
            found.append(f"{job} was promised a start by {last.from_ms} and starts at {began}")
    return found


def _excused(log: Log, asked: dict[str, Asked], promise: Promised, until_ms: int) -> bool:
    lost = any(
        promise.at_ms <= gone <= until_ms
        for machine in log.machines
        if machine.name in promise.nodes
        for gone, _ in machine.lost
    )
    return (
        lost
        or any(
            promise.at_ms <= one.at_ms <= until_ms and one.nodes & promise.nodes and one.job != promise.job
            for one in log.nominations
        )
        or any(
            promise.at_ms <= one.start_ms <= until_ms  # cycles of one instant are not told apart in the log
            and promise.nodes & set(one.nodes)
            and _guaranteed(log, asked, one)
            for one in log.attempts
        )
    )


def _guaranteed(log: Log, asked: dict[str, Asked], attempt: Attempt) -> bool:
    """Whether the start was inside a guarantee of its queue or one above, given what had started at earlier instants.

    The order of a cycle's starts is not in the log; the first that breaks a promise needs the guarantee, and what comes
    after it breaks none.
    """
    tree, model_of = Tree(log), {machine.name: machine.model for machine in log.machines}
    model = model_of[attempt.nodes[0]]
    use: dict[str, int] = defaultdict(int)
    for one in log.attempts:
        before = one.start_ms < attempt.start_ms or one is attempt
        if before and attempt.start_ms < one.end_ms and model_of[one.nodes[0]] == model:
            use[asked[one.job].queue] += one.milli
    return any(
        kept(tree, queue, model, use) <= tree.bounds[queue].guaranteed_milli.get(model, 0)
        for queue in tree.path(asked[attempt.job].queue)
    )


def bounded(tree: Tree, job: Asked) -> bool:
    """Whether something other than room may keep the job waiting."""
    rows = [tree.bounds[queue] for queue in tree.path(job.queue)]
    limited = any(row.most_milli or row.running_max or row.user_running_max for row in rows)
    unlent = any(bound.unlent_milli for bound in tree.bounds.values())
    return bool(limited or unlent or job.array_max)


def patience(log: Log, asked: dict[str, Asked]) -> list[str]:
    """Nobody starts later than its turn and after it the limits of everybody that was there before the turn.

    For trees without bounds and guarantees, and jobs of equal priority without dependencies: elsewhere stronger
    claims may come for ever.
    """
    tree = Tree(log)
    if any(bounded(tree, job) or job.depends_on for job in asked.values()) or any(m.lost for m in log.machines):
        return []
    if log.kept or len({job.priority for job in asked.values()}) > 1:
        return []
    found = []
    first: dict[str, int] = {}
    for attempt in log.attempts:
        first[attempt.job] = min(attempt.start_ms, first.get(attempt.job, attempt.start_ms))
    for job in asked.values():
        max_wait_ms = tree.bounds[job.queue].max_wait_ms
        if max_wait_ms is None or job.job in log.impossible:
            continue
        turn_ms = max(job.submitted_ms + max_wait_ms, job.not_before_ms)
        ahead_ms = sum(
            asked[one.job].limit_ms
            for one in log.attempts
            if one.job != job.job and asked[one.job].submitted_ms <= turn_ms and one.end_ms > turn_ms
        )
        if first.get(job.job, turn_ms + ahead_ms + 1) > turn_ms + ahead_ms:
            found.append(f"{job.job} waits past its queue's bound and the limits ahead")
    return found
