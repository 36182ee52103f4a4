"""What the cards' own sensors say, added up: work, energy, power, temperature, memory; of NVIDIA's through NVML.

Totals count from when the supervisor began to look and never go back. Invariant: what a card does not measure is None,
never zero. Of a shared card each run gets the part of its slots: sensors cannot tell tenants apart.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from scheduler.node.meter import DeviceTotals
from scheduler.node.protocol import SLOTS_PER_DEVICE, DeviceShare

_READ_MS: Final = 100
"""Between two readings; cards refresh theirs about as often."""


@dataclass(frozen=True, slots=True)
class Sensed:
    """One card.

    Attributes:
        index: of the card.
        busy_ms: time with work on it, so far.
        energy_mj: millijoules so far.
        power_mw: milliwatts now.
        temperature_c: degrees Celsius now.
        memory_bytes: of its own memory in use now.
    """

    index: int
    busy_ms: int
    energy_mj: int | None = None
    power_mw: int | None = None
    temperature_c: int | None = None
    memory_bytes: int | None = None


def share_totals(sensed: Iterable[Sensed], shares: Sequence[DeviceShare]) -> DeviceTotals | None:
    """What a run's part of its cards came to; None unless all of them have sensors."""
    by_index = {one.index: one for one in sensed}
    if not shares or any(share.index not in by_index for share in shares):
        return None
    parts = [(by_index[share.index], share.slot_hi - share.slot_lo) for share in shares]
    return DeviceTotals(
        sum(one.busy_ms * slots for one, slots in parts) // SLOTS_PER_DEVICE,
        _together([(one.energy_mj, slots) for one, slots in parts]),
        _together([(one.memory_bytes, slots) for one, slots in parts]),
    )


def _together(parts: Sequence[tuple[int | None, int]]) -> int | None:
    """Parts of so many slots of what cards measure; None unless all of them do."""
    known = [(value, slots) for value, slots in parts if value is not None]
    return (
        sum(value * slots for value, slots in known) // SLOTS_PER_DEVICE if len(known) == len(parts) else None
    )


class NvmlSensors:
    """The sensors of all cards NVML enumerates; a card that stops answering keeps its totals."""

    def __init__(self, nvml: Any) -> None:  # noqa: ANN401 - a module without types
        self._nvml = nvml
        self._handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        self._busy_permille_ms = [0] * len(self._handles)
        self._integrated_uj = [0] * len(self._handles)
        self._last: tuple[Sensed, ...] = tuple(Sensed(index, 0) for index in range(len(self._handles)))
        self._read_ms: int | None = None

    def read(self, now_ms: int) -> tuple[Sensed, ...]:
        """All cards as they are now, at most `_READ_MS` ago."""
        passed_ms = _READ_MS if self._read_ms is None else now_ms - self._read_ms
        if passed_ms >= _READ_MS:
            since_ms = 0 if self._read_ms is None else passed_ms
            self._read_ms = now_ms
            self._last = tuple(self._sense(one, since_ms) for one in self._last)
        return self._last

    def _sense(self, before: Sensed, passed_ms: int) -> Sensed:
        nvml, handle, index = self._nvml, self._handles[before.index], before.index
        used = self._ask(nvml.nvmlDeviceGetUtilizationRates, handle)
        power_mw = self._ask(nvml.nvmlDeviceGetPowerUsage, handle)
        energy_mj = self._ask(nvml.nvmlDeviceGetTotalEnergyConsumption, handle)
        self._busy_permille_ms[index] += 0 if used is None else used.gpu * 10 * passed_ms
        if (
            energy_mj is None and power_mw is not None
        ):  # cards before Volta count no energy, but know their power
            self._integrated_uj[index] += power_mw * passed_ms
            energy_mj = self._integrated_uj[index] // 1000
        if energy_mj is None:
            energy_mj = before.energy_mj
        temperature_c = self._ask(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU)
        memory = self._ask(nvml.nvmlDeviceGetMemoryInfo, handle)
        memory_bytes = None if memory is None else int(memory.used)
        busy_ms = self._busy_permille_ms[index] // 1000
        return Sensed(index, busy_ms, energy_mj, power_mw, temperature_c, memory_bytes)

    def _ask(self, question: Any, *arguments: object) -> Any:  # noqa: ANN401 - NVML's
        """An answer, or None of a card that has no such sensor or does not answer."""
        try:
            return question(*arguments)
        except self._nvml.NVMLError:
            return None
