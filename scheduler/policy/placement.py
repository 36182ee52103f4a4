"""Finding room: which nodes and which slices of them a shape gets, without taking them yet.

Whole devices go to the node where they fit best (fewest wholly free devices left), gangs into the smallest
topology domain that holds them, fractions where they break open the least. Ties go to the node that joined
first. A finder never changes state; the caller takes what it likes.
"""

from collections.abc import Callable

from scheduler.policy.capacity import NodeState, Pool, lowest_devices
from scheduler.policy.model import WHOLE_MILLI, DeviceSlice, Placement, Topology
from scheduler.policy.shapes import Shape

Found = tuple[tuple[NodeState, tuple[DeviceSlice, ...]], ...]


def find(shape: Shape, pool: Pool, barred: int = 0) -> Found | None:
    """Room for the whole gang in a pool, or None.

    Args:
        shape: what the job asks for.
        pool: where to look.
        barred: a set of node positions that must not be used (promised to somebody else).
    """
    if shape.nodes == 1 and not shape.tail_devices:
        return _find_one(shape, pool, barred)
    return _find_gang(shape, pool, barred)


def as_placements(found: Found) -> tuple[Placement, ...]:
    """The same as a value for the plan."""
    return tuple([Placement(state.node.name, pieces) for state, pieces in found])


def _has_room(state: NodeState, shape: Shape) -> bool:
    return state.cpu_free_milli >= shape.cpu_milli and state.memory_free_mib >= shape.memory_mib


def _find_one(shape: Shape, pool: Pool, barred: int) -> Found | None:
    if not shape.whole:
        return _find_fraction(shape, pool, barred)
    devices = shape.devices_per_node
    states = pool.states
    for bucket in pool.buckets[devices:]:
        nodes = bucket & ~barred
        while nodes:
            bit = nodes & -nodes
            state = states[bit.bit_length() - 1]
            if _has_room(state, shape):
                return ((state, lowest_devices(state.whole_mask, devices)[1]),)
            nodes ^= bit
    return None


def find_among_lasting(shape: Shape, pool: Pool, barred: int, now_ms: int, leaves_ms: int) -> Found | None:
    """Room for whole devices of one node that will probably be left at `leaves_ms`, where it prolongs least.

    A node is free for a gang when the last job has left it: so short jobs go to nodes that stay in use anyway
    (lifetime alignment, as LAVA, MLSys '25, does for virtual machines). Where a node must be in use longer, that
    is shared by all who can still join the job there: a few long jobs each put beside short ones would keep many
    nodes from gangs, where together they keep one. Among equals the fullest node is taken.
    """
    devices = shape.devices_per_node  # at least one: what needs none prolongs nothing
    best: NodeState | None = None
    best_cost, states, roomy = 0, pool.states, not shape.cpu_milli and not shape.memory_mib
    open_to_it = ~barred
    for free, bucket in enumerate(pool.buckets[devices:], devices):
        nodes = bucket & open_to_it
        if not nodes:
            continue
        sharing = free // devices
        while nodes:
            bit = nodes & -nodes
            nodes ^= bit
            state = states[bit.bit_length() - 1]
            if not roomy and not _has_room(state, shape):
                continue
            last_ms = state.last_leaves_ms
            if last_ms is None:
                last_ms = state.last_leaves_ms = max(state.leaves.values()) if state.leaves else 0
            if last_ms >= leaves_ms:  # it stays in use as long anyway, and what comes later is at best as cheap
                return ((state, lowest_devices(state.whole_mask, devices)[1]),)
            cost = (leaves_ms - max(now_ms, last_ms)) // sharing
            if best is None or cost < best_cost:
                best, best_cost = state, cost
            if not state.leaves:
                break  # the next one of the bucket is at best idle, too, or nearly as good
    if best is None:
        return None
    return ((best, lowest_devices(best.whole_mask, devices)[1]),)


def _find_fraction(shape: Shape, pool: Pool, barred: int) -> Found | None:
    """The tightest hole on devices already shared; otherwise a whole device of the fullest node."""
    best: tuple[int, int, tuple[DeviceSlice, ...]] | None = None
    nodes = pool.sharing & ~barred
    while nodes:
        bit = nodes & -nodes
        nodes ^= bit
        state = pool.states[bit.bit_length() - 1]
        if not _has_room(state, shape):
            continue
        fit = fraction_on(state, shape)
        if fit is not None and (best is None or fit[0] < best[0]):
            best = (fit[0], state.position, fit[1])
    if best is not None:
        return ((pool.states[best[1]], best[2]),)
    for bucket in pool.buckets[1:]:
        nodes = bucket & ~barred
        while nodes:
            bit = nodes & -nodes
            nodes ^= bit
            state = pool.states[bit.bit_length() - 1]
            if _has_room(state, shape):
                fit = fraction_on(state, shape)
                if fit is not None:
                    return ((state, fit[1]),)
    return None


def fraction_on(state: NodeState, shape: Shape) -> tuple[int, tuple[DeviceSlice, ...]] | None:
    """The shape's fractions on distinct devices of one node: (milli-slots left over in the holes, slices)."""
    slots = shape.slots_milli
    holes = []
    for device in state.shared:
        if not state.healthy_mask >> device & 1:
            continue
        hole = state.hole_for(device, slots)
        if hole is not None:
            holes.append((hole[0] - slots, device, hole[1]))
    holes.sort()
    missing = shape.devices_per_node - len(holes)
    if missing > state.whole_free:
        return None
    mask = state.whole_mask
    while missing > 0:
        bit = mask & -mask
        mask ^= bit
        holes.append((WHOLE_MILLI - slots, bit.bit_length() - 1, 0))
        missing -= 1
    chosen = holes[: shape.devices_per_node]
    slices = tuple(DeviceSlice(device, start, start + slots) for _, device, start in chosen)
    return sum(left for left, _, _ in chosen), slices


def _find_gang(shape: Shape, pool: Pool, barred: int) -> Found | None:
    fitting = fitting_nodes(shape, pool) & ~barred
    for nodes in networks_smallest_first(shape, pool, fitting):
        found = _find_on_network(shape, pool, nodes)
        if found is not None:
            return found
    return None


def networks_smallest_first(shape: Shape, pool: Pool, fitting: int) -> list[int]:
    """Of fitting nodes, the sets on which the gang's may lie: for one that talks those of each network."""
    if not shape.talks or len(pool.networks) == 1:
        return [fitting]
    rows = [((fitting & nodes).bit_count(), name, fitting & nodes) for name, nodes in pool.networks.items()]
    return [nodes for _, _, nodes in sorted(rows)]


def _find_on_network(shape: Shape, pool: Pool, fitting: int) -> Found | None:
    if fitting.bit_count() < shape.nodes:
        return None
    if shape.topology is Topology.SPREAD:
        return _gang_in(shape, pool, fitting, _spread)
    for domain in _domains_smallest_first(shape, pool, fitting):
        found = _gang_in(shape, pool, domain, _tightest)
        if found is not None:
            return found
    return None


def _gang_in(
    shape: Shape, pool: Pool, nodes: int, choose: Callable[[Shape, Pool, int], list[NodeState]]
) -> Found | None:
    """The gang on these nodes; when its own choice leaves no empty one for the tail, the tail chooses first."""
    found = _gang_on(shape, pool, nodes, choose(shape, pool, nodes))
    if found is not None or not shape.tail_devices:
        return found
    tail = _idle_node(shape, pool, nodes)
    if tail is None:
        return None
    body = choose(shape, pool, nodes & ~tail.bit)
    return _gang_on(shape, pool, tail.bit | sum(state.bit for state in body), body)


def fitting_nodes(shape: Shape, pool: Pool) -> int:
    """The set of open nodes that hold one node's part of the gang."""
    if shape.whole:
        nodes = pool.with_at_least(shape.devices_per_node)
        if not shape.cpu_milli and not shape.memory_mib:
            return nodes
    else:
        nodes = pool.with_at_least(1) | pool.sharing
    fitting = 0
    while nodes:
        bit = nodes & -nodes
        nodes ^= bit
        state = pool.states[bit.bit_length() - 1]
        if _has_room(state, shape) and (shape.whole or fraction_on(state, shape) is not None):
            fitting |= bit
    return fitting


def _domains_smallest_first(shape: Shape, pool: Pool, fitting: int) -> list[int]:
    """Innermost domains that hold the gang, the one with fewest fitting nodes first; then wider ones."""
    if not pool.domains:
        return [fitting]
    innermost = max(len(path) for path in pool.domains)
    rows = [
        (-len(path), (fitting & nodes).bit_count(), path, fitting & nodes)
        for path, nodes in pool.domains.items()
        if (fitting & nodes).bit_count() >= shape.nodes
        and (shape.topology is not Topology.SAME_SWITCH or len(path) == innermost)
    ]
    rows.sort()
    found = [nodes for _, _, _, nodes in rows]
    return found if shape.topology is Topology.SAME_SWITCH else [*found, fitting]


def _tightest(shape: Shape, pool: Pool, nodes: int) -> list[NodeState]:
    chosen: list[NodeState] = []
    for bucket in pool.buckets[0 if not shape.whole else shape.devices_per_node :]:
        left = bucket & nodes
        while left and len(chosen) < shape.nodes:
            bit = left & -left
            left ^= bit
            chosen.append(pool.states[bit.bit_length() - 1])
    return chosen


def _spread(shape: Shape, pool: Pool, nodes: int) -> list[NodeState]:
    """One node of each innermost domain in turn, the roomiest domains first."""
    innermost = max((len(path) for path in pool.domains), default=0)
    rows = [
        [-(nodes & within).bit_count(), path] for path, within in pool.domains.items() if len(path) == innermost
    ]
    sets = [nodes & pool.domains[path] for _, path in sorted(rows)] or [nodes]  # type: ignore[index]
    chosen: list[NodeState] = []
    while len(chosen) < shape.nodes and any(sets):
        for index, left in enumerate(sets):
            if left and len(chosen) < shape.nodes:
                bit = left & -left
                sets[index] = left ^ bit
                chosen.append(pool.states[bit.bit_length() - 1])
    return chosen


def _gang_on(shape: Shape, pool: Pool, nodes: int, chosen: list[NodeState]) -> Found | None:
    if len(chosen) < shape.nodes:
        return None
    found = []
    for state in chosen:
        if shape.whole:
            pieces = lowest_devices(state.whole_mask, shape.devices_per_node)[1]
        else:
            fit = fraction_on(state, shape)
            if fit is None:
                return None
            pieces = fit[1]
        found.append((state, pieces))
        nodes &= ~state.bit
    if shape.tail_devices:
        tail = _idle_node(shape, pool, nodes)
        if tail is None:
            return None
        found.append((tail, lowest_devices(tail.whole_mask, shape.tail_devices)[1]))
    return tuple(found)


def _idle_node(shape: Shape, pool: Pool, nodes: int) -> NodeState | None:
    """A node on which nothing runs, with at least the tail's devices; the smallest such."""
    for bucket in pool.buckets[shape.tail_devices :]:
        left = bucket & nodes
        while left:
            bit = left & -left
            left ^= bit
            state = pool.states[bit.bit_length() - 1]
            if state.idle and _has_room(state, shape):
                return state
    return None
