"""Work conservation: after no cycle a job waits that fits whole on machines nobody else is promised while it would run.

The log is played once: a start or an end touches the machines it is on and nothing else, and what fits is kept per kind
of job. Of one kind the job with the shortest limit is barred from the fewest machines, so if it does not fit, none does
but those something is kept for; they are asked one by one.
"""

from bisect import insort
from collections import defaultdict
from collections.abc import Iterator
from heapq import heapify, heappop, heappush

from tests.scheduler.validity.facts import WHOLE, Asked, Attempt, Log, Machine, Promised, Tree
from tests.scheduler.validity.quotas import kept
from tests.scheduler.validity.waiting import bounded

_END, _START, _NO_TIME = -1, 1, 2
"""Of an attempt: what it takes comes back, is gone, or was taken for no time at all."""

Need = tuple[tuple[str, ...], int, int, int, int, int, int, int]


def idle(log: Log, asked: dict[str, Asked]) -> list[str]:
    """After no cycle a job waits that fits whole on machines nobody else is promised while it would run."""
    if not log.backfills:
        return []
    tree = Tree(log)
    play = _Play(log, asked, Usage(log, asked, tree))
    ended_well = {one.job: one.end_ms for one in log.attempts if one.reason == "finished"}
    for job in asked.values():
        awaited = [ended_well.get(needed) for needed in job.depends_on]
        if not (job.same_switch or job.job in log.impossible or None in awaited):
            play.follow(job, max((one for one in awaited if one is not None), default=0))
    promised: dict[int, list[Promised]] = defaultdict(list)
    cleared: dict[int, set[str]] = defaultdict(set)
    for promise in log.promises:
        promised[promise.at_ms].append(promise)
    for one in log.nominations:
        cleared[one.at_ms] |= one.nodes
    found: list[str] = []
    for at_ms in log.cycles_ms:
        play.until(at_ms)
        late = play.fitting(at_ms, promised.get(at_ms, []), cleared.get(at_ms, set()))
        for job, models in late:
            free = not bounded(tree, job)  # what a claim counts on is kept from who is bounded
            if free or (at_ms not in cleared and any(play.usage.allows(job, model, at_ms) for model in models)):
                found.append(f"{job.job} waits at {at_ms} though it fits")
    return found


class Usage:
    """What every queue uses, and whether bounds, limits and what is not lent leave room for one job more."""

    def __init__(self, log: Log, asked: dict[str, Asked], tree: Tree) -> None:
        self._log, self._asked, self._tree = log, asked, tree
        self._use: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        self._running: dict[str, int] = defaultdict(int)
        self._by_user: dict[tuple[str, str], int] = defaultdict(int)
        self._of_array: dict[str, int] = defaultdict(int)
        self._model_of = {machine.name: machine.model for machine in log.machines}

    def change(self, attempt: Attempt, sign: int) -> None:
        """An attempt begins (1) or ends (-1)."""
        job = self._asked[attempt.job]
        self._use[self._model_of[attempt.nodes[0]]][job.queue] += sign * attempt.milli
        self._of_array[job.array] += sign
        for queue in self._tree.path(job.queue):
            self._running[queue] += sign
            self._by_user[queue, job.user] += sign

    def allows(self, job: Asked, model: str, at_ms: int) -> bool:
        """Whether nothing but room could keep the job from this model."""
        tree = self._tree
        if job.array_max and self._of_array[job.array] >= job.array_max:
            return False
        after = self._use[model] | {job.queue: self._use[model].get(job.queue, 0) + job.milli}
        use: dict[str, int] = defaultdict(int, after)
        for queue in tree.path(job.queue):
            bound = tree.bounds[queue]
            if bound.running_max is not None and self._running[queue] >= bound.running_max:
                return False
            if bound.user_running_max is not None and self._by_user[queue, job.user] >= bound.user_running_max:
                return False
            below = use[queue] + sum(kept(tree, child, model, use) for child in tree.children.get(queue, ()))
            if not job.preemptible and below > bound.most_milli.get(model, below):
                return False
        there = sum(m.devices for m in self._log.machines if m.model == model and m.there(at_ms)) * WHOLE
        return sum(kept(tree, queue, model, use) for queue in tree.children[None]) <= there


def need_of(job: Asked) -> Need:
    """Everything about a job that decides where it fits."""
    parts = (job.nodes, job.devices, job.slots, job.cpu_milli, job.memory_mib, job.tail, job.pflops_milli)
    return (job.models, *parts)


class _Room:
    """What is free on one machine."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.cpu, self.memory = machine.cpu_milli, machine.memory_mib
        self.jobs = 0
        self.taken: dict[int, list[tuple[int, int]]] = defaultdict(list)
        self.holes = [WHOLE] * machine.devices
        """The longest free range of each device."""

    def change(self, attempt: Attempt, job: Asked, sign: int) -> None:
        """Its part of the attempt begins (1) or ends (-1)."""
        self.jobs += sign
        self.cpu -= sign * job.cpu_milli
        self.memory -= sign * job.memory_mib
        for piece in attempt.pieces:
            if piece.node == self.machine.name and piece.device < len(self.holes):
                taken = self.taken[piece.device]
                (taken.append if sign > 0 else taken.remove)((piece.lo, piece.hi))
                self.holes[piece.device] = _hole(taken)

    def holds(self, job: Asked, at_ms: int) -> bool:
        """Whether one node's part of the job fits beside what runs there."""
        machine = self.machine
        if not machine.there(at_ms) or (job.models and machine.model not in job.models):
            return False
        if self.cpu < job.cpu_milli or self.memory < job.memory_mib:
            return False
        if machine.pflops_milli < job.pflops_milli:
            return False
        return sum(hole >= job.slots for hole in self.holes) >= job.devices


class _Kind:
    """Jobs of one need: those that wait, by limit, and the machines that hold a part of one."""

    def __init__(self, example: Asked, machines: list[str]) -> None:
        self.example = example
        self.waiting: list[tuple[int, str]] = []
        self.stale = dict.fromkeys(machines)
        self.rooms: dict[str, set[str]] = defaultdict(set)
        """By model, the machines that hold one node's part."""
        self.empty: dict[str, set[str]] = defaultdict(set)
        """Those of them on which nothing runs and which hold the tail."""

    def refresh(self, rooms: dict[str, _Room], at_ms: int) -> None:
        """Look again at the machines something happened on."""
        for name in self.stale:
            room = rooms[name]
            model = room.machine.model
            holds = room.holds(self.example, at_ms)
            unused = holds and not room.jobs and room.machine.devices >= self.example.tail
            (self.rooms[model].add if holds else self.rooms[model].discard)(name)
            (self.empty[model].add if unused else self.empty[model].discard)(name)
        self.stale.clear()

    def fits(self, barred: set[str]) -> list[str]:
        """The models on whose machines that are not barred the whole gang fits."""
        needed = self.example.nodes + bool(self.example.tail)
        return [
            model
            for model, names in self.rooms.items()
            if len(names) >= needed
            and len(names) - len(names & barred) >= needed
            and (not self.example.tail or bool(self.empty[model] - barred))
        ]


class _Play:
    """The log, played up to a time."""

    def __init__(self, log: Log, asked: dict[str, Asked], usage: Usage) -> None:
        self._log, self._asked, self.usage = log, asked, usage
        self._rooms = {machine.name: _Room(machine) for machine in log.machines}
        self._kinds: dict[Need, _Kind] = {}
        self._followed: set[str] = set()
        self._ready: set[str] = set()
        self._live: dict[str, int] = defaultdict(int)
        self._waiting: set[str] = set()
        self._kept_for = {job for span in log.kept for job in span.for_jobs}
        self._events: list[tuple[int, int, int]] = []
        """When, which of the three, and which attempt."""
        for number, one in enumerate(log.attempts):
            if one.start_ms < one.end_ms:
                self._events += [(one.start_ms, _START, number), (one.end_ms, _END, number)]
            else:
                self._events.append((one.end_ms, _NO_TIME, number))
        heapify(self._events)
        self._edges = sorted(
            (edge, machine.name) for machine in log.machines for span in machine.lost for edge in span
        )
        self._edges.reverse()
        self._arrivals: list[tuple[int, str]] = []

    def follow(self, job: Asked, from_ms: int) -> None:
        """Watch whether the job waits in vain from then on, or from its arrival."""
        self._followed.add(job.job)
        heappush(self._arrivals, (max(job.submitted_ms, job.not_before_ms, from_ms), job.job))
        if need_of(job) not in self._kinds:
            self._kinds[need_of(job)] = _Kind(job, list(self._rooms))

    def until(self, at_ms: int) -> None:
        """Everything up to and including this time."""
        touched: dict[str, None] = {}
        while self._events and self._events[0][0] <= at_ms:
            _, sign, number = heappop(self._events)
            attempt = self._log.attempts[number]
            touched[attempt.job] = None
            self._happens(attempt, sign)
        while self._arrivals and self._arrivals[0][0] <= at_ms:
            job = heappop(self._arrivals)[1]
            touched[job] = None
            self._ready.add(job)
        while self._edges and self._edges[-1][0] <= at_ms:
            self._spoil((self._edges.pop()[1],))
        for job in touched:
            self._settle(job)

    def _happens(self, attempt: Attempt, sign: int) -> None:
        if sign != _NO_TIME:
            for name in dict.fromkeys(attempt.nodes):
                self._rooms[name].change(attempt, self._asked[attempt.job], sign)
            self.usage.change(attempt, sign)
            self._spoil(attempt.nodes)
            self._live[attempt.job] += sign
        if sign != _START and attempt.reason in {"finished", "timed_out"}:
            self._followed.discard(attempt.job)

    def _spoil(self, names: tuple[str, ...]) -> None:
        for kind in self._kinds.values():
            kind.stale.update(dict.fromkeys(names))

    def _settle(self, job: str) -> None:
        """Whether it waits is another question now."""
        waits = job in self._followed and job in self._ready and not self._live[job]
        if waits == (job in self._waiting):
            return
        asked = self._asked[job]
        line = self._kinds[need_of(asked)].waiting
        if waits:
            self._waiting.add(job)
            insort(line, (asked.limit_ms, job))
        else:
            self._waiting.remove(job)
            line.remove((asked.limit_ms, job))

    def fitting(
        self, at_ms: int, promised: list[Promised], cleared: set[str]
    ) -> Iterator[tuple[Asked, list[str]]]:
        """Waiting jobs that fit beside what is promised, reserved and being cleared, and on which models."""
        special = {promise.job for promise in promised} | self._kept_for
        for kind in self._kinds.values():
            if not kind.waiting:
                continue
            kind.refresh(self._rooms, at_ms)
            if not kind.fits(set()):
                continue
            ordinary = True
            for _, name in kind.waiting:
                job = self._asked[name]
                if name not in special and not ordinary:
                    continue
                models = kind.fits(self._barred(job, at_ms, promised) | cleared)
                if models:
                    yield job, models
                elif name not in special:
                    ordinary = False  # whoever is longer is barred from at least as many machines

    def _barred(self, job: Asked, at_ms: int, promised: list[Promised]) -> set[str]:
        end_ms = at_ms + job.limit_ms
        barred: set[str] = set()
        for promise in promised:
            if promise.job != job.job and promise.from_ms < end_ms:
                barred |= promise.nodes
        for span in self._log.kept:
            if job.job not in span.for_jobs and span.from_ms < end_ms and at_ms < span.to_ms:
                barred |= set(span.nodes)
        return barred


def _hole(taken: list[tuple[int, int]]) -> int:
    """The longest free range of a device."""
    longest = start = 0
    for lo, hi in sorted([*taken, (WHOLE, WHOLE)]):
        longest = max(longest, lo - start)
        start = hi
    return longest
