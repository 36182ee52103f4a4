"""Where a hub's processor time goes: of every process that this one has started, by the part of the hub it belongs to.

Read twice, the difference is what was done in between. A child that has ended is in the account of whoever waited for
it: what a supervisor's children took is that of the jobs and their sandboxes, from the fork on. The kernel counts short
processes by ticks, and neither those nobody waited for nor its own work in taking namespaces down: what all processors
did but idle is more, and says how near they are to their end.
"""

from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

import psutil

from kernel.clock import boottime_ms

_MARKS: Final = (
    ("scheduler.node.supervisor", "supervisor"),
    ("scheduler.ray.courier", "courier"),
    ("ray::NodeAgent", "agent"),
    ("/raylet/raylet", "raylet"),
    ("gcs_server", "Ray's head"),
    ("hub api", "API"),
    ("hub controller", "controller"),
    ("hub biller", "biller"),
    ("hub node", "node"),
)

_CLIENT: Final = "client"
_MACHINE: Final = "all processors of the machine"

Account = Mapping[str, float]
"""Milliseconds by part."""


def read(backends: Mapping[int, str]) -> Account:
    """What each part has used until now.

    Args:
        backends: whom a database process works for, by its pid.
    """
    used: defaultdict[str, float] = defaultdict(float)
    for process in (this := psutil.Process(), *this.children(recursive=True)):
        with suppress(psutil.Error):
            own, system, children, children_system = process.cpu_times()[:4]
            part = _CLIENT if process == this else _part(process, backends)
            used[part] += 1000 * (own + system)
            if process != this:
                used[f"{part}: children"] += 1000 * (children + children_system)
    idle = psutil.cpu_times()
    used[_MACHINE] = (psutil.cpu_count() or 1) * boottime_ms() - 1000 * (idle.idle + idle.iowait)
    return used


def per_job(before: Account, after: Account, jobs: int) -> dict[str, float]:
    """Milliseconds for each job by part, the largest first; what is below a hundredth is left out."""
    used = {part: round((after[part] - before.get(part, 0)) / jobs, 2) for part in after}
    return {part: ms for part, ms in sorted(used.items(), key=lambda one: (-one[1], one[0])) if ms > 0}


def table(used: Mapping[str, float]) -> str:
    """For a reader: a line for each part, and the sum without the benchmark's own client."""
    lines = [f"{part:<40} {ms:8.2f} ms" for part, ms in used.items()]
    return "\n".join([*lines, f"{'sum without the client':<40} {total(used):8.2f} ms"])


def total(used: Mapping[str, float]) -> float:
    """What the hub used, as far as its processes account for it."""
    return round(sum(ms for part, ms in used.items() if part not in {_CLIENT, _MACHINE}), 1)


def machine(used: Mapping[str, float]) -> float:
    """What all processors did but idle, for the hub, its client and whatever else runs there."""
    return round(used.get(_MACHINE, 0), 1)


def _part(process: psutil.Process, backends: Mapping[int, str]) -> str:
    command = " ".join(process.cmdline())
    if process.pid in backends:
        return f"PostgreSQL for {backends[process.pid]}"
    if "postgres" in command:
        return "PostgreSQL, rest"
    for mark, part in _MARKS:
        if mark in command:
            return part
    return "Ray, rest" if "ray" in command else "rest"
