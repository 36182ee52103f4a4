"""The centre's metrics, read from the database when they are scraped: jobs, devices and the vouchers' money.

A collector that fails counts as failed in its own metric and takes nothing else with it.
"""

from collections.abc import Callable, Iterator
from typing import Final

import structlog
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import Engine, func, select, text
from sqlalchemy.orm import Session

from kernel.database import transaction
from scheduler.inventory import device_usage
from scheduler.tables import JobRow
from vouchers.reading import list_programmes, programme_totals

_MICROS: Final = 1_000_000
_log = structlog.get_logger(__name__)


def centre_registry(engine: Engine) -> CollectorRegistry:
    """A registry that reads the centre's state from the database at each scrape."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Centre(engine))
    return registry


def render(registry: CollectorRegistry) -> tuple[bytes, str]:
    """The exposition and its media type."""
    return generate_latest(registry), CONTENT_TYPE_PLAIN_0_0_4


class _Centre(Collector):
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._parts: dict[str, Callable[[Session], Iterator[Metric]]] = {
            "jobs": _jobs,
            "devices": _devices,
            "vouchers": _vouchers,
        }

    def collect(self) -> Iterator[Metric]:
        """All families; each part in its own transaction."""
        failed = GaugeMetricFamily(
            "hub_collector_failed",
            "Whether a part of this scrape could not be read (1) or could (0).",
            labels=["part"],
        )
        for name, part in self._parts.items():
            try:
                with transaction(self._engine) as session:
                    session.execute(text("SET TRANSACTION READ ONLY"))
                    families = list(part(session))
            except Exception as error:  # noqa: BLE001 - a broken part must not break the scrape
                _log.error("collector_failed", part=name, error=str(error))
                failed.add_metric([name], 1)
            else:
                failed.add_metric([name], 0)
                yield from families
        yield failed


def _jobs(session: Session) -> Iterator[Metric]:
    family = GaugeMetricFamily("hub_jobs", "Jobs by state; ended ones since the beginning.", labels=["state"])
    for state, count in session.execute(
        select(JobRow.state, func.count()).group_by(JobRow.state).order_by(JobRow.state)
    ):
        family.add_metric([state], count)
    yield family


def _devices(session: Session) -> Iterator[Metric]:
    total: dict[str, int] = {}
    allocated: dict[str, int] = {}
    for use in device_usage(session):
        total[use.model] = total.get(use.model, 0) + 1
        allocated[use.model] = allocated.get(use.model, 0) + use.allocated_milli
    installed = GaugeMetricFamily("hub_devices", "Accelerators installed.", labels=["model"])
    given_out = GaugeMetricFamily(
        "hub_devices_allocated", "Accelerators given out to jobs, fractions counted as such.", labels=["model"]
    )
    for model in sorted(total):
        installed.add_metric([model], total[model])
        given_out.add_metric([model], allocated[model] / 1000)
    yield installed
    yield given_out


def _vouchers(session: Session) -> Iterator[Metric]:
    columns = {
        "budget": "Money appropriated to a programme",
        "pool": "Money a programme can still issue",
        "issued": "Face value of vouchers issued",
        "held": "Voucher money set aside for jobs",
        "captured": "Voucher money captured for usage",
    }
    totals = [programme_totals(session, slug) for slug in list_programmes(session)]
    for column, meaning in columns.items():
        family = GaugeMetricFamily(f"hub_voucher_{column}_yuan", f"{meaning}, in yuan.", labels=["programme"])
        for row in totals:
            if row.asset == "CNY":
                family.add_metric([row.slug], getattr(row, column) / _MICROS)
        yield family
