"""The nouns of the policy: nodes, queues, jobs, and what a cycle decides about them.

Everything here is a value: integers in the smallest unit, no behaviour beyond simple arithmetic. A device is
1000 milli-slots; a *pool* is all devices of one accelerator model; times are Unix milliseconds.
"""

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final, NamedTuple

WHOLE_MILLI: Final = 1000
"""Milli-slots of one device."""

MS_PER_HOUR: Final = 3_600_000


class Topology(StrEnum):
    """How the nodes of a gang lie to each other."""

    PACK = "pack"
    """In the smallest domain that holds them all; wider when none does."""
    SAME_SWITCH = "same-switch"
    """In one innermost domain or not at all."""
    SPREAD = "spread"
    """Over as many innermost domains as possible."""

    __hash__ = str.__hash__  # shapes are found by it: an enumeration's own is written in Python


@dataclass(frozen=True, slots=True)
class DeviceState:
    """One accelerator of a node; an unhealthy one is never given out."""

    index: int
    healthy: bool = True


@dataclass(frozen=True, slots=True)
class Node:
    """A machine with devices of one model (a machine with two models joins as two nodes).

    Attributes:
        pflops_milli: of one device, in 10⁻³ PFLOPS at the centre's stated precision; 0 when not stated.
        topology: domains from the widest to the innermost, such as `("zone-a", "switch-3")`.
        network: nodes of one name can have a network together, for a job that `talks`.
        schedulable: false takes no new jobs and leaves the running ones (a drain).
    """

    name: str
    model: str
    devices: tuple[DeviceState, ...]
    cpu_milli: int = 2**40
    memory_mib: int = 2**40
    pflops_milli: int = 0
    topology: tuple[str, ...] = ()
    network: str = ""
    schedulable: bool = True


@dataclass(frozen=True, slots=True)
class Quota:
    """What a queue may use of one pool, in milli-slots (1000 is one device).

    Attributes:
        guarantee_milli: always available to it within a reclaim.
        borrow_milli: how far beyond its guarantee it may go on others' idle share; None is no bound.
        lend_milli: how much of an idle guarantee others may use; None is all of it.
        weight: divides the queue's share of this pool when siblings are compared.
    """

    guarantee_milli: int = 0
    borrow_milli: int | None = None
    lend_milli: int | None = None
    weight: int = 1


@dataclass(frozen=True, slots=True)
class Queue:
    """A node of the queue tree; jobs are queued at leaves only.

    Attributes:
        parent: None for a child of the root.
        quotas: by pool (model name); a pool that is not named has no guarantee and no bound.
        max_wait_ms: a job that has waited this long is overdue: it goes in first-come order with a hard
            reservation; None lets the policy derive the bound from the congestion the job met.
        half_life_ms: how fast past use is forgotten by fair share.
        user_running_max: running jobs one user may have in this queue.
        running_max: running jobs in this queue.
    """

    name: str
    parent: str | None = None
    quotas: dict[str, Quota] = field(default_factory=dict)
    max_wait_ms: int | None = None
    half_life_ms: int = 24 * MS_PER_HOUR
    user_running_max: int | None = None
    running_max: int | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """What somebody asked for. All nodes of it start together, or none does.

    Attributes:
        models: acceptable accelerator models, in order of preference; empty accepts any.
        min_pflops_milli: a device must offer at least this.
        nodes, devices_per_node, slots_milli: `nodes` machines with `devices_per_node` devices each, of each
            device `slots_milli` (1000: the whole card). `devices_per_node` 0 is a job without accelerators.
        tail_devices: one further node, empty at the start, of which this many whole devices are taken.
        cpu_milli, memory_mib: on every node of the gang.
        talks: its nodes must be able to have a network together.
        time_limit_ms: enforced; reservations and backfill rest on it.
        estimate_ms: the submitter's own guess of the duration; it may order jobs and guarantee nothing.
        array_id, array_running_max: jobs with one array id run at most so many at a time (0: no bound).
        attempt: 1 for the first; `attained_ms` is what earlier attempts have run.
    """

    id: str
    queue: str
    submitted_ms: int
    time_limit_ms: int
    tenant: str = ""
    user: str = ""
    name: str = ""
    models: tuple[str, ...] = ()
    min_pflops_milli: int = 0
    nodes: int = 1
    devices_per_node: int = 1
    tail_devices: int = 0
    slots_milli: int = WHOLE_MILLI
    cpu_milli: int = 0
    memory_mib: int = 0
    priority: int = 0
    preemptible: bool = False
    topology: Topology = Topology.PACK
    talks: bool = False
    not_before_ms: int = 0
    depends_on: tuple[str, ...] = ()
    estimate_ms: int | None = None
    array_id: str = ""
    array_running_max: int = 0
    attempt: int = 1
    attained_ms: int = 0

    @property
    def devices_milli(self) -> int:
        """Milli-slots of the whole gang, which is what quotas count."""
        return self.nodes * self.devices_per_node * self.slots_milli + self.tail_devices * WHOLE_MILLI

    def again(self, ran_ms: int) -> "Job":
        """The same job for its next attempt, after one that ran so long and came to nothing."""
        return replace(self, attempt=self.attempt + 1, attained_ms=self.attained_ms + ran_ms)


class Reservation(NamedTuple):
    """Nodes promised away for a span: to jobs and a tenant's jobs (an advance reservation) or to nobody (a drain)."""

    id: str
    nodes: tuple[str, ...]
    from_ms: int
    to_ms: int
    for_jobs: frozenset[str] = frozenset()
    for_tenant: str = ""


class DeviceSlice(NamedTuple):
    """A half-open range of the milli-slots of a device."""

    device: int
    slot_lo: int
    slot_hi: int


class Placement(NamedTuple):
    """One node's part of an allocation."""

    node: str
    devices: tuple[DeviceSlice, ...]


class Start(NamedTuple):
    """Start this job on exactly these slices."""

    job_id: str
    placements: tuple[Placement, ...]


class Eviction(NamedTuple):
    """Stop this running job; what it frees is nominated to `for_job_id`."""

    job_id: str
    for_job_id: str
    reason: str


class Waiting(NamedTuple):
    """Why a job does not run, as a stable code and a sentence for people."""

    job_id: str
    code: str
    sentence: str
    start_estimate_ms: int | None


class Plan(NamedTuple):
    """What one cycle decided. Starts assume every earlier start of the plan, and no eviction."""

    now_ms: int
    starts: tuple[Start, ...]
    evictions: tuple[Eviction, ...]
    next_wake_ms: int | None
    """When a cycle is needed though no event arrives: a not-before, a promotion, a reservation's edge."""
