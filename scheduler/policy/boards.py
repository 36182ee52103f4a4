"""Scores of nodes, remembered per shape: a placement looks only at what changed since the shape last asked.

Invariant: an entry counts only while its node has the version it was scored at, so a stale score is never used.
"""

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Final

from scheduler.policy.capacity import Capacity, NodeState, Pool
from scheduler.policy.model import DeviceSlice
from scheduler.policy.scoring import AnyNode, BestFit, Fgd, Mix, Packing, Scorer, Usable
from scheduler.policy.settings import PlacementRule
from scheduler.policy.shapes import Shape

_Row = tuple[int, int, int, NodeState, tuple[DeviceSlice, ...]]

_SCORERS: Final[dict[PlacementRule, Callable[[Mix], Scorer]]] = {
    PlacementRule.DEFAULT: Usable,
    PlacementRule.FGD: Fgd,
    PlacementRule.BEST_FIT: BestFit,
    PlacementRule.PACKING: Packing,
    PlacementRule.RANDOM: AnyNode,
}


class _Board:
    __slots__ = ("cursor", "heap", "key")

    def __init__(self) -> None:
        self.heap: list[_Row] = []
        self.cursor = 0
        self.key: tuple[int, ...] = ()


class Boards:
    """One board per shape and set of pools."""

    def __init__(self, capacity: Capacity, rule: PlacementRule) -> None:
        self.mix = Mix()
        self._capacity = capacity
        self._rule = rule
        self._scorer: Scorer | None = None
        self._mix_version = -1
        self._boards: dict[tuple[Shape, tuple[str, ...]], _Board] = {}

    def find(
        self, shape: Shape, pools: tuple[Pool, ...], barred: tuple[int, ...]
    ) -> tuple[Pool, NodeState, tuple[DeviceSlice, ...]] | None:
        """The best node of these pools that is not barred, with the slices; None when none fits."""
        self._capacity.changes.wanted = True
        scorer = self._current_scorer()
        board = self._boards.get((shape, names := tuple([pool.model for pool in pools])))
        if board is None:
            board = self._boards[shape, names] = _Board()
        self._refresh(board, shape, pools, scorer)
        heap = board.heap
        aside: list[_Row] = []
        found: _Row | None = None
        while heap:
            row = heap[0]
            state = row[3]
            if row[2] != state.version:
                heappop(heap)
            elif barred[names.index(state.pool.model)] & state.bit:
                aside.append(heappop(heap))
            else:
                found = row
                break
        for row in aside:
            heappush(heap, row)
        return None if found is None else (found[3].pool, found[3], found[4])

    def _current_scorer(self) -> Scorer:
        if self._scorer is None or self._mix_version != self.mix.version:
            self._mix_version = self.mix.version
            self.mix.cpu_milli_max = max(
                (state.node.cpu_milli for state in self._capacity.nodes.values()), default=1
            )
            self._scorer = _SCORERS[self._rule](self.mix)
            self._boards.clear()
        return self._scorer

    def _refresh(self, board: _Board, shape: Shape, pools: tuple[Pool, ...], scorer: Scorer) -> None:
        changes = self._capacity.changes
        key = (self._capacity.shape_version, changes.epoch)
        states: list[NodeState]
        if board.key != key or len(board.heap) > 4 * len(self._capacity.nodes) + 64:
            board.key = key
            board.heap = []
            states = [state for pool in pools for state in pool.states]
        else:
            changed = dict.fromkeys(changes.log[board.cursor :])
            states = [state for state in changed if state.pool in pools]
        board.cursor = len(changes.log)
        rows = [
            (fit[0], state.ordinal, state.version, state, fit[1])
            for state in states
            if state.opened and (fit := scorer.fit(state, shape)) is not None
        ]
        if len(rows) > len(board.heap) // 4:
            board.heap += rows
            heapify(board.heap)
        else:
            for row in rows:
                heappush(board.heap, row)
