"""Which fitting node a job gets where processors, memory or fractions make a difference; lower is better.

`Usable` is the default: it counts, over the shapes most asked for, how much of a node's accelerators could
still be sold in whole jobs given its processors and memory, and prefers the placement that destroys least of
it. It extends the fragmentation gradient of Weng et al. (USENIX ATC '23), kept here as `Fgd`, which asks
whether one more job fits where `Usable` asks how many do. `BestFit`, `Packing` and `AnyNode` are the usual
baselines.
"""

from bisect import bisect_right
from collections import Counter
from math import log
from typing import Final, Protocol

from scheduler.policy.capacity import NodeState
from scheduler.policy.model import WHOLE_MILLI, DeviceSlice
from scheduler.policy.placement import fraction_on
from scheduler.policy.shapes import Shape

Fit = tuple[int, tuple[DeviceSlice, ...]]
"""A score and the slices that earn it."""

Asked = tuple[int, int, int, int]
"""Processors, memory, devices and milli-slots per device of one node's part of a job."""


class Mix:
    """What has been asked for so far, and how often."""

    _FIRST = 64

    def __init__(self) -> None:
        self.counts: Counter[Asked] = Counter()
        self.version = 0
        self.cpu_milli_max = 1
        self._seen = 0
        self._settle_at = self._FIRST

    def see(self, shape: Shape) -> None:
        """Count a job; the version grows each time as many again have been seen."""
        self.counts[shape.cpu_milli, shape.memory_mib, shape.devices_per_node, shape.slots_milli] += 1
        self._seen += 1
        if self._seen >= self._settle_at:
            self._settle_at = 2 * self._seen
            self.version += 1

    def typical(self, share_percent: int, *, with_devices: bool) -> list[tuple[Asked, int]]:
        """The most asked-for parts that together make up the share, with their counts."""
        rows = [(count, asked) for asked, count in self.counts.items() if asked[2] or not with_devices]
        rows.sort(key=lambda row: (-row[0], row[1]))
        total = sum(count for count, _ in rows)
        chosen: list[tuple[Asked, int]] = []
        covered = 0
        for count, asked in rows:
            if covered * 100 >= share_percent * total:
                break
            covered += count
            chosen.append((asked, count))
        return chosen


class Scorer(Protocol):
    """A placement rule."""

    def fit(self, state: NodeState, shape: Shape) -> Fit | None:
        """The best way to put the shape on the node, or None when it does not fit there."""


def left_on(state: NodeState) -> tuple[int, ...]:
    """Free milli-slots of every healthy device, least first."""
    whole = state.whole_mask.bit_count()
    if not state.shared:
        return (WHOLE_MILLI,) * whole
    shared = [
        WHOLE_MILLI - sum(hi - lo for lo, hi in taken)
        for device, taken in state.shared.items()
        if state.healthy_mask >> device & 1
    ]
    return (*sorted(left for left in shared if left), *((WHOLE_MILLI,) * whole))


def left_after(left: tuple[int, ...], slots_milli: int, devices: int, chosen_left: int) -> tuple[int, ...]:
    """The same after taking `slots_milli` on `devices` devices that each had `chosen_left`."""
    after = list(left)
    for _ in range(devices):
        after.remove(chosen_left)
        if chosen_left > slots_milli:
            after.append(chosen_left - slots_milli)
    after.sort()
    return tuple(after)


def _tightest(state: NodeState, shape: Shape) -> tuple[tuple[DeviceSlice, ...], tuple[int, ...]] | None:
    """The slices on the fullest devices that hold them, and what is left on the node's devices afterwards."""
    if state.cpu_free_milli < shape.cpu_milli or state.memory_free_mib < shape.memory_mib:
        return None
    placed = fraction_on(state, shape)
    if placed is None:
        return None
    after = list(left_on(state))
    for device, lo, hi in placed[1]:
        taken = state.shared.get(device, ())
        free = WHOLE_MILLI - sum(end - start for start, end in taken)
        after.remove(free)
        if free > hi - lo:
            after.append(free - (hi - lo))
    after.sort()
    return placed[1], tuple(after)


class Usable:
    """Destroy least of what could still be sold; then keep whole nodes, then spend spare processors first."""

    _SHARE_PERCENT = 60
    _DEVICES_WEIGHT = 200
    _CPU_WEIGHT = 300

    def __init__(self, mix: Mix) -> None:
        self._types = mix.typical(self._SHARE_PERCENT, with_devices=True)
        self._weight = max(1, sum(count for _, count in self._types))
        self._cpu_max = max(1, mix.cpu_milli_max)
        self._parts = sorted({asked[2:] for asked, _ in self._types})
        rows = [(self._parts.index(asked[2:]), asked, count) for asked, count in self._types]
        self._rows = [
            (part, asked[0] or 1, asked[1] or 1, count * asked[2] * asked[3]) for part, asked, count in rows
        ]
        self._fits: dict[tuple[int, ...], list[int]] = {}

    def fit(self, state: NodeState, shape: Shape) -> Fit | None:
        """See Scorer."""
        placed = _tightest(state, shape)
        if placed is None:
            return None
        slices, after = placed
        cpu = state.cpu_free_milli - shape.cpu_milli
        memory = state.memory_free_mib - shape.memory_mib
        kept = self._usable(cpu, memory, after)
        if state.score_version != state.version or state.scored_by is not self:
            state.score_version = state.version
            state.scored_by = self
            left = left_on(state)
            state.score = self._usable(state.cpu_free_milli, state.memory_free_mib, left)
        total = sum(after)
        lost = state.score - kept - self._weight * shape.devices_per_node * shape.slots_milli
        tie = self._DEVICES_WEIGHT * total // (8 * WHOLE_MILLI) - self._CPU_WEIGHT * cpu // self._cpu_max
        return lost + self._weight * tie, slices

    def _usable(self, cpu_milli: int, memory_mib: int, left: tuple[int, ...]) -> int:
        fits = self._fits.get(left)
        if fits is None:
            fits = self._fits[left] = [_parts_on(left, devices, slots) for devices, slots in self._parts]
        usable = 0
        for part, cpu, memory, worth in self._rows:
            most = fits[part]
            if most:
                usable += min(most, cpu_milli // cpu, memory_mib // memory) * worth
        return usable


def _parts_on(left: tuple[int, ...], devices: int, slots_milli: int) -> int:
    """How many parts of a shape the devices hold."""
    if slots_milli < WHOLE_MILLI and devices == 1:
        return sum(free // slots_milli for free in left)
    return sum(1 for free in left if free >= slots_milli) // devices


_SIGMOID_STEPS: Final = [round(1_000_000 * log(step / (100 - step))) for step in range(1, 100)]


class Fgd:
    """Fragmentation gradient descent: the free devices a typical job cannot use, weighed by popularity.

    As published: scores in a hundred steps of a sigmoid, ties to the first node; a typical job is known by
    processors and devices, not by memory.
    """

    _SHARE_PERCENT = 95

    def __init__(self, mix: Mix) -> None:
        merged: Counter[tuple[int, int, int]] = Counter()
        for (cpu, _, devices, slots), count in mix.counts.items():
            merged[cpu, devices, slots if devices else 0] += count
        rows = sorted(merged.items(), key=lambda row: (-row[1], row[0]))
        total, covered = sum(merged.values()), 0
        groups: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for (cpu, devices, slots), count in rows:
            if covered * 100 >= self._SHARE_PERCENT * total:
                break
            covered += count
            groups.setdefault((devices, slots), []).append((cpu, count))
        self._weight = max(1, covered)
        self._groups = []
        for (devices, slots), members in sorted(groups.items()):
            members.sort()
            sums = [0]
            for _, count in members:
                sums.append(sums[-1] + count)
            self._groups.append((devices, slots, [cpu for cpu, _ in members], sums))
        self._cache: dict[tuple[int, ...], list[tuple[int, bool]]] = {}

    def fit(self, state: NodeState, shape: Shape) -> Fit | None:
        """See Scorer."""
        if state.cpu_free_milli < shape.cpu_milli or state.memory_free_mib < shape.memory_mib:
            return None
        placed = fraction_on(state, shape)
        if placed is None:
            return None
        left = left_on(state)
        before = self._fragments(state.cpu_free_milli, left)
        cpu = state.cpu_free_milli - shape.cpu_milli
        if shape.whole or not shape.devices_per_node:
            after = left[: len(left) - shape.devices_per_node]
            return self._steps(before - self._fragments(cpu, after)), placed[1]
        best: tuple[int, int] | None = None
        for free in sorted(set(left)):
            if free < shape.slots_milli or left.count(free) < shape.devices_per_node:
                continue
            after = left_after(left, shape.slots_milli, shape.devices_per_node, free)
            score = self._steps(before - self._fragments(cpu, after))
            if best is None or score < best[0]:
                best = (score, free)
        if best is None:
            return self._steps(0), placed[1]
        return best[0], _slices_with(state, shape, best[1]) or placed[1]

    def _steps(self, gain: int) -> int:
        return -bisect_right(_SIGMOID_STEPS, gain * 1000 // self._weight)

    def _fragments(self, cpu_milli: int, left: tuple[int, ...]) -> int:
        """What of the free milli-slots a job drawn from the mix cannot use, times the mix's weight."""
        total = sum(left)
        known = self._cache.get(left)
        if known is None:
            known = self._cache[left] = [
                (
                    sum(free for free in left if free < slots),
                    devices > 0 and sum(1 for free in left if free >= slots) >= devices,
                )
                for devices, slots, _, _ in self._groups
            ]
        lost = 0
        for (small, fits), (_, _, cpus, sums) in zip(known, self._groups, strict=True):
            if fits:
                able = sums[bisect_right(cpus, cpu_milli)]
                lost += able * small + (sums[-1] - able) * total
            else:
                lost += sums[-1] * total
        return lost


def _slices_with(state: NodeState, shape: Shape, free: int) -> tuple[DeviceSlice, ...] | None:
    """Slices on devices that have exactly so much free."""
    found: list[DeviceSlice] = []
    slots = shape.slots_milli
    if free == WHOLE_MILLI:
        mask = state.whole_mask
        while mask and len(found) < shape.devices_per_node:
            bit = mask & -mask
            mask ^= bit
            found.append(DeviceSlice(bit.bit_length() - 1, 0, slots))
    for device in sorted(state.shared):
        taken = state.shared[device]
        if len(found) == shape.devices_per_node:
            break
        if WHOLE_MILLI - sum(hi - lo for lo, hi in taken) == free:
            hole = state.hole_for(device, slots)
            if hole is not None:
                found.append(DeviceSlice(device, hole[1], hole[1] + slots))
    return tuple(found) if len(found) == shape.devices_per_node else None


class BestFit:
    """Least left over: processors and devices, each as a share of the largest node's."""

    def __init__(self, mix: Mix) -> None:
        self._cpu_max = max(1, mix.cpu_milli_max)

    def fit(self, state: NodeState, shape: Shape) -> Fit | None:
        """See Scorer."""
        placed = _tightest(state, shape)
        if placed is None:
            return None
        cpu = (state.cpu_free_milli - shape.cpu_milli) * 1_000_000 // self._cpu_max
        return cpu + sum(placed[1]) * 1_000_000 // (8 * WHOLE_MILLI), placed[0]


class Packing:
    """Shared devices first, then used nodes, then idle ones; the fullest first within each."""

    def __init__(self, mix: Mix) -> None:
        del mix

    def fit(self, state: NodeState, shape: Shape) -> Fit | None:
        """See Scorer."""
        placed = _tightest(state, shape)
        if placed is None:
            return None
        opens = sum(1 for piece in placed[0] if state.whole_mask >> piece.device & 1)
        grade = 2 if not state.busy_mask else min(1, opens)
        return grade * 1_000_000 + sum(placed[1]), placed[0]


class AnyNode:
    """A node drawn at random, repeatably."""

    def __init__(self, mix: Mix) -> None:
        del mix
        self._drawn = 1

    def fit(self, state: NodeState, shape: Shape) -> Fit | None:
        """See Scorer."""
        placed = _tightest(state, shape)
        if placed is None:
            return None
        self._drawn = self._drawn * 6_364_136_223_846_793_005 + 1_442_695_040_888_963_407 & (1 << 64) - 1
        return self._drawn >> 33, placed[0]
