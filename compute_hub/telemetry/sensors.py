"""What a node's process tells of its cards' sensors, where they have some."""

from collections.abc import Iterable
from typing import Final

from prometheus_client import Gauge

from compute_hub.telemetry.registry import REGISTRY
from scheduler.node.sensing import Sensed

POWER: Final = Gauge(
    "hub_device_power_watts",
    "Power of an accelerator now, by its sensor; served by its node, of cards that have one.",
    ("node", "device"),
    registry=REGISTRY,
)
TEMPERATURE: Final = Gauge(
    "hub_device_temperature_celsius",
    "Temperature of an accelerator now, by its sensor; served by its node, of cards that have one.",
    ("node", "device"),
    registry=REGISTRY,
)


def tell_sensed(node: str, sensed: Iterable[Sensed]) -> None:
    """Show what was read last; a card whose sensor falls silent is shown no more."""
    for one in sensed:
        _show(POWER, (node, str(one.index)), None if one.power_mw is None else one.power_mw / 1000)
        _show(TEMPERATURE, (node, str(one.index)), one.temperature_c)


def _show(gauge: Gauge, labels: tuple[str, str], value: float | None) -> None:
    gauge.labels(*labels).set(0 if value is None else value)
    if value is None:
        gauge.remove(*labels)
