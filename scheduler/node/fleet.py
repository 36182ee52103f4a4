"""All runs of one node: obeys syncs, keeps time, reports.

Invariants: a lower epoch than one obeyed before is refused; a usage record is cut only together with its line
in the journal; what is reported as ended or used is on disk.
"""

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kernel.clock import boottime_ms
from scheduler.node.config import NodeConfig
from scheduler.node.deadman import MARGIN_MS, DeadMansTimer
from scheduler.node.disk_turns import DiskTurns
from scheduler.node.errors import DeviceHeld, StaleEpoch
from scheduler.node.fitness import Fitness
from scheduler.node.inventory import Inventory
from scheduler.node.launching import Launcher
from scheduler.node.portions import portion
from scheduler.node.protocol import (
    PROTOCOL_VERSION,
    UNAVAILABLE,
    Change,
    DeviceStatus,
    EndReason,
    Hello,
    Isolation,
    Over,
    OverRequest,
    Report,
    Spanning,
    SyncRequest,
    WaitRequest,
)
from scheduler.node.reconcile import Alive, plan_sync
from scheduler.node.recovery import Leftovers
from scheduler.node.run import NEVER_MS, Run, Surroundings
from scheduler.node.spool import Line, Spool, acknowledged_line, epoch_line, meter_line, usage_line
from scheduler.node.watching import LOOK_MS, DiskAlarm, Order, free_bytes

if TYPE_CHECKING:
    from scheduler.node.meter import Meter

_TICK_MS_MAX: Final = 1000
_TICK_MS_MIN: Final = 5
_WAIT_MS_MAX: Final = 60_000


class Fleet:
    """The runs of this node.

    Args:
        instance: a name of this start of the supervisor, for those who compare sequence numbers.
    """

    def __init__(
        self, config: NodeConfig, boot_id: str, instance: str, spool: Spool, launcher: Launcher,
        isolation: Isolation, spanning: Spanning, pid: int, inventory: Inventory, leftovers: Leftovers,
    ) -> None:  # fmt: skip
        self._config = config
        self._spool = spool
        self._isolation = isolation
        self._spanning = spanning
        self._inventory = inventory
        self._leftovers = leftovers
        self._hello = Hello(config.node, config.host_id, boot_id, instance, PROTOCOL_VERSION, pid, isolation)
        self._runs: dict[str, Run] = {}
        self._seq = 0
        self._number = 0
        self._turn = 0
        self._began_ms = boottime_ms()
        self._waiting: set[asyncio.Event] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._deadman = DeadMansTimer()
        self._fitness = Fitness(launcher.trial, self._changed)
        self._around = Surroundings(
            config, boot_id, spool, launcher, self._changed, self._spool_failed, inventory, self._fitness
        )
        self._closing = False
        self._workspace_root = Path(config.workspace_root)
        limits = config.limits
        self._alarm = DiskAlarm(limits.workspace_reserve_bytes, limits.workspace_step_bytes)
        self._turns = DiskTurns(self._workspace_root, config.node)
        self._looking: asyncio.TimerHandle | None = None
        self._set_meters(boottime_ms())

    def hello(self) -> Hello:
        """Who we are."""
        return self._hello

    def sync(self, request: SyncRequest) -> Report:
        """Obey the controller and report. Raises StaleEpoch, OSError when the journal cannot be written."""
        self._obey_epoch(request.epoch)
        self._forget_acknowledged(request)
        now_ms = boottime_ms()
        mine = request.is_for(self._hello.instance, self._began_ms, now_ms)
        if not mine or request.number < self._number:
            return self._report(())
        as_of_ms = now_ms if request.as_of_boot_ms is None else request.as_of_boot_ms
        lease_until_ms = as_of_ms + request.lease_ms
        self._number = request.number
        memory = self._spool.memory
        alive = {run_id: Alive(run.spec, run.stopping) for run_id, run in self._runs.items()}
        plan = plan_sync(
            () if self._closing else request.desired,
            alive, memory.known.keys(), memory.ended.keys(), self._config.limits.runs,
            () if self._closing else request.going_on,
        )  # fmt: skip
        for run_id in plan.stop:
            run = self._runs[run_id]
            run.stop(EndReason.STOPPED, "It was no longer wanted.", run.spec.grace_ms)
        for run in self._runs.values():  # of those on their way out, too: their grace ends with it
            run.lease_until_ms = lease_until_ms
        for run_id in plan.renew:
            if run_id in request.notices:
                self._runs[run_id].notify(request.notices[run_id])
        if not self._runs:
            self._set_meters(boottime_ms())
        for start in plan.start:
            before = self._leftovers.on(share.index for share in start.spec.devices)
            run = Run(start.spec, self._around, (*(self._runs[run_id] for run_id in start.after), *before))
            run.lease_until_ms = lease_until_ms
            self._runs[start.spec.run_id] = run
            run.begin()
        self._arm()
        if self._runs and self._looking is None:
            self._look_at_disk()
        return self._report(plan.refuse)

    async def wait(self, request: WaitRequest) -> Change:
        """Return as soon as the sequence number is beyond `after_seq`, or differs because it began anew."""
        if self._seq == request.after_seq:
            event = asyncio.Event()
            self._waiting.add(event)
            try:
                async with asyncio.timeout(min(request.timeout_ms, _WAIT_MS_MAX) / 1000):
                    await event.wait()
            except TimeoutError:
                pass
            finally:
                self._waiting.discard(event)
        return Change(self._seq, self._hello.instance)

    async def sync_when_over(self, request: OverRequest) -> Over:
        """Sync as soon as none of these runs lives, or never did, as far as is known here. Raises what `sync` does."""
        try:
            async with asyncio.timeout(min(request.timeout_ms, _WAIT_MS_MAX) / 1000):
                for run in [self._runs[run_id] for run_id in request.runs if run_id in self._runs]:
                    await run.ended.wait()
        except TimeoutError:
            return Over(None)
        return Over(self.sync(request.sync))

    async def stop_all(self, hurry: asyncio.Event) -> None:
        """Stop every run in order and wait until all are gone; what is left of their graces ends when told to hurry."""
        self._closing = True
        runs = list(self._runs.values())
        for run in runs:
            run.stop(EndReason.STOPPED, "The node's supervisor was stopped.", run.spec.grace_ms)
        self._arm()
        hurrying = asyncio.get_running_loop().create_task(self._cut_short(runs, hurry))
        for run in runs:
            with suppress(
                DeviceHeld
            ):  # nobody can end it; it is left behind rather than waited for without end
                await run.leaves()
        hurrying.cancel()
        self._fitness.close()
        if self._timer is not None:
            self._timer.cancel()

    async def _cut_short(self, runs: Iterable[Run], hurry: asyncio.Event) -> None:
        await hurry.wait()
        for run in runs:
            run.cut_short(boottime_ms() + self._config.limits.lease_grace_ms)
        self._arm()

    def _report(self, refused: tuple[Any, ...]) -> Report:
        memory = self._spool.memory
        usage = portion(memory.usage.values(), self._turn)
        self._turn += 1
        return Report(
            node=self._config.node,
            host_id=self._config.host_id,
            boot_id=self._hello.boot_id,
            boot_ms=boottime_ms(),
            epoch_seen=memory.epoch,
            instance=self._hello.instance,
            seq=self._seq,
            runs=(
                *(run.status for run_id, run in self._runs.items() if run_id not in memory.ended),
                *memory.ended.values(),
            ),
            usage=usage,
            usage_pending=len(memory.usage) - len(usage),
            refused=refused,
            devices=tuple(self._devices(boottime_ms())),
            isolation=self._isolation_now(),
            labels=dict(self._config.labels),
            cpu_milli=self._config.cpu_milli,
            memory_mib=self._config.memory_mib,
            spanning=self._spanning,
        )

    def _isolation_now(self) -> Isolation:
        """As it was found at the start, unless nothing can be started just now."""
        if problem := self._fitness.problem:
            return Isolation(UNAVAILABLE, (problem, *self._isolation.weaknesses))
        return self._isolation

    def _devices(self, now_ms: int) -> Iterator[DeviceStatus]:
        """How each device is; one that a process holds which cannot be ended takes no new jobs."""
        held = self._leftovers.held()
        for run in self._runs.values():
            if why := run.held(now_ms):
                held |= dict.fromkeys((share.index for share in run.spec.devices), why)
        for device in self._inventory.health(now_ms):
            if device.healthy and device.index in held:
                yield replace(device, healthy=False, reason=f"{held[device.index]}.")
            else:
                yield device

    def _obey_epoch(self, epoch: int) -> None:
        seen = self._spool.memory.epoch
        if epoch < seen:
            raise StaleEpoch(epoch=epoch, seen=seen)
        if epoch > seen:
            self._spool.append(epoch_line(epoch))
            self._number = 0

    def _forget_acknowledged(self, request: SyncRequest) -> None:
        memory = self._spool.memory
        usage = [record_id for record_id in request.acknowledged_usage if record_id in memory.usage]
        exits = [run_id for run_id in request.acknowledged_exits if run_id in memory.ended]
        if usage or exits:
            self._spool.whenever(acknowledged_line(usage, exits))

    def _changed(self) -> None:
        self._seq += 1
        for event in self._waiting:
            event.set()
        for run_id in [run_id for run_id, run in self._runs.items() if run.ended.is_set()]:
            del self._runs[run_id]
        self._arm()

    def _spool_failed(self, error: OSError) -> None:
        self._spool.release_reserve()
        for run in list(self._runs.values()):
            sentence = f"The node can no longer write its journal: {error.strerror}."
            run.stop(EndReason.JOURNAL_FULL, sentence, self._config.limits.lease_grace_ms)

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._runs:
            self._tick()
        else:
            self._deadman.set(None)

    def _tick(self) -> None:
        now_ms = boottime_ms()
        due_ms = now_ms + _TICK_MS_MAX
        for run in list(self._runs.values()):
            due_ms = min(due_ms, run.lapse(now_ms), run.tick(now_ms))
        self._keep_meters(now_ms)
        by_ms = min((run.gone_by_ms for run in self._runs.values()), default=NEVER_MS)
        self._deadman.set(None if by_ms >= NEVER_MS else by_ms + MARGIN_MS)
        due_ms = min(due_ms, self._cut_at_ms, self._beat_at_ms)
        if self._timer is not None:
            self._timer.cancel()  # a run that ended during this tick has armed one, too
            self._timer = None
        if self._runs:
            delay_ms = max(due_ms - now_ms, _TICK_MS_MIN)
            self._timer = asyncio.get_running_loop().call_later(delay_ms / 1000, self._tick)

    def _look_at_disk(self) -> None:
        if not self._runs:
            self._looking = None
            self._turns.publish(0)
            return
        self._looking = asyncio.get_running_loop().call_later(LOOK_MS / 1000, self._look_at_disk)
        now_ms = boottime_ms()
        if self._turns.passed():
            self._alarm.spare(now_ms)
        order = self._alarm.look(now_ms, free_bytes(self._workspace_root))
        if order is Order.NOTHING:
            return
        staying = [run for run in self._runs.values() if not run.stopping]
        largest = max(staying, key=lambda run: (run.disk_bytes, run.spec.run_id), default=None)
        taken_bytes = 0 if largest is None else largest.disk_bytes
        if order is Order.COUNT:
            self._turns.publish(taken_bytes)
        elif largest is not None:
            self._stop_largest(largest, now_ms)
        for run in staying:
            run.count_again()
        self._tick()

    def _stop_largest(self, largest: Run, now_ms: int) -> None:
        """Stop the run that takes most of this node, unless another node that shares the disk has a larger one."""
        if not self._turns.take(largest.disk_bytes):
            self._alarm.spare(now_ms)
            return
        sentence = (
            f"The node's disk is nearly full and its workspace is the largest, {largest.disk_bytes} bytes."
        )
        largest.stop(EndReason.DISK_FULL, sentence, 0)
        self._turns.publish(0)

    def _set_meters(self, now_ms: int) -> None:
        self._cut_at_ms = now_ms + self._config.meter_interval_ms
        self._beat_at_ms = now_ms + self._config.heartbeat_ms

    def _keep_meters(self, now_ms: int) -> None:
        if now_ms < min(self._cut_at_ms, self._beat_at_ms):
            return
        metered = [run for run in self._runs.values() if run.read_meter(now_ms) is not None]
        lines: list[Line] = []
        meters: dict[str, Meter] = {}
        for run in metered:
            meter = run.meter
            assert meter is not None  # noqa: S101 - filtered just above
            if now_ms >= self._cut_at_ms:
                meter, record = meter.cut(final=False)
                lines.append(usage_line(record))
            meters[run.spec.run_id] = meter
        try:
            if meters:
                self._spool.append(*lines, meter_line(meters))
        except OSError as error:
            self._spool_failed(error)
        else:
            for run in metered:
                run.meter = meters[run.spec.run_id]
            self._spool.replenish()
        if now_ms >= self._cut_at_ms:
            self._cut_at_ms = now_ms + self._config.meter_interval_ms
        self._beat_at_ms = now_ms + self._config.heartbeat_ms
