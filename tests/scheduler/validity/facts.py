"""The plain facts of an event log, in the judge's own words: whole milliseconds, milli-slots, names."""

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
    switch: tuple[str, ...] = ()
    """Where it lies, from the widest domain to the innermost."""
    pflops_milli: int = 0

    def there(self, at_ms: int) -> bool:
        return not any(gone <= at_ms < back for gone, back in self.lost)


@dataclass(frozen=True)
class Bound:
    """What a queue may use, by model; a model that is not named has no guarantee and no bound."""

    queue: str
    parent: str | None
    most_milli: dict[str, int] = field(default_factory=dict)
    """Guarantee and borrow limit together."""
    running_max: int | None = None
    user_running_max: int | None = None
    guaranteed_milli: dict[str, int] = field(default_factory=dict)
    unlent_milli: dict[str, int] = field(default_factory=dict)
    """The part of the guarantee that nobody else may use though it is idle."""
    max_wait_ms: int | None = None


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
    user: str = ""
    array: str = ""
    array_max: int = 0
    priority: int = 0
    preemptible: bool = False
    same_switch: bool = False
    pflops_milli: int = 0
    """A device must offer at least this."""

    @property
    def milli(self) -> int:
        return self.nodes * self.devices * self.slots + self.tail * WHOLE


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

    @property
    def milli(self) -> int:
        return sum(piece.hi - piece.lo for piece in self.pieces)


@dataclass(frozen=True)
class Kept:
    """Nodes reserved for some jobs, or drained for nobody, over a span."""

    nodes: tuple[str, ...]
    from_ms: int
    to_ms: int
    for_jobs: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Promised:
    """After the cycle at `at_ms` these nodes were promised to a job from `from_ms` on."""

    at_ms: int
    job: str
    model: str
    nodes: frozenset[str]
    from_ms: int
    hard: bool


@dataclass(frozen=True)
class Nominated:
    """After the cycle at `at_ms` these nodes were being cleared for a job."""

    at_ms: int
    job: str
    nodes: frozenset[str]


@dataclass(frozen=True)
class Stop:
    """The order to stop a running job in favour of another one."""

    at_ms: int
    victim: str
    attempt: int
    claimant: str


@dataclass(frozen=True)
class Log:
    machines: tuple[Machine, ...]
    bounds: tuple[Bound, ...]
    asked: tuple[Asked, ...]
    attempts: tuple[Attempt, ...]
    min_run_ms: int = 0
    grace_ms: int = 0
    kept: tuple[Kept, ...] = ()
    promises: tuple[Promised, ...] = ()
    nominations: tuple[Nominated, ...] = ()
    stops: tuple[Stop, ...] = ()
    cycles_ms: tuple[int, ...] = ()
    """When the policy planned; empty where nobody wrote it down."""
    backfills: bool = False
    """Whether the policy starts whatever fits and delays no promise; a strict one may leave room idle."""
    impossible: frozenset[str] = frozenset()


class Tree:
    """The queues of a log, each with its ancestors."""

    def __init__(self, log: Log) -> None:
        self.bounds = {bound.queue: bound for bound in log.bounds}
        self.children: dict[str | None, list[str]] = {}
        for bound in log.bounds:
            self.children.setdefault(bound.parent, []).append(bound.queue)

    def path(self, queue: str) -> list[str]:
        """The queue and all above it, the highest last."""
        found = [queue]
        while (parent := self.bounds[found[-1]].parent if found[-1] in self.bounds else None) is not None:
            found.append(parent)
        return found
