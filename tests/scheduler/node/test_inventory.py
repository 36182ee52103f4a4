"""What a node says of its devices: from its configuration, from health files, and from what NVIDIA's library reads."""

import ctypes
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pynvml  # type: ignore[import-untyped]
import pytest

from scheduler.node.config import Device, InventorySource, MalformedMessage, NodeConfig, Vendor, read_config
from scheduler.node.inventory import ConfiguredInventory, device_status, open_inventory
from scheduler.node.meter import DeviceTotals, start_meter
from scheduler.node.nvml import NvmlInventory, NvmlMissing, Reading, model_name, verdict
from scheduler.node.protocol import DeviceShare, RunSpec
from scheduler.node.sensing import NvmlSensors, Sensed, share_totals

LIBRARY = Path(__file__).with_name("nvml_stand_in.c")


@pytest.mark.parametrize(
    ("reading", "word", "reason"),
    [
        (Reading(), "healthy", ""),
        (Reading(ecc_errors=0, pending=False, remap_failed=False), "healthy", ""),
        (Reading(xid=13), "healthy", ""),  # the program's own fault
        (Reading(ecc_errors=2), "unhealthy", "2 uncorrected ECC errors"),
        (Reading(pending=True), "unhealthy", "broken rows of its memory wait for a reset to be replaced"),
        (Reading(xid=79, ecc_errors=2), "failed", "critical error XID 79"),
        (
            Reading(remap_failed=True, pending=True),
            "failed",
            "a broken row of its memory could not be replaced",
        ),
        (Reading(lost=True), "failed", "it no longer answers"),
    ],
)
def test_a_reading_becomes_a_verdict_with_its_reason(reading: Reading, word: str, reason: str) -> None:
    assert verdict(reading) == (word, reason)


@pytest.mark.parametrize(
    ("product", "model"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100-SXM4-80GB"),
        ("NVIDIA GeForce RTX 4090", "GeForce-RTX-4090"),
        ("Tesla T4", "Tesla-T4"),
        ("  ", "unknown"),
    ],
)
def test_a_product_name_becomes_a_model(product: str, model: str) -> None:
    assert model_name(product) == model


@pytest.mark.parametrize(
    ("text", "healthy", "failed", "reason"),
    [
        (None, True, False, ""),
        ("healthy\n", True, False, ""),
        ("unhealthy too hot\n", False, False, "too hot"),
        ("failed", False, True, "its health file gives no reason"),
        ("fine", False, False, "begins with none of healthy, unhealthy, failed"),
        ("", False, False, "begins with none of healthy, unhealthy, failed"),
    ],
)
def test_a_health_file_decides_and_one_that_cannot_be_read_speaks_against_the_device(
    tmp_path: Path, text: str | None, reason: str, *, healthy: bool, failed: bool
) -> None:
    file = tmp_path / "0"
    if text is not None:
        file.write_text(text)
    status = device_status(Device(0, "sim-a", health_file=str(file)))
    assert (status.healthy, status.failed) == (healthy, failed)
    assert status.reason.removeprefix(f"{file} ") == reason


def test_a_device_whose_device_node_is_missing_is_unhealthy() -> None:
    (status,) = ConfiguredInventory((Device(0, "sim-a", files=("/dev/hub-nowhere",)),)).health(0)
    assert (status.healthy, status.reason) == (False, "/dev/hub-nowhere: No such file or directory")


def test_a_node_without_the_library_says_so_and_does_not_start() -> None:
    config = NodeConfig("n", "h", "/s", "/w", "/r", inventory=InventorySource.NVML)
    with pytest.raises(NvmlMissing, match=r"config\.inventory: NVML cannot be used"):
        open_inventory(config)


def test_devices_come_from_one_source(tmp_path: Path) -> None:
    file = tmp_path / "node.json"
    text = '{"node": "n", "host_id": "h", "state_directory": "/s", "workspace_root": "/w", "host_run_directory": "/r",'
    file.write_text(text + '"inventory": "nvml", "devices": [{"index": 0, "model": "m"}]}')
    with pytest.raises(MalformedMessage, match="come from nvml; leave them out"):
        read_config(file)


class Cards:
    """The two cards of a library that has NVML's C interface; `break_card` changes what they read."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def break_card(self, card: int, **readings: int) -> None:
        for name, value in readings.items():
            self._library.stand_in_set(card, name.encode(), value)


@pytest.fixture
def cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cards]:
    built = tmp_path / "libnvidia-ml.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(built), str(LIBRARY)], check=True)
    library = ctypes.CDLL(str(built))
    monkeypatch.setattr(pynvml, "nvmlLib", library)
    pynvml._nvmlGetFunctionPointer_cache.clear()  # noqa: SLF001 - it would remember another library's functions
    yield Cards(library)
    pynvml._nvmlGetFunctionPointer_cache.clear()  # noqa: SLF001 - nor may this one's be


def test_cards_are_listed_and_watched_through_nvmls_c_interface(cards: Cards) -> None:
    inventory = NvmlInventory(pynvml)
    assert [(d.index, d.model, d.vendor, d.files[0]) for d in inventory.devices()] == [
        (0, "A100-SXM4-80GB", Vendor.NVIDIA, "/dev/nvidia3"),
        (1, "A100-SXM4-80GB", Vendor.NVIDIA, "/dev/nvidia4"),
    ]
    assert [status.healthy for status in inventory.health(0)] == [True, True]
    cards.break_card(0, ecc=2)
    assert inventory.health(4999)[0].healthy  # read at most every five seconds
    assert inventory.health(5000)[0].reason == "2 uncorrected ECC errors"
    cards.break_card(1, xid=79)
    first, second = inventory.health(10_000)
    assert (first.failed, second.failed, second.reason) == (False, True, "critical error XID 79")
    cards.break_card(0, ecc=0, pending=1)
    assert inventory.health(15_000)[0].reason == "broken rows of its memory wait for a reset to be replaced"
    cards.break_card(0, lost=1)
    first, second = inventory.health(20_000)
    assert (first.failed, first.reason) == (True, "it no longer answers")
    assert second.reason == "critical error XID 79"  # once seen, it stays until the driver is loaded anew


def test_work_and_energy_of_cards_add_up_from_their_sensors(cards: Cards) -> None:
    sensors = NvmlSensors(pynvml)
    cards.break_card(0, busy=100, power=300_000, energy=5_000_000, memory=7_000)
    cards.break_card(1, busy=50, power=80_000)  # counts no energy
    first = sensors.read(10_000)
    assert [(s.busy_ms, s.energy_mj, s.power_mw, s.temperature_c, s.memory_bytes) for s in first] == [
        (0, 5_000_000, 300_000, 61, 7_000),
        (0, 0, 80_000, 61, 0),
    ]
    assert sensors.read(10_099) == first  # read at most every tenth of a second
    cards.break_card(0, energy=5_600_000)
    later = sensors.read(12_000)
    assert [(s.busy_ms, s.energy_mj) for s in later] == [(2000, 5_600_000), (1000, 160_000)]
    cards.break_card(1, lost=1)
    assert sensors.read(13_000)[1] == Sensed(1, 1000, 160_000)


def test_a_run_gets_the_part_of_its_slots_and_nothing_where_a_card_has_no_sensor() -> None:
    sensed = [
        Sensed(0, 2000, 600_000, memory_bytes=70),
        Sensed(1, 1000, 160_000, memory_bytes=6),
        Sensed(2, 500),
    ]
    assert share_totals(sensed, [DeviceShare(0), DeviceShare(1, 0, 500)]) == DeviceTotals(2500, 680_000, 73)
    assert share_totals(sensed, [DeviceShare(0), DeviceShare(2)]) == DeviceTotals(2500, None)
    assert share_totals(sensed, [DeviceShare(0), DeviceShare(3)]) is None
    assert share_totals([], [DeviceShare(0)]) is None


def test_what_sensors_say_goes_into_the_records_between_which_it_was_said() -> None:
    spec = RunSpec("r", "j", "t", 1, ("x",), "/w", "/l", devices=(DeviceShare(0),))
    meter = start_meter(spec, boot_id="b", boot_ms=0, unix_ms=0, totals=DeviceTotals(100, 1000))
    meter, first = meter.read(1000, 10, 64, DeviceTotals(600, 4000, 9)).cut(final=False)
    meter, second = meter.read(2000, 20, 32, None).cut(final=False)
    _, last = meter.read(3000, 30, 96, DeviceTotals(900, 200, 11)).cut(final=True)  # the driver was loaded anew
    assert [
        (r.device_busy_ms, r.energy_mj, r.memory_bytes_max, r.device_memory_bytes_max)
        for r in (first, second, last)
    ] == [(500, 3000, 64, 9), (0, 0, 64, 9), (300, 0, 96, 11)]
    _, blind = start_meter(spec, boot_id="b", boot_ms=0, unix_ms=0).read(1000, 10).cut(final=True)
    assert (blind.device_busy_ms, blind.energy_mj, blind.device_memory_bytes_max) == (None, None, None)


def test_a_pipe_in_the_place_of_a_health_file_is_not_waited_for(tmp_path: Path) -> None:
    file = tmp_path / "health"
    os.mkfifo(file)
    assert not device_status(Device(0, "sim-a", health_file=str(file))).healthy
