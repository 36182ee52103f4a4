"""Rules of waiting: promises hold, nobody waits past its turn and the limits ahead, and nothing idles for nothing."""

from collections import defaultdict
from itertools import pairwise

from tests.scheduler.validity.facts import WHOLE, Asked, Attempt, Log, Machine, Promised, Tree
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
        if held and late and not _bounded(tree, asked[job]) and not _excused(log, asked, last, last.from_ms):
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


def _bounded(tree: Tree, job: Asked) -> bool:
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
    if any(_bounded(tree, job) or job.depends_on for job in asked.values()) or any(
        m.lost for m in log.machines
    ):
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


def idle(log: Log, asked: dict[str, Asked]) -> list[str]:
    """After no cycle a job waits that fits whole on machines nobody else is promised while it would run."""
    if not log.backfills:
        return []
    tree = Tree(log)
    free_jobs = [
        job
        for job in asked.values()
        if not _bounded(tree, job)
        and not job.depends_on
        and not job.same_switch
        and job.job not in log.impossible
    ]
    promised: dict[int, list[Promised]] = defaultdict(list)
    cleared: dict[int, set[str]] = defaultdict(set)
    for promise in log.promises:
        promised[promise.at_ms].append(promise)
    for one in log.nominations:
        cleared[one.at_ms] |= one.nodes
    by_job: dict[str, list[Attempt]] = defaultdict(list)
    for attempt in log.attempts:
        by_job[attempt.job].append(attempt)
    found = []
    for at_ms in log.cycles_ms:
        live = [one for one in log.attempts if one.start_ms <= at_ms < one.end_ms]
        found += [
            f"{job.job} waits at {at_ms} though it fits"
            for job in free_jobs
            if _waits(job, by_job[job.job], at_ms)
            and _fits(log, job, live, at_ms, promised[at_ms], cleared[at_ms], asked)
        ]
    return found


def _waits(job: Asked, attempts: list[Attempt], at_ms: int) -> bool:
    if at_ms < max(job.submitted_ms, job.not_before_ms):
        return False
    if any(one.start_ms <= at_ms < one.end_ms for one in attempts):
        return False
    return not any(one.end_ms <= at_ms and one.reason in {"finished", "timed_out"} for one in attempts)


def _fits(
    log: Log,
    job: Asked,
    live: list[Attempt],
    at_ms: int,
    promised: list[Promised],
    cleared: set[str],
    asked: dict[str, Asked],
) -> bool:
    end_ms = at_ms + job.limit_ms
    barred = set(cleared)
    for promise in promised:
        if promise.job != job.job and promise.from_ms < end_ms:
            barred |= promise.nodes
    for span in log.kept:
        if job.job not in span.for_jobs and span.from_ms < end_ms and at_ms < span.to_ms:
            barred |= set(span.nodes)
    rooms: dict[str, int] = defaultdict(int)
    empty: dict[str, int] = defaultdict(int)
    for machine in log.machines:
        if (
            machine.name in barred
            or not machine.there(at_ms)
            or (job.models and machine.model not in job.models)
        ):
            continue
        room = _room(machine, job, live, asked)
        rooms[machine.model] += room
        unused = not any(machine.name in one.nodes for one in live)
        empty[machine.model] += bool(room and unused and machine.devices >= job.tail)
    return any(
        count >= job.nodes + bool(job.tail) and (not job.tail or empty[model] > 0)
        for model, count in rooms.items()
    )


def _room(machine: Machine, job: Asked, live: list[Attempt], asked: dict[str, Asked]) -> int:
    """1 if one node's part of the job fits beside what runs there, else 0."""
    here = [one for one in live if machine.name in one.nodes]
    cpu = machine.cpu_milli - sum(asked[one.job].cpu_milli for one in here)
    memory = machine.memory_mib - sum(asked[one.job].memory_mib for one in here)
    if cpu < job.cpu_milli or memory < job.memory_mib:
        return 0
    taken: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for one in here:
        for piece in one.pieces:
            if piece.node == machine.name:
                taken[piece.device].append((piece.lo, piece.hi))
    fitting = sum(_hole(taken[device]) >= job.slots for device in range(machine.devices))
    return int(fitting >= job.devices)


def _hole(taken: list[tuple[int, int]]) -> int:
    """The longest free range of a device."""
    longest = start = 0
    for lo, hi in sorted([*taken, (WHOLE, WHOLE)]):
        longest = max(longest, lo - start)
        start = hi
    return longest
