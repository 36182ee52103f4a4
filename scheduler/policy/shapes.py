"""A shape is everything about a job that decides where it fits; jobs of equal shape fit or do not fit together.

A shape remembers that it was found not to fit: as long as nothing is freed in its pools it still does not, so
a cycle looks at shapes, never at the jobs behind them.
"""

from operator import attrgetter
from typing import Final

from scheduler.policy.capacity import Capacity, Pool
from scheduler.policy.model import WHOLE_MILLI, Job

_what_decides: Final = attrgetter(
    "models",
    "min_pflops_milli",
    "nodes",
    "devices_per_node",
    "tail_devices",
    "slots_milli",
    "cpu_milli",
    "memory_mib",
    "topology",
    "talks",
)
"""Of a job, where it fits."""


class Shape:
    """What placement needs to know of a job.

    `pools` are those of its models in order of preference; `freed_seen` are the pools' freed counters when it
    was last found not to fit.
    """

    __slots__ = (
        "cpu_milli",
        "demand_milli",
        "devices_per_node",
        "freed_seen",
        "memory_mib",
        "min_pflops_milli",
        "models",
        "nodes",
        "number",
        "pools",
        "pools_version",
        "possible",
        "scored",
        "simple",
        "slots_milli",
        "tail_devices",
        "talks",
        "topology",
        "whole",
    )

    def __init__(self, job: Job, number: int, *, always_scored: bool = False) -> None:
        self.number = number
        self.models = job.models
        self.min_pflops_milli = job.min_pflops_milli
        self.nodes = job.nodes
        self.devices_per_node = job.devices_per_node
        self.tail_devices = job.tail_devices
        self.slots_milli = job.slots_milli
        self.cpu_milli = job.cpu_milli
        self.memory_mib = job.memory_mib
        self.topology = job.topology
        self.talks = job.talks
        self.whole = job.slots_milli == WHOLE_MILLI
        self.demand_milli = job.devices_milli
        """Milli-slots of the whole gang."""
        alone = job.nodes == 1 and not job.tail_devices
        self.simple = alone and self.whole and not job.cpu_milli and not job.memory_mib
        """Whether it fits wherever one node has so many devices wholly free."""
        self.scored = alone and (always_scored or not self.simple)
        """Whether nodes differ for it by more than their number of free devices, or the placement rule says so."""
        self.pools: tuple[Pool, ...] = ()
        self.pools_version = -1
        self.possible: tuple[Pool, ...] | None = None
        """The pools that would hold it when empty; None until somebody asks again."""
        self.freed_seen = -1

    def resolve(self, capacity: Capacity) -> tuple[Pool, ...]:
        """The pools it may run in, looked up again only when a node has joined."""
        if self.pools_version != capacity.shape_version:
            self.pools_version = capacity.shape_version
            wanted = self.models or tuple(sorted(capacity.pools))
            names = [name for name in wanted if name in capacity.pools]
            pools = [capacity.pools[name] for name in names]
            self.pools = tuple(pool for pool in pools if pool.pflops_milli >= self.min_pflops_milli)
            self.freed_seen = -1
            self.possible = None
        return self.pools

    def freed_now(self) -> int:
        """The sum of its pools' freed counters: it has changed if and only if something was freed there."""
        pools = self.pools
        if len(pools) == 1:
            return pools[0].freed
        return sum(pool.freed for pool in pools)

    def may_fit(self) -> bool:
        """Whether anything changed for the better since it was last found not to fit."""
        pools = self.pools
        return self.freed_seen != (pools[0].freed if len(pools) == 1 else self.freed_now())

    def does_not_fit(self) -> None:
        """Remember that it does not fit as things are."""
        self.freed_seen = self.freed_now()


class Shapes:
    """Every shape seen, one object each.

    Args:
        always_scored: whether the placement rule has a word to say even where nodes differ by their number of free
            devices only.
    """

    def __init__(self, *, always_scored: bool = False) -> None:
        self._always_scored = always_scored
        self._known: dict[tuple[object, ...], Shape] = {}

    def known(self, job: Job) -> Shape | None:
        """The one shape object of a job, if any job of its shape was seen before."""
        return self._known.get(_what_decides(job))

    def of(self, job: Job) -> Shape:
        """The one shape object of a job."""
        key = _what_decides(job)
        shape = self._known.get(key)
        if shape is None:
            shape = self._known[key] = Shape(job, len(self._known), always_scored=self._always_scored)
        return shape
