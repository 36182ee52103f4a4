"""Decides, purely, what a sync changes: which runs start, which stop, which are refused.

Rules, in this order: a run that ever started here never starts again; what is alive and desired or to go on has its
lease renewed; what else is alive is stopped; a desired run waits for stopping ones that hold its device
slots or directories, and is refused (for now) when a desired one holds them.
"""

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from scheduler.node.devices import overlap
from scheduler.node.protocol import Refusal, RunSpec


@dataclass(frozen=True, slots=True)
class Alive:
    """A run that has not ended: what it holds, and whether it is on its way out already."""

    spec: RunSpec
    stopping: bool


@dataclass(frozen=True, slots=True)
class Start:
    """A run to start once the runs `after` have ended."""

    spec: RunSpec
    after: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SyncPlan:
    """What to do; every list is in the order of the desired runs or of run ids."""

    start: tuple[Start, ...]
    renew: tuple[str, ...]
    stop: tuple[str, ...]
    refuse: tuple[Refusal, ...]


def plan_sync(
    desired: Iterable[RunSpec],
    alive: Mapping[str, Alive],
    known: AbstractSet[str],
    ended: AbstractSet[str],
    runs_max: int,
    going_on: Iterable[str] = (),
) -> SyncPlan:
    """What brings this node to what is desired.

    `known` are the ids of all runs that ever started here, `ended` those whose end is still reported; of those that are
    to go on only the ids are said, so that none can start by it.
    """
    wanted = {spec.run_id: spec for spec in desired}
    stay = dict.fromkeys((*wanted, *going_on))
    staying = {run_id: run.spec for run_id, run in alive.items() if run_id in stay and not run.stopping}
    leaving = {run_id: run.spec for run_id, run in alive.items() if run_id not in staying}
    start: list[Start] = []
    refuse: list[Refusal] = []
    for spec in wanted.values():
        if spec.run_id in alive or spec.run_id in ended:
            continue
        if spec.run_id in known:
            refuse.append(
                Refusal(spec.run_id, "already_ran", "This run ended here before; a run never starts twice.")
            )
            continue
        holders = sorted(run_id for run_id, other in staying.items() if _in_the_way(other, spec))
        if holders:
            reason = f"Run {holders[0]} holds its devices or directories."
            refuse.append(Refusal(spec.run_id, "taken", reason))
        elif len(staying) >= runs_max:
            refuse.append(Refusal(spec.run_id, "node_full", f"This node runs at most {runs_max} runs at once."))
        else:
            after = tuple(sorted(run_id for run_id, other in leaving.items() if _in_the_way(other, spec)))
            start.append(Start(spec, after))
            staying[spec.run_id] = spec
    return SyncPlan(
        start=tuple(start),
        renew=tuple(run_id for run_id in stay if run_id in alive),
        stop=tuple(sorted(run_id for run_id in alive if run_id not in stay)),
        refuse=tuple(refuse),
    )


def _in_the_way(other: RunSpec, spec: RunSpec) -> bool:
    shared = any(overlap(one, two) for one in other.devices for two in spec.devices)
    return shared or any(nested(one, two) for one in _directories(other) for two in _directories(spec))


def _directories(spec: RunSpec) -> tuple[str, ...]:
    return (spec.workspace, spec.checkpoints) if spec.checkpoints else (spec.workspace,)


def nested(one: str, other: str) -> bool:
    """Whether one directory is the other or lies in it."""
    return f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/")
