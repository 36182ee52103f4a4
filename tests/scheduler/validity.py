"""An independent judge of event logs: own code, nothing from the policy, so that no bug can excuse itself.

It reads plain facts (nodes, queues, jobs, allocations with times) and returns sentences about what was broken.
"""

from collections import defaultdict
from dataclasses import dataclass, field

WHOLE = 1000


@dataclass(frozen=True)
class Machine:
    name: str
    model: str
    devices: int
    cpu_milli: int
    memory_mib: int
    lost: tuple[tuple[int, int], ...] = ()
    """Spans in which it is gone."""


@dataclass(frozen=True)
class Bound:
    queue: str
    parent: str | None
    most_milli: dict[str, int] = field(default_factory=dict)
    """Guarantee and borrow limit together, by model; a model that is not named has no bound."""
    running_max: int | None = None


@dataclass(frozen=True)
class Asked:
    job: str
    queue: str
    submitted_ms: int
    limit_ms: int
    models: tuple[str, ...]
    nodes: int
    devices: int
    slots: int
    cpu_milli: int
    memory_mib: int
    tail: int = 0
    depends_on: tuple[str, ...] = ()
    not_before_ms: int = 0


@dataclass(frozen=True)
class Piece:
    node: str
    device: int
    lo: int
    hi: int


@dataclass(frozen=True)
class Attempt:
    job: str
    attempt: int
    start_ms: int
    end_ms: int
    reason: str
    nodes: tuple[str, ...]
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Log:
    machines: tuple[Machine, ...]
    bounds: tuple[Bound, ...]
    asked: tuple[Asked, ...]
    attempts: tuple[Attempt, ...]
    min_run_ms: int = 0
    grace_ms: int = 0


def faults(log: Log) -> list[str]:
    """Every rule the log breaks, as sentences; empty for a valid one."""
    asked = {one.job: one for one in log.asked}
    found: list[str] = []
    found += _slots(log)
    found += _hosts(log, asked)
    found += _gangs(log, asked)
    found += _lives(log, asked)
    found += _quotas(log, asked)
    found += _victims(log)
    found += _idle(log, asked)
    return found


def _slots(log: Log) -> list[str]:
    by_device: dict[tuple[str, int], list[tuple[int, int, int, int, str]]] = defaultdict(list)
    machines = {machine.name: machine for machine in log.machines}
    found = []
    for attempt in log.attempts:
        for piece in attempt.pieces:
            if not 0 <= piece.device < machines[piece.node].devices:
                found.append(f"{attempt.job} holds device {piece.device} that {piece.node} does not have")
            if not 0 <= piece.lo < piece.hi <= WHOLE:
                found.append(f"{attempt.job} holds the impossible range [{piece.lo}, {piece.hi})")
            row = (attempt.start_ms, attempt.end_ms, piece.lo, piece.hi, attempt.job)
            by_device[piece.node, piece.device].append(row)
        found += [
            f"{attempt.job} runs on {name} while it is lost"
            for name in attempt.nodes
            for gone, back in machines[name].lost
            if attempt.start_ms < back and gone < attempt.end_ms
        ]
    for device, rows in by_device.items():
        rows.sort()
        live: list[tuple[int, int, int, int, str]] = []
        for row in rows:
            live = [other for other in live if other[1] > row[0]]
            found += [
                f"{row[4]} and {other[4]} share slots of {device}"
                for other in live
                if other[2] < row[3] and row[2] < other[3]
            ]
            live.append(row)
    return found


def _hosts(log: Log, asked: dict[str, Asked]) -> list[str]:
    """Processors and memory of every machine at every moment; the model of every device."""
    found = []
    changes: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
    machines = {machine.name: machine for machine in log.machines}
    for attempt in log.attempts:
        job = asked[attempt.job]
        models = {machines[name].model for name in attempt.nodes}
        if len(models) > 1:
            found.append(f"{attempt.job} runs on two models at once")
        if job.models and not models <= set(job.models):
            found.append(f"{attempt.job} runs on {models}, which it did not ask for")
        for name in attempt.nodes:
            changes[name].append((attempt.start_ms, job.cpu_milli, job.memory_mib))
            changes[name].append((attempt.end_ms, -job.cpu_milli, -job.memory_mib))
    for name, rows in changes.items():
        cpu = memory = 0
        for _, more_cpu, more_memory in sorted(rows):
            cpu += more_cpu
            memory += more_memory
            if cpu > machines[name].cpu_milli or memory > machines[name].memory_mib:
                found.append(f"{name} gives more processors or memory than it has")
                break
    return found


def _gangs(log: Log, asked: dict[str, Asked]) -> list[str]:
    """All of a gang or nothing: each node its part, of whole devices or fractions as asked."""
    found = []
    for attempt in log.attempts:
        job = asked[attempt.job]
        parts: dict[str, list[Piece]] = {name: [] for name in attempt.nodes}
        for piece in attempt.pieces:
            parts[piece.node].append(piece)
        if len(set(attempt.nodes)) != job.nodes + bool(job.tail):
            found.append(f"{attempt.job} got {len(parts)} nodes of {job.nodes}")
            continue
        sizes = sorted(len({piece.device for piece in pieces}) for pieces in parts.values())
        expected = sorted([job.devices] * job.nodes + ([job.tail] if job.tail else []))
        if sizes != expected:
            found.append(f"{attempt.job} got devices {sizes} instead of {expected}")
        if any(piece.hi - piece.lo != job.slots for piece in attempt.pieces):
            found.append(f"{attempt.job} got other fractions than it asked for")
    return found


def _lives(log: Log, asked: dict[str, Asked]) -> list[str]:
    """One live attempt per job, none before its time, none beyond its limit, none after it succeeded."""
    found = []
    ended_well: dict[str, int] = {}
    by_job: dict[str, list[Attempt]] = defaultdict(list)
    for attempt in log.attempts:
        by_job[attempt.job].append(attempt)
        if attempt.reason == "finished":
            ended_well[attempt.job] = attempt.end_ms
    for name, attempts in by_job.items():
        attempts.sort(key=lambda one: one.start_ms)
        for number, attempt in enumerate(attempts):
            before = attempts[number - 1] if number else None
            found += _life(asked[name], attempt, before, number + 1, ended_well)
    return found


def _life(
    job: Asked, attempt: Attempt, before: Attempt | None, number: int, ended_well: dict[str, int]
) -> list[str]:
    late = [
        needed for needed in job.depends_on if ended_well.get(needed, attempt.start_ms + 1) > attempt.start_ms
    ]
    broken = {
        "starts before it may": attempt.start_ms < max(job.submitted_ms, job.not_before_ms),
        "runs beyond its limit": attempt.end_ms - attempt.start_ms > job.limit_ms,
        "counts its attempts wrongly": attempt.attempt != number,
        "has two live attempts": before is not None and before.end_ms > attempt.start_ms,
        "runs again after it ended": before is not None and before.reason in {"finished", "timed_out"},
        f"starts before {late} succeeded": bool(late),
    }
    return [f"{job.job} {what}" for what, is_so in broken.items() if is_so]


def _quotas(log: Log, asked: dict[str, Asked]) -> list[str]:
    """At every level of the tree, at every moment."""
    parents = {bound.queue: bound.parent for bound in log.bounds}
    models = {machine.name: machine.model for machine in log.machines}
    use: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    count: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for attempt in log.attempts:
        milli = sum(piece.hi - piece.lo for piece in attempt.pieces)
        queue: str | None = asked[attempt.job].queue
        while queue is not None:
            key = (queue, models[attempt.nodes[0]])
            use[key] += [(attempt.start_ms, milli), (attempt.end_ms, -milli)]
            count[queue] += [(attempt.start_ms, 1), (attempt.end_ms, -1)]
            queue = parents.get(queue)
    found = []
    for bound in log.bounds:
        for model, most in bound.most_milli.items():
            if _peak(use[bound.queue, model]) > most:
                found.append(f"queue {bound.queue} exceeds its bound of {model}")
        if bound.running_max is not None and _peak(count[bound.queue]) > bound.running_max:
            found.append(f"queue {bound.queue} runs more jobs than its limit")
    return found


def _peak(changes: list[tuple[int, int]]) -> int:
    level = highest = 0
    for _, change in sorted(changes):
        level += change
        highest = max(highest, level)
    return highest


def _victims(log: Log) -> list[str]:
    """Nobody is stopped before its minimum run time."""
    return [
        f"{attempt.job} was preempted before its minimum run time"
        for attempt in log.attempts
        if attempt.reason == "preempted" and attempt.end_ms - attempt.start_ms < log.min_run_ms
    ]


def _idle(log: Log, asked: dict[str, Asked]) -> list[str]:
    """Work conservation: a wholly idle cluster without losses never has a job waiting that could run in it."""
    if any(machine.lost for machine in log.machines):
        return []
    edges = sorted((a.start_ms, a.end_ms) for a in log.attempts)
    gaps: list[tuple[int, int]] = []
    until = 0
    for start, end in edges:
        if start > until:
            gaps.append((until, start))
        until = max(until, end)
    first = {}
    for attempt in sorted(log.attempts, key=lambda one: one.start_ms):
        first.setdefault(attempt.job, attempt.start_ms)
    found = []
    for name, start in first.items():
        job = asked[name]
        if job.depends_on:
            continue
        since = max(job.submitted_ms, job.not_before_ms)
        found += [
            f"{name} waits while everything is idle"
            for begin, end in gaps
            if max(begin, since) < min(end, start)
        ]
    return found
