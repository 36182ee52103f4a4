"""docs/metrics.md, made from the declarations. `python -m compute_hub.telemetry` prints it; a test keeps it true."""

from collections.abc import Iterable

from prometheus_client.metrics import MetricWrapperBase

from compute_hub.telemetry import instruments, sensors
from compute_hub.telemetry.metrics import centre_families
from compute_hub.telemetry.registry import OWN_REGISTRY_PREFIXES, REGISTRY

DECLARING = (instruments, sensors)
"""Once imported, what they declare is registered."""

_HEAD = """# Metrics

Made by `python -m compute_hub.telemetry > docs/metrics.md`; change the declarations, not this file.

The **centre's state** is read from the database and served by the API at `/metrics`. Every API process says the same,
so Prometheus asks one address. **What a process counts of itself** is served on a port of its own (`metrics_port`; 0
means any free one) and announced in `<state directory>/metrics/*.json`, which Prometheus's `file_sd_configs` reads.

Money is in yuan, time in seconds, sizes in bytes, card time in card-seconds (one whole card for one second).
Enterprises are labelled by their unified social credit code; `hub_tenant_info` has their names. No label ever holds a
job. Labels with many values are bounded (64 models, 4,096 nodes, 2,000 enterprises, 200 programmes); what is beyond is
added up as `other`. Values longer than 120 characters are cut.

## The four utilisations

Always kept apart, each with its own denominator; only the first can exceed 100 %. The recording rules of
`deploy/prometheus/recording.rules.yml` divide them.

| | numerator | denominator |
|---|---|---|
| sold rate | `hub_devices_sold` | `hub_devices` (all states) |
| allocation rate | `hub_devices_allocated`, mean over the time | `hub_devices{state="available"}`, mean over the time |
| busy rate | `hub_busy_card_seconds_total` | `hub_used_card_seconds_total` |
| effective rate | `hub_delivered_pflop_seconds_total` | `hub_peak_pflops{state="available"}` × time |
"""


def reference() -> str:
    """The whole page."""
    lines = [_HEAD]
    for part, families in centre_families():
        lines += [f"## The centre: {part}\n", *_table((f.name, f.kind, f.labels, f.help) for f in families), ""]
    lines += ["## Each process of itself\n", *_table(sorted(_own())), ""]
    lines.append(
        "Besides, prometheus-client's own families about the process and the Python runtime: `process_*`, `python_*`.\n"
    )
    return "\n".join(lines)


def _own() -> Iterable[tuple[str, str, tuple[str, ...], str]]:
    for collector in REGISTRY._collector_to_names:  # noqa: SLF001 - no public way to ask for what is registered
        if not isinstance(collector, MetricWrapperBase):
            continue
        (metric,) = collector.describe()
        name = f"{metric.name}_total" if metric.type == "counter" else metric.name
        if not name.startswith(OWN_REGISTRY_PREFIXES):
            yield name, metric.type, tuple(collector._labelnames), metric.documentation  # noqa: SLF001 - the same


def _table(rows: Iterable[tuple[str, str, tuple[str, ...], str]]) -> Iterable[str]:
    yield "| name | kind | labels | meaning |"
    yield "|---|---|---|---|"
    for name, kind, labels, meaning in rows:
        yield f"| `{name}` | {kind} | {', '.join(labels) or '–'} | {meaning} |"
