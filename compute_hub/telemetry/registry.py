"""Where a process's own metrics are registered; imports nothing heavy, so that every process can serve some."""

from typing import Final

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector
from prometheus_client.process_collector import ProcessCollector

REGISTRY: Final = CollectorRegistry(auto_describe=True)
ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)
GCCollector(registry=REGISTRY)

OWN_REGISTRY_PREFIXES: Final = ("process_", "python_")
