"""Every metric of the hub: the centre's, read from the database, and each process's own.

The centre's state is served by the API at `/metrics`, by whichever worker answers: it says the same everywhere, so
one scrape of one address suffices. What a process counts of itself it serves on a port of its own (`serving.py`), so
several workers are several targets and no counter of one hides another's; that also keeps exemplars, which
prometheus-client's shared-file mode drops.
"""

from fractions import Fraction
from typing import Final

from sqlalchemy import Engine

from compute_hub.settings import Settings
from compute_hub.telemetry.centre import OWN_FAMILIES, Centre, Part
from compute_hub.telemetry.families import Family
from compute_hub.telemetry.parts.capacity import capacity
from compute_hub.telemetry.parts.keeping import keeping
from compute_hub.telemetry.parts.money import money
from compute_hub.telemetry.parts.queue import ended, queue
from compute_hub.telemetry.parts.tenants import tenants
from compute_hub.telemetry.parts.usage import metering, usage

MEDIA_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


def parts(peak_pflops: dict[str, tuple[str, Fraction]]) -> tuple[Part, ...]:
    """The parts of the centre's metrics, freshly made (they remember sums)."""
    return (
        capacity(peak_pflops),
        queue(),
        ended(),
        usage(peak_pflops),
        metering(),
        money(),
        tenants(),
        keeping(),
    )


def centre_metrics(settings: Settings, engine: Engine) -> Centre:
    """The centre's metrics on an engine of the application role."""
    return Centre(engine, parts(peaks(settings)))


def peaks(settings: Settings) -> dict[str, tuple[str, Fraction]]:
    """Precision and peak PFLOPS of one card, by model."""
    return {name: (model.precision, Fraction(model.tflops, 1000)) for name, model in settings.models.items()}


def centre_families() -> list[tuple[str, tuple[Family, ...]]]:
    """All families of the centre, by part, for the reference."""
    return [*((part.name, part.families) for part in parts({})), ("collector", OWN_FAMILIES)]
