"""Where a node's accelerators are known from: its configuration, or the vendor's library.

Two things are asked of a source: which devices there are, once at the start, and how they are, with every report.
Invariant: a device whose health cannot be read is unhealthy, never healthy.
"""

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

from scheduler.node.config import Device, InventorySource, NodeConfig
from scheduler.node.nvml import NvmlInventory, open_nvml
from scheduler.node.protocol import DeviceStatus
from scheduler.node.sensing import Sensed

_HEALTH_BYTES_MAX: Final = 1000
_HEALTH_WORDS: Final = ("healthy", "unhealthy", "failed")


class Inventory(Protocol):
    """A source of devices."""

    def devices(self) -> tuple[Device, ...]:
        """What there is; it does not change while the supervisor lives."""
        ...

    def health(self, now_ms: int) -> Sequence[DeviceStatus]:
        """How each device is. Answers at once, from what was last read where reading takes long."""
        ...

    def sensed(self, now_ms: int) -> Sequence[Sensed]:
        """What the devices' sensors say; of devices without sensors nothing."""
        ...


class ConfiguredInventory:
    """The devices of the configuration: healthy when their device nodes are there and their health file agrees."""

    def __init__(self, devices: tuple[Device, ...]) -> None:
        self._devices = devices

    def devices(self) -> tuple[Device, ...]:
        """As configured."""
        return self._devices

    def health(self, now_ms: int) -> Sequence[DeviceStatus]:  # noqa: ARG002 - files are read every time
        """As the files say now."""
        return tuple(map(device_status, self._devices))

    def sensed(self, now_ms: int) -> Sequence[Sensed]:  # noqa: ARG002 - a file has no sensors
        """Nothing: a configured device is known by name only."""
        return ()


def open_inventory(config: NodeConfig) -> Inventory:
    """The source the configuration names. Raises NvmlMissing when there is no such library."""
    if config.inventory is InventorySource.NVML:
        return NvmlInventory(open_nvml())
    return ConfiguredInventory(config.devices)


def device_status(device: Device) -> DeviceStatus:
    """A device is healthy when all its device nodes are device nodes and its health file, if it has one, says so."""
    missing = next(filter(None, map(_file_problem, device.files)), "")
    word, reason = ("unhealthy", missing) if missing else _told(device.health_file)
    return DeviceStatus(
        device.index,
        device.model,
        device.vendor,
        healthy=word == "healthy",
        reason=reason,
        failed=word == "failed",
    )


def _told(file: str) -> tuple[str, str]:
    """The first word of a health file and the reason behind it; a file that is not there has nothing to complain of."""
    if not file:
        return "healthy", ""
    try:
        # A pipe in its place must not be waited for: this is asked on the thread that renews leases.
        handle = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            text = os.read(handle, _HEALTH_BYTES_MAX).decode(errors="replace").strip()
        finally:
            os.close(handle)
    except FileNotFoundError:
        return "healthy", ""
    except OSError as error:
        return "unhealthy", f"{file}: {error.strerror}"
    word, _, reason = text.partition(" ")
    if word not in _HEALTH_WORDS:
        return "unhealthy", f"{file} begins with none of {', '.join(_HEALTH_WORDS)}"
    return word, "" if word == "healthy" else reason.strip() or "its health file gives no reason"


def _file_problem(file: str) -> str:
    try:
        mode = Path(file).stat().st_mode
    except OSError as error:
        return f"{file}: {error.strerror}"
    return "" if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else f"{file} is not a device node"
