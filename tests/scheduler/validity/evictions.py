"""Rules of evictions: only the entitled, past the minimum, in no circle; and a guarantee is had back in time."""

from collections import defaultdict

from tests.scheduler.validity.facts import Asked, Attempt, Log, Stop, Tree
from tests.scheduler.validity.quotas import kept


def victims(log: Log) -> list[str]:
    """Nobody is told to stop before its minimum run time, and nobody goes on after its grace."""
    runs = {(one.job, one.attempt): one for one in log.attempts}
    found = [
        f"{one.job} was preempted before its minimum run time"
        for one in log.attempts
        if one.reason == "preempted" and one.end_ms - one.start_ms < log.min_run_ms
    ]
    for stop in log.stops:
        run = runs[stop.victim, stop.attempt]
        if stop.at_ms - run.start_ms < log.min_run_ms:
            found.append(f"{stop.victim} was told to stop before its minimum run time")
        if run.end_ms > stop.at_ms + log.grace_ms:
            found.append(f"{stop.victim} runs on after its grace")
    return found


def entitled(log: Log, asked: dict[str, Asked]) -> list[str]:
    """What may not be preempted only gives way to another queue's claim, and only from beyond a guarantee."""
    tree, model_of = Tree(log), {machine.name: machine.model for machine in log.machines}
    runs = {(one.job, one.attempt): one for one in log.attempts}
    stopped = {(stop.victim, stop.attempt, stop.at_ms) for stop in log.stops}
    found = []
    for stop in log.stops:
        run, loser = runs[stop.victim, stop.attempt], asked[stop.victim]
        if loser.preemptible:
            continue
        model = model_of[run.nodes[0]]
        ours, theirs = tree.path(asked[stop.claimant].queue), tree.path(loser.queue)
        apart = [queue for queue in theirs if queue not in ours]
        if not apart:
            found.append(f"{stop.victim} may not be preempted, yet stops for {stop.claimant} of its own queue")
        use: dict[str, int] = defaultdict(int)
        for one in log.attempts:
            live = one.start_ms <= stop.at_ms and (
                stop.at_ms < one.end_ms or (one.job, one.attempt, stop.at_ms) in stopped
            )
            if live and model_of[one.nodes[0]] == model:
                use[asked[one.job].queue] += one.milli
        found += [
            f"{stop.victim} is stopped though {queue} is within its guarantee"
            for queue in apart
            if kept(tree, queue, model, use) <= tree.bounds[queue].guaranteed_milli.get(model, 0)
        ]
    return found


def circles(log: Log, asked: dict[str, Asked]) -> list[str]:
    """Between two things that happen from outside, nobody makes way, however indirectly, for its own victim."""
    outside = sorted(
        {one.submitted_ms for one in asked.values()}
        | {one.not_before_ms for one in asked.values()}
        | {one.end_ms for one in log.attempts if one.reason != "preempted"}
        | {edge for machine in log.machines for span in machine.lost for edge in span}
    )
    spans: dict[int, list[Stop]] = {}
    for stop in log.stops:
        spans.setdefault(sum(at <= stop.at_ms for at in outside), []).append(stop)
    return [
        f"{stop.victim} makes way for its own victim"
        for stops in spans.values()
        for stop in stops
        if _leads_back(stop.claimant, stop.victim, stops)
    ]


def _leads_back(start: str, goal: str, stops: list[Stop]) -> bool:
    """Whether `start` was itself stopped for somebody, who was stopped for somebody, … for `goal`."""
    edge, seen = {start}, {start}
    while edge:
        if goal in edge:
            return True
        edge = {stop.claimant for stop in stops if stop.victim in edge} - seen
        seen |= edge
    return False


def reclaims(log: Log, asked: dict[str, Asked]) -> list[str]:
    """A claim inside its guarantee starts within a cycle, the minimum run time and the grace.

    Judged are jobs of queues which, with all they run and have waiting until then, stay inside the guarantee; the
    caller sees to it that no fragmentation, reservation or loss of a node can be in the way.
    """
    model_of = {machine.name: machine.model for machine in log.machines}
    models = set(model_of.values())
    patience_ms = log.min_run_ms + log.grace_ms
    first: dict[str, Attempt] = {}
    last: dict[str, int] = {}
    for attempt in sorted(log.attempts, key=lambda one: one.start_ms):
        first.setdefault(attempt.job, attempt)
        last[attempt.job] = attempt.end_ms
    found = []
    for bound in log.bounds:
        mine = [one for one in asked.values() if one.queue == bound.queue and one.job not in log.impossible]
        for job in mine:
            due_ms = _ready_ms(job) + patience_ms
            present = [
                one.milli
                for one in mine
                if one.submitted_ms <= due_ms and last.get(one.job, due_ms + 1) > _ready_ms(job)
            ]
            if len(models) > 1 or sum(present) > bound.guaranteed_milli.get(next(iter(models)), 0):
                continue
            if job.job not in first or first[job.job].start_ms > due_ms + 1:
                found.append(f"{job.job} is inside the guarantee of {bound.queue} and waits beyond {due_ms}")
    return found


def _ready_ms(job: Asked) -> int:
    return max(job.submitted_ms, job.not_before_ms)
