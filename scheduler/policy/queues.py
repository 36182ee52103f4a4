"""The queue tree: who may use how much of which pool, and who is next.

Quotas hold at every level: a queue exceeds guarantee + borrow limit only by preemptible jobs that use what would
stand idle, and what others may use of an idle guarantee is its lend limit, for them too. Invariant: the use of an
inner queue is the sum of its children's.
"""

from collections.abc import Container, Iterable, Iterator
from enum import IntEnum
from typing import Final

from scheduler.policy.decay import decayed
from scheduler.policy.errors import (
    CyclicQueues,
    DuplicateQueue,
    GuaranteeAboveCapacity,
    QueueIsNotALeaf,
    UnknownModel,
    UnknownQueue,
)
from scheduler.policy.model import WHOLE_MILLI, Queue, Quota

ROOT: Final = ""
SHARE_UNIT: Final = 1_000_000
_NEVER_MS: Final = 2**62
_FREE_FOR_ALL: Final = Quota()


class Tier(IntEnum):
    """How strong a claim is; a lower tier goes first."""

    GUARANTEED = 0
    BORROWING = 1
    OPPORTUNISTIC = 2
    """Beyond the borrow limit, on what would stand idle: preemptible jobs only."""


class QueueState:
    """A queue with what it uses now and has used lately."""

    __slots__ = (
        "ancestry",
        "children",
        "effective",
        "floor",
        "half_life_ms",
        "inner",
        "limits",
        "lonely",
        "name",
        "parent",
        "queue",
        "quotas",
        "recent",
        "row",
        "running",
        "running_by_user",
        "share_known",
        "share_until_ms",
        "tenants",
        "unused",
        "used",
        "user_limited",
    )

    def __init__(self, queue: Queue, parent: "QueueState | None") -> None:
        self.queue = queue
        self.name = queue.name
        self.parent = parent
        self.children: list[QueueState] = []
        self.ancestry: tuple[QueueState, ...] = (*(parent.ancestry if parent else ()), self)
        """From the root to this queue."""
        self.tenants: set[str] = set()
        """Whose jobs have waited here."""
        self.quotas = queue.quotas
        self.half_life_ms = queue.half_life_ms
        self.used: dict[str, int] = {}
        self.floor: dict[str, int] = {
            pool: max(0, quota.guarantee_milli - quota.lend_milli)
            for pool, quota in queue.quotas.items()
            if quota.lend_milli is not None
        }
        self.inner: dict[str, int] = {}
        """What its children together count as used."""
        self.effective: dict[str, int] = {}
        """What siblings must regard as used: at least the part of the guarantee that is never lent."""
        self.unused: dict[str, int] = {}
        """The same while nobody uses anything."""
        self.recent: dict[str, tuple[int, int]] = {}
        """Per pool: the half-life average of use, and when it was brought up to date."""
        self.lonely = False
        self.running = 0
        self.running_by_user: dict[str, int] = {}
        self.share_known = 0
        self.row: tuple[Tier, int, str, QueueState] | None = None
        """Where it stands among its siblings at best; None when its use has changed."""
        self.share_until_ms = -1
        """A share is worked out again when its use changes, or a 64th of the half-life has passed."""
        self.user_limited: bool = queue.user_running_max is not None or (
            parent is not None and parent.user_limited
        )
        limited = queue.running_max is not None or queue.user_running_max is not None
        self.limits: tuple[QueueState, ...] = (
            *((self,) if limited else ()),
            *(parent.limits if parent else ()),
        )
        """This queue and its ancestors, the root last, as far as they limit how many jobs run."""

    def stands_alone(self, lonely: bool) -> None:  # noqa: FBT001 - a fact, not a switch
        """Say whether it has no siblings: then its share is never compared, and so never worked out."""
        self.lonely = lonely
        self.row = (Tier.BORROWING, 0, self.name, self) if lonely else None
        self.share_until_ms = _NEVER_MS if lonely else -1

    def path(self) -> "Iterator[QueueState]":
        """This queue and its ancestors, the root last."""
        at: QueueState | None = self
        while at is not None:
            yield at
            at = at.parent

    def quota(self, pool: str) -> Quota:
        """Its quota of a pool; no guarantee and no bound when none is written."""
        return self.quotas.get(pool, _FREE_FOR_ALL)

    def tier(self, pool: str, milli: int) -> Tier:
        """How strong a claim of `milli` more would be at this level."""
        quota = self.quotas.get(pool)
        if quota is None:
            return Tier.BORROWING
        after = self.used.get(pool, 0) + milli
        if after <= quota.guarantee_milli:
            return Tier.GUARANTEED
        if quota.borrow_milli is None or after <= quota.guarantee_milli + quota.borrow_milli:
            return Tier.BORROWING
        return Tier.OPPORTUNISTIC

    def best_tier(self) -> Tier:
        """The strongest claim that it could make at this level, whatever its jobs ask for."""
        used = self.used
        for pool, quota in self.quotas.items():
            if used.get(pool, 0) < quota.guarantee_milli:
                return Tier.GUARANTEED
        return Tier.BORROWING

    def bound(self, pool: str) -> int | None:
        """Guarantee and borrow limit together; None is no bound."""
        quota = self.quotas.get(pool)
        if quota is None or quota.borrow_milli is None:
            return None
        return quota.guarantee_milli + quota.borrow_milli

    def recent_milli(self, pool: str, now_ms: int) -> int:
        """The half-life average of its use of a pool."""
        value, at_ms = self.recent.get(pool, (0, now_ms))
        used = self.used.get(pool, 0)
        gap = value - used
        faded = decayed(abs(gap), max(0, now_ms - at_ms), self.half_life_ms)
        return used + (faded if gap > 0 else -faded)

    def share(self, capacities: dict[str, int], now_ms: int) -> int:
        """Its weighted dominant share in millionths: use now plus recent use, where that is largest."""
        if now_ms < self.share_until_ms:
            return self.share_known
        largest = 0
        for pool, used in self.used.items():
            weight = self.quota(pool).weight
            both = used + self.recent_milli(pool, now_ms)
            largest = max(largest, both * SHARE_UNIT // (max(1, capacities.get(pool, 0)) * weight))
        self.share_known = largest
        self.share_until_ms = now_ms + self.half_life_ms // 64
        return largest

    def shift(self, pool: str, now_ms: int) -> None:
        """Bring the half-life average up to date before its use changes."""
        if not self.lonely:
            self.share_until_ms = -1
            self.row = None
            self.recent[pool] = (self.recent_milli(pool, now_ms), now_ms)


class QueueTree:
    """All queues under one root that stands for the centre.

    Raises:
        UnknownQueue: a parent that is not there.
        CyclicQueues: parents that form a cycle.
    """

    def __init__(self, queues: Iterable[Queue]) -> None:
        known = {queue.name: queue for queue in queues}
        self.root = QueueState(Queue(ROOT), None)
        self.states: dict[str, QueueState] = {ROOT: self.root}
        self.plain = all(
            not queue.quotas and queue.running_max is None and queue.user_running_max is None
            for queue in known.values()
        )
        """No quota and no limit anywhere: every claim is allowed."""
        self.bounded = any(
            quota.borrow_milli is not None for queue in known.values() for quota in queue.quotas.values()
        )
        """Whether any queue may be beyond a borrow limit at all."""
        for name in known:
            self._settle(name, known, ())
        for state in self.states.values():
            state.stands_alone(state.parent is None or len(state.parent.children) == 1)
        for state in reversed(list(self.states.values())):
            self._raise_floors(state)

    def _settle(self, name: str, known: dict[str, Queue], below: tuple[str, ...]) -> QueueState:
        if name in self.states:
            return self.states[name]
        if name in below:
            raise CyclicQueues(field="parent", queue=name, cycle=" -> ".join((*below, name)))
        queue = known.get(name)
        if queue is None:
            raise UnknownQueue(field="parent", queue=name, known=", ".join(sorted(known)) or "none")
        parent = self._settle(queue.parent, known, (*below, name)) if queue.parent else self.root
        state = QueueState(queue, parent)
        parent.children.append(state)
        self.states[name] = state
        return state

    def add(self, queue: Queue) -> None:
        """A queue more, under a parent that is here; what the others have used stays known.

        Raises:
            UnknownQueue: its parent is not here. DuplicateQueue: it is here already.
        """
        if queue.name in self.states:
            raise DuplicateQueue(field="name", queue=queue.name)
        state = self._settle(queue.name, {queue.name: queue}, ())
        assert state.parent is not None  # noqa: S101 - only the root has none
        for child in state.parent.children:
            child.stands_alone(len(state.parent.children) == 1)
        was_plain = self.plain
        limited = queue.running_max is not None or queue.user_running_max is not None
        self.plain = was_plain and not queue.quotas and not limited
        if not self.plain:
            self._recount()

    def inherit(self, before: "QueueTree") -> None:
        """Take over what the queues of the same names have used lately."""
        for name, state in self.states.items():
            if name in before.states:
                state.recent = dict(before.states[name].recent)
                state.stands_alone(state.lonely)

    def remember(self, leaf: QueueState, pool: str, recent_milli: int, now_ms: int) -> None:
        """Say what half-life average a leaf's use of a pool comes to, where it was not seen happening."""
        for state in leaf.path():
            before = 0 if state is leaf else state.recent.get(pool, (0, now_ms))[0]
            state.recent[pool] = (before + recent_milli, now_ms)
            state.stands_alone(state.lonely)

    def _recount(self) -> None:
        """Work out `inner` and `effective` of every queue from what the leaves use."""
        deepest_first = sorted(self.states.values(), key=lambda one: -len(one.ancestry))
        for state in deepest_first:
            state.inner, state.effective = {}, {}
        for state in deepest_first:
            counted = state.inner if state.children else state.used
            for pool in {*counted, *state.floor}:
                state.effective[pool] = max(counted.get(pool, 0), state.floor.get(pool, 0))
                if state.parent is not None:
                    above = state.parent.inner
                    above[pool] = above.get(pool, 0) + state.effective[pool]

    @staticmethod
    def _raise_floors(state: QueueState) -> None:
        for pool in {*state.floor, *state.inner}:
            state.effective[pool] = max(state.inner.get(pool, 0), state.floor.get(pool, 0))
            state.unused[pool] = state.effective[pool]
            if state.parent is not None:
                above = state.parent.inner
                above[pool] = above.get(pool, 0) + state.effective[pool]

    def leaf(self, name: str) -> QueueState:
        """The leaf queue of that name. Raises UnknownQueue or QueueIsNotALeaf."""
        state = self.states.get(name)
        if state is None or state is self.root:
            leaves = sorted(name for name, one in self.states.items() if name and not one.children)
            raise UnknownQueue(field="queue", queue=name, known=", ".join(leaves[:20]) or "none")
        if state.children:
            below = ", ".join(sorted(child.name for child in state.children)[:20])
            raise QueueIsNotALeaf(field="queue", queue=name, known=below)
        return state

    def check_guarantees(self, capacities: dict[str, int]) -> None:
        """Refuse guarantees that could not all be honoured.

        Raises:
            UnknownModel: a quota of a pool no node belongs to.
            GuaranteeAboveCapacity: children are guaranteed more than their parent, or than there is.
        """
        for state in self.states.values():
            pools = {pool for child in state.children for pool in child.quotas}
            for pool in sorted(pools):
                if pool not in capacities:
                    known = ", ".join(sorted(capacities)) or "none"
                    raise UnknownModel(field=f"queues[{state.name!r}].quotas", model=pool, known=known)
                given = sum(child.quota(pool).guarantee_milli for child in state.children)
                there = capacities[pool] if state is self.root else state.quota(pool).guarantee_milli
                if given > there:
                    raise GuaranteeAboveCapacity(
                        field="guarantee_milli",
                        parent=state.name or "the root",
                        guaranteed_milli=given,
                        pool=pool,
                        capacity_milli=there,
                    )

    def refusal(
        self,
        leaf: QueueState,
        pool: str,
        milli: int,
        capacity_milli: int,
        *,
        opportunistic: bool,
        firm: Container[QueueState] = (),
    ) -> QueueState | None:
        """The lowest queue whose bound a claim of `milli` would exceed, or None when it may be made.

        An opportunistic claim may exceed borrow limits but for those of `firm` queues; what a sibling does not lend
        is kept from it as well.
        """
        delta = milli
        for state in leaf.path():
            before = state.effective.get(pool, 0)
            if state.parent is None:
                return state if before + delta > capacity_milli else None
            inner = state.inner.get(pool, 0) if state.children else state.used.get(pool, 0)
            bound = None if opportunistic and state not in firm else state.bound(pool)
            if bound is not None and inner + delta > bound:
                return state
            delta = max(inner + delta, state.floor.get(pool, 0)) - before
        return None

    def guarantees(self, leaf: QueueState, beside: QueueState, pool: str, milli: int) -> bool:
        """Whether some queue on the way to the leaf stays inside its guarantee with `milli` more.

        Guarantees of children are part of their parent's, so one level is enough. What children do not lend
        counts as used, and levels common to both leaves say nothing between them.
        """
        delta = milli
        for state in leaf.path():
            if state in beside.ancestry:
                return False
            inner = state.inner.get(pool, 0) if state.children else state.used.get(pool, 0)
            if pool in state.quotas and inner + delta <= state.quotas[pool].guarantee_milli:
                return True
            delta = max(inner + delta, state.floor.get(pool, 0)) - state.effective.get(pool, 0)
        return False

    @staticmethod
    def standing(leaf: QueueState, pool: str) -> tuple[bool, int]:
        """Whether it is inside its own guarantee; and its levels, as bits from the root on, beyond their bound."""
        exceeding = 0
        for depth, level in enumerate(leaf.ancestry):
            bound = level.bound(pool)
            if bound is not None and level.used.get(pool, 0) > bound:
                exceeding |= 1 << depth
        return 0 < leaf.used.get(pool, 0) <= leaf.quota(pool).guarantee_milli, exceeding

    def ever_allows(
        self, leaf: QueueState, pool: str, milli: int, capacity_milli: int, *, opportunistic: bool
    ) -> bool:
        """Whether all levels would allow the claim if nobody used anything; what is not lent stays kept."""
        if self.plain:
            return milli <= capacity_milli
        delta = milli
        for state in leaf.path():
            unused = state.unused.get(pool, 0)
            inner = sum(child.unused.get(pool, 0) for child in state.children)
            bound = None if opportunistic else state.bound(pool)
            if bound is not None and inner + delta > bound:
                return False
            if state.parent is None:
                return unused + delta <= capacity_milli
            delta = max(inner + delta, state.floor.get(pool, 0)) - unused
        return True

    def charge(self, leaf: QueueState, pool: str, milli: int, now_ms: int) -> None:
        """Record that the leaf uses `milli` more (or less, when negative) of a pool from now on."""
        if self.plain and leaf.lonely and leaf.parent is self.root:
            leaf.used[pool] = leaf.used.get(pool, 0) + milli
            self.root.used[pool] = leaf.used[pool]
            return
        for state in leaf.path():
            state.shift(pool, now_ms)
        self.suppose(leaf, pool, milli)

    def suppose(self, leaf: QueueState, pool: str, milli: int) -> None:
        """Count so much more as used as of now without a trace in any average; the opposite takes it back."""
        delta = milli
        for state in leaf.path():
            state.used[pool] = state.used.get(pool, 0) + milli
            if not state.lonely:
                state.row = None
            if self.plain:
                continue
            if state.children:
                state.inner[pool] = state.inner.get(pool, 0) + delta
            inner = state.inner[pool] if state.children else state.used[pool]
            effective = max(inner, state.floor.get(pool, 0))
            delta = effective - state.effective.get(pool, 0)
            state.effective[pool] = effective

    def count(self, leaf: QueueState, user: str, change: int) -> None:
        """Record a running job of a user more (1) or less (-1) wherever the leaf or a queue above has a limit."""
        for state in leaf.limits:
            state.running += change
            state.running_by_user[user] = state.running_by_user.get(user, 0) + change

    def full_for(self, leaf: QueueState, user: str) -> QueueState | None:
        """The lowest queue whose number of running jobs, in all or of this user, is at its limit."""
        for state in leaf.limits:
            most, most_user = state.queue.running_max, state.queue.user_running_max
            if most is not None and state.running >= most:
                return state
            if most_user is not None and state.running_by_user.get(user, 0) >= most_user:
                return state
        return None


def whole_devices(milli: int) -> str:
    """Milli-slots as a count of devices for people."""
    devices, rest = divmod(milli, WHOLE_MILLI)
    return f"{devices}.{rest:03d}".rstrip("0") if rest else str(devices)
