"""The rules of deploy/prometheus and what they may name."""

import re
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.metrics import MetricWrapperBase

from compute_hub.telemetry.metrics import centre_families
from compute_hub.telemetry.reference import DECLARING
from compute_hub.telemetry.registry import REGISTRY

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
RULE_FILES = sorted(PROMETHEUS.glob("*.rules.yml"))


def rules() -> list[dict[str, Any]]:
    """All recording and alerting rules."""
    return [
        rule
        for file in RULE_FILES
        for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]
        for rule in group["rules"]
    ]


def alerts() -> dict[str, dict[str, Any]]:
    """Alerting rules by name."""
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def declared() -> set[str]:
    """Every series name the hub exposes or a rule records."""
    assert DECLARING
    names = {family.name for _, families in centre_families() for family in families}
    for collector in REGISTRY._collector_to_names:  # noqa: SLF001 - no public way to ask
        if isinstance(collector, MetricWrapperBase):
            (metric,) = collector.describe()
            suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}
            names |= {metric.name + suffix for suffix in suffixes.get(metric.type, ("",))}
    return names | {rule["record"] for rule in rules() if "record" in rule}


def named_in(expression: str) -> set[str]:
    """The hub's series an expression names."""
    without_strings = re.sub(r'"[^"]*"', '""', expression)
    return set(re.findall(r"\b(?:[a-z]+:)?hub[_:][a-z0-9_:]+", without_strings))
