"""What is free, per pool and node, kept up to date by taking and giving back slices.

A pool keeps its open nodes in buckets by the number of wholly free devices; a bucket is an integer used as a
bit set over node positions, so that "which nodes have at least five free" is a few `or`s and the lowest bit is
the first node in a total order. Invariant: a node is in exactly one bucket while it is open and in none while
it is drained or gone; no milli-slot is ever taken twice.
"""

from collections.abc import Hashable, Iterable
from functools import lru_cache
from typing import TypeVar

from scheduler.policy.errors import SliceTaken, UnknownNode
from scheduler.policy.free_times import FreeTimes
from scheduler.policy.model import WHOLE_MILLI, DeviceSlice, Node, Placement

_Name = TypeVar("_Name", bound=Hashable)


@lru_cache(maxsize=65_536)
def lowest_devices(mask: int, count: int) -> tuple[int, tuple[DeviceSlice, ...]]:
    """The `count` lowest set bits of a device mask, as a mask and as whole slices."""
    chosen = 0
    slices = []
    for _ in range(count):
        bit = mask & -mask
        mask ^= bit
        chosen |= bit
        slices.append(DeviceSlice(bit.bit_length() - 1, 0, WHOLE_MILLI))
    return chosen, tuple(slices)


class NodeState:
    """One machine's free devices, processors and memory."""

    __slots__ = (
        "bit",
        "busy_mask",
        "cpu_free_milli",
        "healthy_mask",
        "held",
        "last_leaves_ms",
        "leaves",
        "memory_free_mib",
        "node",
        "opened",
        "ordinal",
        "pool",
        "position",
        "score",
        "score_version",
        "scored_by",
        "shared",
        "tenants",
        "times",
        "version",
        "whole_mask",
    )

    def __init__(self, node: Node, pool: "Pool", position: int) -> None:
        self.node = node
        self.pool = pool
        self.position = position
        self.bit = 1 << position
        self.cpu_free_milli = node.cpu_milli
        self.memory_free_mib = node.memory_mib
        self.healthy_mask = sum(1 << device.index for device in node.devices if device.healthy)
        self.whole_mask = self.healthy_mask
        self.busy_mask = 0
        self.shared: dict[int, list[tuple[int, int]]] = {}
        """Ranges taken of each device that is shared, sorted."""
        self.opened = False
        self.held: dict[str, tuple[DeviceSlice, ...]] = {}
        self.tenants: dict[str, tuple[int, int, int]] = {}
        """Per running job: when its limit ends it, its processors, its memory."""
        self.leaves: dict[str, int] = {}
        """Per running job: when it will probably be gone."""
        self.last_leaves_ms: int | None = 0
        """The latest of them (0: nobody is here); None until somebody asks again."""
        self.times: tuple[int, ...] | None = None
        self.ordinal = position
        self.version = 0
        """Grows with every change of what is free; cached scores carry it."""
        self.score = 0
        self.score_version = -1
        self.scored_by: object = None

    def device_times(self) -> tuple[int, ...]:
        """When, by enforced limits, each healthy device is wholly free (0: now), soonest first."""
        if self.times is None and not self.shared and not self.busy_mask & ~self.healthy_mask:
            times = [0] * self.whole_mask.bit_count()
            for job_id, pieces in self.held.items():
                times += [self.tenants[job_id][0]] * len(pieces)
            times.sort()
            self.times = tuple(times)
        if self.times is None:
            busy: dict[int, int] = {}
            for job_id, pieces in self.held.items():
                ends_ms = self.tenants[job_id][0]
                for piece in pieces:
                    busy[piece.device] = max(ends_ms, busy.get(piece.device, 0))
            healthy = [
                index for index in range(self.healthy_mask.bit_length()) if self.healthy_mask >> index & 1
            ]
            self.times = tuple(sorted(busy.get(index, 0) for index in healthy))
        return self.times

    def move_in(
        self, job_id: str, pieces: tuple[DeviceSlice, ...], facts: tuple[int, int, int], leaves_ms: int
    ) -> None:
        """A job runs here until (its limit), with (processors, memory); it will probably leave before."""
        self.leaves[job_id] = leaves_ms
        if self.last_leaves_ms is not None and leaves_ms > self.last_leaves_ms:
            self.last_leaves_ms = leaves_ms
        self.held[job_id] = pieces
        self.version += 1
        self.tenants[job_id] = facts
        self.times = None
        self.pool.moves(self)

    def move_out(self, job_id: str) -> None:
        """The job no longer runs here."""
        del self.held[job_id]
        if self.leaves.pop(job_id) == self.last_leaves_ms:
            self.last_leaves_ms = None  # perhaps not the only one
        self.version += 1
        del self.tenants[job_id]
        self.times = None
        self.pool.moves(self)

    @property
    def whole_free(self) -> int:
        """How many devices are wholly free."""
        return self.whole_mask.bit_count()

    @property
    def free_milli(self) -> int:
        """Milli-slots of healthy devices that nobody holds."""
        shared = sum(
            WHOLE_MILLI - sum(hi - lo for lo, hi in taken)
            for device, taken in self.shared.items()
            if self.healthy_mask >> device & 1
        )
        return self.whole_free * WHOLE_MILLI + shared

    @property
    def idle(self) -> bool:
        """Whether nothing that needs anything runs on it."""
        facts = self.node
        unused = self.cpu_free_milli == facts.cpu_milli and self.memory_free_mib == facts.memory_mib
        return unused and not self.busy_mask

    def hole_for(self, device: int, slots_milli: int) -> tuple[int, int] | None:
        """The tightest free range of a shared device that holds `slots_milli`: (its length, its start)."""
        best: tuple[int, int] | None = None
        start = 0
        for lo, hi in (*self.shared[device], (WHOLE_MILLI, WHOLE_MILLI)):
            if lo - start >= slots_milli and (best is None or lo - start < best[0]):
                best = (lo - start, start)
            start = hi
        return best

    def is_free(self, piece: DeviceSlice) -> bool:
        """Whether nobody holds any of the slice and the device is healthy."""
        if self.whole_mask >> piece.device & 1:
            return True
        taken = self.shared.get(piece.device)
        if taken is None or not self.healthy_mask >> piece.device & 1:
            return False
        return all(hi <= piece.slot_lo or piece.slot_hi <= lo for lo, hi in taken)


class Changes:
    """Which nodes changed, in order; boards remember how far they have read."""

    LOG_MAX = 1 << 18

    def __init__(self) -> None:
        self.log: list[NodeState] = []
        self.epoch = 0
        self.wanted = False
        """Whether anybody reads it."""

    def note(self, state: NodeState) -> None:
        """The node has more or less free than before."""
        if not self.wanted:
            return
        self.log.append(state)
        if len(self.log) > self.LOG_MAX:
            self.log.clear()
            self.epoch += 1


def _add(sets: dict[_Name, int], name: _Name, bit: int) -> None:
    sets[name] = sets.get(name, 0) | bit


def _remove(sets: dict[_Name, int], name: _Name, bit: int) -> None:
    if left := sets.get(name, 0) & ~bit:
        sets[name] = left
    else:
        sets.pop(name, None)


class Pool:
    """All nodes of one accelerator model."""

    def __init__(self, model: str, changes: Changes) -> None:
        self.model = model
        self.changes = changes
        self.pflops_milli = 0
        self.states: list[NodeState] = []
        self.buckets: list[int] = [0]
        self.sharing = 0
        """Open nodes with a partly taken device."""
        self.domains: dict[tuple[str, ...], int] = {}
        """Every topology domain (a path prefix, innermost longest) as a set of node positions."""
        self.networks: dict[str, int] = {}
        """Every network that nodes can have together, as a set of node positions."""
        self.capacity_milli = 0
        self.installed_milli = 0
        """Healthy devices, those of drained and lost nodes included: they may come back."""
        self.free_milli = 0
        """Of the open nodes; a device that has failed is not free when its job has left it."""
        self.freed = 0
        """Counts everything that could make an impossible placement possible."""
        self.moved = 0
        """Counts everything that changes when its devices will be free."""
        self._free_times: dict[int, FreeTimes] = {}
        self._moved_nodes: dict[int, NodeState] = {}
        """Nodes that somebody moved in to or out of since free times were asked for, by their bit."""

    def moves(self, state: NodeState) -> None:
        """Somebody moved in or out of the node, or it opened or closed."""
        self.moved += 1
        if self.changes.wanted:
            self.changes.note(state)
        self._moved_nodes[state.bit] = state

    def free_times(self, devices: int) -> list[tuple[int, int]]:
        """When each open node certainly has so many devices free (where only devices count), soonest first."""
        line = self._free_times.get(devices)
        if line is None:
            line = self._free_times[devices] = FreeTimes(devices)
            line.changed.update((state.bit, state) for state in self.states)
        if self._moved_nodes:
            for known in self._free_times.values():
                known.changed.update(self._moved_nodes)
            self._moved_nodes.clear()
        return line.rows()

    def with_at_least(self, devices: int) -> int:
        """The set of open nodes that have so many wholly free devices."""
        found = 0
        for bucket in self.buckets[devices:]:
            found |= bucket
        return found

    def open(self, state: NodeState) -> None:
        """Offer a node to new jobs."""
        if state.opened:
            return
        state.opened = True
        state.version += 1
        self.buckets[state.whole_free] |= state.bit
        if state.shared:
            self.sharing |= state.bit
        self.capacity_milli += state.healthy_mask.bit_count() * WHOLE_MILLI
        self.free_milli += state.free_milli
        self.freed += 1
        self.moves(state)

    def close(self, state: NodeState) -> None:
        """Withhold a node from new jobs; what runs on it is untouched."""
        if not state.opened:
            return
        state.opened = False
        state.version += 1
        self.moves(state)
        self.buckets[state.whole_free] &= ~state.bit
        self.sharing &= ~state.bit
        self.capacity_milli -= state.healthy_mask.bit_count() * WHOLE_MILLI
        self.free_milli -= state.free_milli

    def place(self, state: NodeState, node: Node) -> None:
        """The node lies in its domains and on its network."""
        for depth in range(1, len(node.topology) + 1):
            _add(self.domains, node.topology[:depth], state.bit)
        _add(self.networks, node.network, state.bit)

    def displace(self, state: NodeState, node: Node) -> None:
        """The node no longer lies there; a domain or a network that nobody is left in is forgotten."""
        for depth in range(1, len(node.topology) + 1):
            _remove(self.domains, node.topology[:depth], state.bit)
        _remove(self.networks, node.network, state.bit)

    def take_whole(self, state: NodeState, devices: int) -> tuple[DeviceSlice, ...]:
        """Take the lowest wholly free devices of an open node that has enough of them."""
        mask = state.whole_mask
        chosen, slices = lowest_devices(mask, devices)
        free = mask.bit_count()
        buckets = self.buckets
        buckets[free] ^= state.bit
        buckets[free - devices] |= state.bit
        state.whole_mask = mask ^ chosen
        state.busy_mask |= chosen
        self.free_milli -= devices * WHOLE_MILLI
        return slices

    def take(self, state: NodeState, piece: DeviceSlice) -> None:
        """Take one slice. Raises SliceTaken."""
        if not state.is_free(piece):
            raise SliceTaken(
                field="placements",
                slot_lo=piece.slot_lo,
                slot_hi=piece.slot_hi,
                device=piece.device,
                node=state.node.name,
            )
        before = state.whole_free
        state.whole_mask &= ~(1 << piece.device)
        state.busy_mask |= 1 << piece.device
        if piece.slot_hi - piece.slot_lo < WHOLE_MILLI:
            taken = state.shared.setdefault(piece.device, [])
            taken.append((piece.slot_lo, piece.slot_hi))
            taken.sort()
        if state.opened:
            self.free_milli -= piece.slot_hi - piece.slot_lo
        self._rebucket(state, before)

    def give(self, state: NodeState, piece: DeviceSlice) -> None:
        """Give one slice back."""
        before = state.whole_free
        taken = state.shared.get(piece.device)
        if taken is not None:
            taken.remove((piece.slot_lo, piece.slot_hi))
            if not taken:
                del state.shared[piece.device]
        if not taken:
            state.busy_mask &= ~(1 << piece.device)
            state.whole_mask = state.healthy_mask & ~state.busy_mask
        if state.opened and state.healthy_mask >> piece.device & 1:
            self.free_milli += piece.slot_hi - piece.slot_lo
        self._rebucket(state, before)
        self.freed += 1

    def give_whole(self, state: NodeState, pieces: tuple[DeviceSlice, ...]) -> None:
        """Give whole devices back."""
        mask = 0
        for device, _, _ in pieces:
            mask |= 1 << device
        before = state.whole_mask.bit_count()
        state.busy_mask &= ~mask
        state.whole_mask = state.healthy_mask & ~state.busy_mask
        if state.opened:
            after = state.whole_mask.bit_count()
            self.free_milli += (after - before) * WHOLE_MILLI
            self.buckets[before] ^= state.bit
            self.buckets[after] |= state.bit
        self.freed += 1

    def _rebucket(self, state: NodeState, before: int) -> None:
        if not state.opened:
            return
        after = state.whole_mask.bit_count()
        if after != before:
            self.buckets[before] ^= state.bit
            self.buckets[after] |= state.bit
        if state.shared:
            self.sharing |= state.bit
        else:
            self.sharing &= ~state.bit


class Capacity:
    """Every pool, and every node by name."""

    def __init__(self) -> None:
        self.pools: dict[str, Pool] = {}
        self.nodes: dict[str, NodeState] = {}
        self.changes = Changes()
        self.shape_version = 0
        """Grows whenever a model or a larger node appears, so that jobs look again for pools."""

    def join(self, node: Node) -> NodeState:
        """Add a node, or bring one back with what it has now; its running slices stay taken."""
        known = self.nodes.get(node.name)
        if known is not None and known.node.model == node.model:
            self._renew(known, node)
            return known
        pool = self.pools.setdefault(node.model, Pool(node.model, self.changes))
        state = NodeState(node, pool, len(pool.states))
        state.ordinal = len(self.nodes)
        pool.states.append(state)
        self.nodes[node.name] = state
        width = 1 + max((device.index + 1 for device in node.devices), default=0)
        pool.buckets.extend([0] * (width - len(pool.buckets)))
        pool.installed_milli += state.healthy_mask.bit_count() * WHOLE_MILLI
        pool.pflops_milli = node.pflops_milli or pool.pflops_milli
        pool.place(state, node)
        if node.schedulable:
            pool.open(state)
        self.shape_version += 1
        return state

    def _renew(self, state: NodeState, node: Node) -> None:
        pool = state.pool
        pool.close(state)
        healthy = sum(1 << device.index for device in node.devices if device.healthy)
        more_milli = (healthy.bit_count() - state.healthy_mask.bit_count()) * WHOLE_MILLI
        pool.installed_milli += more_milli
        state.cpu_free_milli += node.cpu_milli - state.node.cpu_milli
        state.memory_free_mib += node.memory_mib - state.node.memory_mib
        if (node.topology, node.network) != (state.node.topology, state.node.network):
            pool.displace(state, state.node)
            pool.place(state, node)
        pool.pflops_milli = node.pflops_milli or pool.pflops_milli
        state.node = node
        state.healthy_mask = healthy
        state.times = None
        state.whole_mask = healthy & ~state.busy_mask
        width = 1 + max((device.index + 1 for device in node.devices), default=0)
        pool.buckets.extend([0] * (width - len(pool.buckets)))
        if node.schedulable:
            pool.open(state)
        self.shape_version += 1

    def state_of(self, node: str) -> NodeState:
        """The node's state. Raises UnknownNode."""
        state = self.nodes.get(node)
        if state is None:
            raise UnknownNode(field="node", node=node)
        return state

    def take(self, placements: Iterable[Placement], cpu_milli: int, memory_mib: int) -> None:
        """Take every slice of an allocation, all or none. Raises SliceTaken or UnknownNode."""
        wanted = [(self.state_of(name), piece) for name, devices in placements for piece in devices]
        for position, (state, piece) in enumerate(wanted):
            try:
                state.pool.take(state, piece)
            except SliceTaken:
                for earlier, given in wanted[:position]:
                    earlier.pool.give(earlier, given)
                raise
        for name, _ in placements:
            state = self.nodes[name]
            state.cpu_free_milli -= cpu_milli
            state.memory_free_mib -= memory_mib

    def give(self, placements: Iterable[Placement], cpu_milli: int, memory_mib: int) -> None:
        """Give every slice of an allocation back."""
        for name, devices in placements:
            state = self.nodes[name]
            pool = state.pool
            if devices and not state.shared:
                pool.give_whole(state, devices)
            else:
                for piece in devices:
                    pool.give(state, piece)
            state.cpu_free_milli += cpu_milli
            state.memory_free_mib += memory_mib
            pool.freed += 1
