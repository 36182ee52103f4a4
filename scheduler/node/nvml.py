"""NVIDIA's devices through NVML: which there are, and how they are, from readings to a verdict.

The library is asked through `nvidia-ml-py`, which loads libnvidia-ml.so.1 of the driver; only nodes configured for it
need it. Readings are taken at most every few seconds. What NVML cannot tell of a device (some cards count no ECC
errors) says nothing against it; a device that no longer answers has failed.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kernel.errors import HubError
from scheduler.node.config import Device, Vendor
from scheduler.node.protocol import DeviceStatus
from scheduler.node.sensing import NvmlSensors, Sensed

READ_MS: Final = 5000
"""Between two readings."""

FATAL_XIDS: Final = frozenset({48, 62, 64, 74, 79, 95, 119, 120, 140, 143})
"""Critical errors after which work on the card cannot go on (NVIDIA, "XID Errors", r555: reset or replace the GPU):
double-bit ECC, micro-controller halt, failed row remap, NVLink, fallen off the bus, uncontained ECC, GSP."""

_COMMON_FILES: Final = ("/dev/nvidiactl", "/dev/nvidia-uvm")
_EVENTS_MAX: Final = 64


class NvmlMissing(HubError):
    """The configuration says nvml and the driver's library cannot be used."""

    sentence = (
        "config.inventory: NVML cannot be used ({why}). Install its driver, or name the devices in the file."
    )


@dataclass(frozen=True, slots=True)
class Reading:
    """What NVML says of one device; None where the card does not count it.

    Attributes:
        ecc_errors: uncorrected errors since the driver was loaded.
        pending: rows to be remapped or pages to be retired at the next reset.
        remap_failed: whether a row could not be replaced.
        xid: the last critical error seen, 0 for none.
        lost: whether the device no longer answers.
    """

    ecc_errors: int | None = None
    pending: bool | None = None
    remap_failed: bool | None = None
    xid: int = 0
    lost: bool = False


def verdict(reading: Reading) -> tuple[str, str]:
    """`healthy`, `unhealthy` (finish what runs) or `failed` (what runs cannot go on), and why."""
    if reading.lost:
        return "failed", "it no longer answers"
    if reading.xid in FATAL_XIDS:
        return "failed", f"critical error XID {reading.xid}"
    if reading.remap_failed:
        return "failed", "a broken row of its memory could not be replaced"
    if reading.ecc_errors:
        return "unhealthy", f"{reading.ecc_errors} uncorrected ECC errors"
    if reading.pending:
        return "unhealthy", "broken rows of its memory wait for a reset to be replaced"
    return "healthy", ""


def model_name(name: str) -> str:
    """NVML's product name as a model of the hub: `NVIDIA A100-SXM4-80GB` is `A100-SXM4-80GB`."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name.strip()).strip("-._")
    return plain.removeprefix("NVIDIA-")[:63] or "unknown"


class NvmlInventory:
    """The devices NVML enumerates, in its order; each index is NVML's, which is what CUDA sees in PCI order."""

    def __init__(self, nvml: Any) -> None:  # noqa: ANN401 - a module without types
        self._nvml = nvml
        self._handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        self._devices = tuple(self._describe(index, handle) for index, handle in enumerate(self._handles))
        self._sensors = NvmlSensors(nvml)
        self._events = self._listen()
        self._xids: dict[str, int] = {}
        self._said: Sequence[DeviceStatus] = ()
        self._read_again_ms = 0

    def devices(self) -> tuple[Device, ...]:
        """What NVML counted at the start."""
        return self._devices

    def health(self, now_ms: int) -> Sequence[DeviceStatus]:
        """As last read, at most `READ_MS` ago."""
        if now_ms >= self._read_again_ms:
            self._read_again_ms = now_ms + READ_MS
            self._hear()
            self._said = tuple(map(self._status, self._devices, self._handles))
        return self._said

    def sensed(self, now_ms: int) -> Sequence[Sensed]:
        """What the cards' sensors say."""
        return self._sensors.read(now_ms)

    def _describe(self, index: int, handle: object) -> Device:
        nvml = self._nvml
        minor = nvml.nvmlDeviceGetMinorNumber(handle)
        common = (file for file in _COMMON_FILES if Path(file).exists())
        model = model_name(nvml.nvmlDeviceGetName(handle))
        return Device(index, model, vendor=Vendor.NVIDIA, files=(f"/dev/nvidia{minor}", *common))

    def _status(self, device: Device, handle: object) -> DeviceStatus:
        word, reason = verdict(self._read(handle))
        healthy, failed = word == "healthy", word == "failed"
        return DeviceStatus(device.index, device.model, device.vendor, healthy, reason, failed)

    def _read(self, handle: object) -> Reading:
        nvml = self._nvml
        try:
            uuid = nvml.nvmlDeviceGetUUID(handle)
            remapped = self._ask(nvml.nvmlDeviceGetRemappedRows, handle)
            retired = self._ask(nvml.nvmlDeviceGetRetiredPagesPendingStatus, handle)
            kind, span = nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
            errors = self._ask(nvml.nvmlDeviceGetTotalEccErrors, handle, kind, span)
        except nvml.NVMLError:
            return Reading(lost=True)
        _, _, waiting, broken = remapped or (0, 0, 0, 0)
        return Reading(errors, bool(waiting or retired), bool(broken), self._xids.get(uuid, 0))

    def _ask(self, question: Any, *arguments: object) -> Any:  # noqa: ANN401 - NVML's
        """An answer, or None of a card that does not count this."""
        try:
            return question(*arguments)
        except self._nvml.NVMLError_NotSupported:
            return None

    def _listen(self) -> object | None:
        """Ask to be told of critical errors; cards that tell of none are asked for their counts only."""
        nvml = self._nvml
        try:
            events = nvml.nvmlEventSetCreate()
        except nvml.NVMLError:
            return None
        for handle in self._handles:
            self._ask_quietly(nvml.nvmlDeviceRegisterEvents, handle, nvml.nvmlEventTypeXidCriticalError, events)
        return events  # type: ignore[no-any-return] # the library has no types

    def _hear(self) -> None:
        """Take in the critical errors since the last time, without waiting for any."""
        if self._events is None:
            return
        for _ in range(_EVENTS_MAX):
            event = self._ask_quietly(self._nvml.nvmlEventSetWait_v2, self._events, 0)
            if event is None:
                return
            uuid = self._ask_quietly(self._nvml.nvmlDeviceGetUUID, event.device)
            if uuid is not None and self._xids.get(uuid, 0) not in FATAL_XIDS:
                self._xids[uuid] = int(event.eventData)

    def _ask_quietly(self, question: Any, *arguments: object) -> Any:  # noqa: ANN401 - NVML's
        try:
            return question(*arguments)
        except self._nvml.NVMLError:
            return None


def open_nvml() -> Any:  # noqa: ANN401 - a module without types
    """The library, ready to be asked. Raises NvmlMissing."""
    import pynvml  # type: ignore[import-untyped]  # noqa: PLC0415 - only nodes configured for it need it

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise NvmlMissing(why=str(error)) from error
    return pynvml
