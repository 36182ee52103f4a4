"""What becomes of runs whose supervisor died: they died with it, and are buried when the next one starts.

Each is reported as ended `supervisor_lost` and metered exactly to the last reading that reached the disk. One whose
processes nobody can end (they wait in the kernel) is over, too, but keeps its devices from others until they are gone,
however often the supervisor starts anew.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from kernel.clock import boottime_ms
from scheduler.node.cgroups import RunCgroup
from scheduler.node.errors import DeviceHeld
from scheduler.node.processes import unkillable
from scheduler.node.protocol import EndReason, RunState
from scheduler.node.spool import Line, Spool, ended_line, held_line, usage_line


class Leftover:
    """A run of an earlier supervisor whose processes were killed and do not end."""

    def __init__(self, run_id: str, devices: tuple[int, ...], cgroup: RunCgroup) -> None:
        self.run_id = run_id
        self.devices = devices
        self._cgroup = cgroup
        self._since_ms = boottime_ms()

    def why(self) -> str:
        """Why its devices cannot be used; empty when its processes are gone."""
        self._cgroup.kill()
        if self._cgroup.remove():
            return ""
        pid = next(self._cgroup.members(), None)
        who = "A process of an earlier run" if pid is None else f"Process {unkillable(pid)}"
        return f"{who} cannot be ended"

    async def leaves(self) -> None:
        """Nobody waits for it. Raises DeviceHeld unless it is gone."""
        if why := self.why():
            seconds = (boottime_ms() - self._since_ms) // 1000
            raise DeviceHeld(why=why, run=f"run {self.run_id} of an earlier supervisor", seconds=seconds)


class Leftovers:
    """All of them; asked with every report."""

    def __init__(self, runs: Iterable[Leftover]) -> None:
        self._runs = list(runs)

    def held(self) -> dict[int, str]:
        """By device, why it cannot be used."""
        held: dict[int, str] = {}
        for run in tuple(self._runs):
            if why := run.why():
                held |= dict.fromkeys(run.devices, why)
            else:
                self._runs.remove(run)
        return held

    def on(self, devices: Iterable[int]) -> Iterator[Leftover]:
        """Those that hold one of these devices."""
        wanted = set(devices)
        return (run for run in self._runs if wanted.intersection(run.devices))


def bury(spool: Spool, stuck: Mapping[str, RunCgroup], *, wall_ms: int, boot_ms: int) -> Leftovers:
    """Write the last record and the end of every run the journal believes alive, and what those that are stuck hold.

    `stuck` are, by run, the groups that could not be emptied. Raises OSError when the journal cannot be written.
    """
    memory = spool.memory
    held = {run_id: devices for run_id, devices in memory.held.items() if run_id in stuck}
    lines: list[Line] = []
    for run_id, run in memory.open.items():
        if run_id in stuck:
            held[run_id] = tuple(share.index for share in run.meter.devices)
        _, record = run.meter.cut(final=True)
        ended = replace(
            run.status,
            state=RunState.ENDED,
            ended_unix_ms=wall_ms,
            ended_boot_ms=boot_ms,
            end_reason=EndReason.SUPERVISOR_LOST,
            reason="The node's supervisor ended without stopping it; it ended at the same moment.",
        )
        lines += [usage_line(record), ended_line(ended)]
    if held != memory.held:
        lines.append(held_line(held))
    if lines:
        spool.append(*lines)
    return Leftovers(Leftover(run_id, devices, stuck[run_id]) for run_id, devices in sorted(held.items()))
