"""Many simulated nodes behind one actor on one Ray node: the way from the controller to them is the real one.

The actor lives in a worker process of the raylet. One call carries the syncs of all nodes, and one waiting call tells
of all changes. What ran is written line by line to a schedule, which knows nothing of the database.
"""

import threading
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import ray
import structlog
from ray.exceptions import GetTimeoutError, RayError

from kernel.clock import boot_id, boottime_ms, unix_ms, utc_now
from kernel.errors import HubError
from scheduler.controller.wakeups import Wakeups
from scheduler.node.protocol import OverRequest, Report, SyncRequest
from scheduler.node.simulated import Ended, SimulatedMachine, SimulatedNode
from scheduler.ray.courier import NAMESPACE
from scheduler.ray.start import keep_loopback

SCHEDULE_HEAD: Final = "job_id,attempt,node,device,slot_lo,slot_hi,start_ms,end_ms,end_reason"
"""The columns of the schedule, as `hub simulate` writes them, but in milliseconds of the host's CLOCK_BOOTTIME."""

_SYNC_S: Final = 10.0
_CHANGE_WAIT_MS: Final = 5000
_SOONEST_MS: Final = 20
_log = structlog.get_logger(__name__)


class SimulatedNodes:
    """The actor: all simulated nodes of a replay.

    Args:
        machines: the nodes.
        meter_interval_ms: of all.
        schedule: where the schedule is written.
    """

    def __init__(self, machines: Sequence[SimulatedMachine], meter_interval_ms: int, schedule: str) -> None:
        now_ms, host = boottime_ms(), boot_id()
        self._nodes = {
            machine.node: SimulatedNode(machine, host, f"{machine.node}-{now_ms}", now_ms, meter_interval_ms)
            for machine in machines
        }
        self._changed = threading.Condition()
        self._seen = dict.fromkeys(self._nodes, 0)
        self._schedule = Path(schedule)
        self._schedule.write_text(f"{SCHEDULE_HEAD}\n", encoding="utf-8")

    def sync(self, requests: dict[str, SyncRequest]) -> dict[str, Report]:
        """Sync all these nodes; one that refuses is left out."""
        reports: dict[str, Report] = {}
        with self._changed:
            self._advance()
            now_ms, now_unix_ms = boottime_ms(), unix_ms(utc_now())
            for name, request in requests.items():
                try:
                    reports[name], ended = self._nodes[name].sync(request, now_ms, now_unix_ms)
                except HubError:
                    continue
                self._write(name, ended)
                self._seen[name] = self._nodes[name].seq
            self._changed.notify_all()
        return reports

    def wait_for_change(self, timeout_ms: int) -> list[str]:
        """The nodes where something happened that no sync has told of; waits for the first."""
        until_ms = boottime_ms() + timeout_ms
        with self._changed:
            while True:
                self._advance()
                names = [name for name, node in self._nodes.items() if node.seq != self._seen[name]]
                now_ms = boottime_ms()
                if names or now_ms >= until_ms:
                    self._seen |= {name: self._nodes[name].seq for name in names}
                    return names
                due = [at for node in self._nodes.values() if (at := node.next_ms()) is not None]
                self._changed.wait(max(_SOONEST_MS, min([until_ms, *due]) - now_ms) / 1000)

    def _advance(self) -> None:
        now_ms, now_unix_ms = boottime_ms(), unix_ms(utc_now())
        for name, node in self._nodes.items():
            self._write(name, node.advance(now_ms, now_unix_ms))

    def _write(self, node: str, ended: Sequence[Ended]) -> None:
        if not ended:
            return
        with self._schedule.open("a", encoding="utf-8") as file:
            file.writelines(
                f"{one.spec.job_id},{one.spec.attempt},{node},{share.index},{share.slot_lo},{share.slot_hi},"
                f"{one.started_boot_ms},{one.ended_boot_ms},{one.reason}\n"
                for one in ended
                for share in one.spec.devices
            )


class SharedRayNode:
    """Implements `scheduler.controller.ports.Machines`: simulated nodes that share one Ray node.

    Args:
        address: of Ray's head.
        wakeups: is told of nodes where something changed.
        machines: the nodes.
        meter_interval_ms: of all.
        schedule: where the actor writes what ran.
    """

    def __init__(
        self,
        address: str,
        wakeups: Wakeups,
        machines: Sequence[SimulatedMachine],
        *,
        meter_interval_ms: int,
        schedule: Path,
    ) -> None:
        self._names = sorted(machine.node for machine in machines)
        self._wakeups = wakeups
        self._closing = threading.Event()
        keep_loopback()
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, configure_logging=False)
        self._actor: Any = (
            ray.remote(SimulatedNodes)
            .options(name="simulated-nodes", num_cpus=0, max_concurrency=4)
            .remote(tuple(machines), meter_interval_ms, str(schedule))
        )
        wakeups.watch("simulated-nodes", self._wait_once)

    def reachable(self) -> Sequence[str]:
        """All of them; the actor is asked when they are synced."""
        return self._names

    def sync(self, requests: Mapping[str, SyncRequest]) -> Mapping[str, Report]:
        """One call for all nodes; no report when the actor does not answer in time."""
        try:
            reports: dict[str, Report] = ray.get(self._actor.sync.remote(dict(requests)), timeout=_SYNC_S)
        except (RayError, GetTimeoutError) as error:
            _log.warning("simulated_nodes_away", error=str(error))
            return {}
        return reports

    def watch(self, names: Collection[str]) -> None:
        """The actor tells of all of them anyway."""

    def ask_ahead(self, requests: Mapping[str, OverRequest]) -> None:
        """The actor tells of every end."""

    def early(self, names: Collection[str]) -> Mapping[str, Report]:  # noqa: ARG002 - the port's
        """Nobody reports unasked."""
        return {}

    def close(self) -> None:
        """Leave the cluster; the actor ends with its driver."""
        self._closing.set()
        ray.shutdown()

    def _wait_once(self) -> str | None:
        if self._closing.is_set():
            return None
        for name in ray.get(
            self._actor.wait_for_change.remote(_CHANGE_WAIT_MS), timeout=_CHANGE_WAIT_MS / 1000 + 5
        ):
            self._wakeups.put(name)
        return None
