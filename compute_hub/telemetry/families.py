"""What a metric is called and means, declared once: the exposition and docs/metrics.md both come from here.

Invariants: a sample's labels are those its family declares; no two samples of a family share their labels; every
label has a bounded set of values. Names follow Prometheus: base units (seconds, bytes, yuan), counters end in
`_total`, units stand last before that.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

LABEL_CHARACTERS_MAX: Final = 120
"""Longer values are cut; what then coincides is added up."""

OTHER: Final = "other"
"""What values beyond a label's bound are counted under."""


@dataclass(frozen=True)
class Family:
    """One metric: its name, what it means, its labels, and whether it only ever grows."""

    name: str
    help: str
    labels: tuple[str, ...] = ()
    kind: Literal["gauge", "counter"] = "gauge"

    def __post_init__(self) -> None:
        """Counters, and only they, end in `_total`."""
        if self.name.endswith("_total") != (self.kind == "counter"):
            raise ValueError(f"{self.name}: counters end in _total, gauges do not")

    def __call__(self, value: float, *labels: str) -> "Sample":
        """One sample; its labels in the order of the declaration."""
        if len(labels) != len(self.labels):
            raise ValueError(f"{self.name} takes the labels {self.labels}, got {labels}")
        return Sample(self, labels, value)


@dataclass(frozen=True, slots=True)
class Sample:
    """One value of a family."""

    family: Family
    labels: tuple[str, ...]
    value: float


class Bounded:
    """The values a label may take: the first `limit` of them by name, everything beyond is OTHER."""

    def __init__(self, values: Iterable[str], limit: int) -> None:
        self._values = frozenset(sorted(set(values))[:limit])

    def __call__(self, value: str) -> str:
        """The value, or OTHER."""
        return value if value in self._values else OTHER


def exposition(families: Sequence[Family], samples: Iterable[Sample]) -> bytes:
    """The text format of these families, in their order. Raises ValueError for a sample of another family."""
    metrics = {family.name: (_metric(family), dict[tuple[str, ...], float]()) for family in families}
    for sample in samples:
        if sample.family.name not in metrics:
            raise ValueError(f"{sample.family.name} is not declared by the part that reads it")
        labels = tuple([_cut(label) for label in sample.labels])
        values = metrics[sample.family.name][1]
        values[labels] = values.get(labels, 0) + sample.value
    for metric, values in metrics.values():
        for labels, value in values.items():
            metric.add_metric(labels, value)
    return generate_latest(_Fixed([metric for metric, _ in metrics.values()]))


def _metric(family: Family) -> GaugeMetricFamily | CounterMetricFamily:
    make = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    return make(family.name, family.help, labels=family.labels)


def _cut(label: str) -> str:
    return label if len(label) <= LABEL_CHARACTERS_MAX else label[: LABEL_CHARACTERS_MAX - 1] + "…"


class _Fixed(CollectorRegistry):
    """A registry of metrics that are already made."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        super().__init__(auto_describe=False)
        self.register(_Made(metrics))


class _Made(Collector):
    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        """As they were made."""
        yield from self._metrics
