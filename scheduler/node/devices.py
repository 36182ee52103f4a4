"""Accelerators of the node: which variable shows them to a job, and which files they are.

Invariant: a job sees the indices allocated to it and no other; vendors it got nothing from see an empty list.
"""

from collections.abc import Iterable
from typing import Final

from scheduler.node.config import Device, Vendor
from scheduler.node.protocol import SLOTS_PER_DEVICE, DeviceShare

VISIBLE_DEVICES: Final = {
    Vendor.NVIDIA: "CUDA_VISIBLE_DEVICES",
    Vendor.ASCEND: "ASCEND_RT_VISIBLE_DEVICES",
    Vendor.CAMBRICON: "MLU_VISIBLE_DEVICES",
}


def shown_as(device: Device) -> Vendor:
    """The vendor whose variable shows the device."""
    return device.imitates if device.vendor is Vendor.SIMULATED else device.vendor


def device_environment(devices: Iterable[Device], shares: Iterable[DeviceShare]) -> dict[str, str]:
    """The variables that show a run its devices, and hide the others."""
    by_index = {device.index: device for device in devices}
    ordered = sorted(shares, key=lambda share: (share.index, share.slot_lo))
    indices = sorted({share.index for share in ordered})
    # A simulated device that imitates nobody is shown by our own variables alone.
    vendors = {shown_as(device) for device in by_index.values()} - {Vendor.SIMULATED}
    env = dict.fromkeys((VISIBLE_DEVICES[vendor] for vendor in sorted(vendors)), "")
    for vendor, variable in VISIBLE_DEVICES.items():
        mine = [str(index) for index in indices if shown_as(by_index[index]) is vendor]
        if mine:
            env[variable] = ",".join(mine)
    env["HUB_DEVICES"] = ",".join(map(str, indices))
    env["HUB_DEVICE_SLOTS"] = ",".join(f"{s.index}:{s.slot_lo}-{s.slot_hi}" for s in ordered)
    return env


def device_files(devices: Iterable[Device], shares: Iterable[DeviceShare]) -> tuple[str, ...]:
    """The device nodes a run may open, each once."""
    allocated = {share.index for share in shares}
    files = [file for device in devices if device.index in allocated for file in device.files]
    return tuple(dict.fromkeys(files))


def overlap(one: DeviceShare, other: DeviceShare) -> bool:
    """Whether two shares have a slot in common."""
    return one.index == other.index and one.slot_lo < other.slot_hi and other.slot_lo < one.slot_hi


def problem_with(share: DeviceShare, devices: Iterable[Device]) -> str:
    """Why a share cannot be meant on this node; empty if it can."""
    if share.index not in {device.index for device in devices}:
        return f"this node has no device {share.index}"
    if not 0 <= share.slot_lo < share.slot_hi <= SLOTS_PER_DEVICE:
        return f"slots [{share.slot_lo}, {share.slot_hi}) are not within [0, {SLOTS_PER_DEVICE})"
    return ""
