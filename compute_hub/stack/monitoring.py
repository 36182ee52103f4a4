"""Prometheus, Alertmanager and Grafana beside the hub on one machine, provisioned from deploy/.

Prometheus is told where the API is and reads where the other processes are from the files they announce themselves
in. All three listen on the loopback address only, and keep what they write below the state directory.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from compute_hub.settings import Settings, inherited_environment
from compute_hub.telemetry.serving import targets_directory
from kernel.errors import HubError

_DEPLOY: Final = Path(__file__).resolve().parents[2] / "deploy"
_HOST: Final = "127.0.0.1"
_RETENTION: Final = "400d"
"""A year of vouchers, and a month to close it."""

_GRAFANA_HOMES: Final = (Path("/usr/share/grafana"), Path("/usr/local/share/grafana"))


class NoPrometheus(HubError):
    """Monitoring was asked for and Prometheus is not installed."""

    sentence = "There is no program called prometheus; install it (Debian: apt-get install prometheus)."


@dataclass(frozen=True)
class Program:
    """A program to run beside the hub, and where it says that it is ready."""

    name: str
    argv: tuple[str, ...]
    environment: dict[str, str]
    ready_url: str
    address: str

    def is_ready(self) -> bool:
        """Whether the program says that it is ready. Raises httpx.TransportError while it does not listen."""
        return httpx.get(self.ready_url).is_success


def monitoring(settings: Settings) -> Iterator[Program]:
    """What to start: Prometheus always, the other two where they are installed. Raises NoPrometheus."""
    prometheus = shutil.which("prometheus")
    if prometheus is None:
        raise NoPrometheus
    directory = settings.state_directory.resolve() / "monitoring"
    directory.mkdir(parents=True, exist_ok=True)
    targets_directory(settings).mkdir(parents=True, exist_ok=True)
    alertmanager = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
    yield _prometheus(settings, prometheus, directory, alerting=alertmanager is not None)
    if alertmanager is not None:
        yield _alertmanager(settings, alertmanager, directory)
    grafana = shutil.which("grafana")
    home = next((home for home in _GRAFANA_HOMES if home.is_dir()), None)
    if grafana is not None and home is not None:
        yield _grafana(settings, grafana, home, directory)


def prometheus_configuration(settings: Settings, *, alerting: bool) -> dict[str, Any]:
    """What Prometheus scrapes, how often, and the rules it evaluates."""
    interval = f"{settings.scrape_interval_ms}ms"
    alertmanagers = [{"static_configs": [{"targets": [f"{_HOST}:{settings.alertmanager_port}"]}]}]
    return {
        "global": {
            "scrape_interval": interval,
            "scrape_timeout": f"{min(settings.scrape_interval_ms, 10_000)}ms",
            "evaluation_interval": interval,
        },
        "rule_files": [f"{settings.rules_directory.resolve()}/*.rules.yml"],
        "alerting": {"alertmanagers": alertmanagers if alerting else []},
        "scrape_configs": [
            {
                "job_name": "hub-centre",
                "static_configs": [{"targets": [f"{settings.api_host}:{settings.api_port}"]}],
            },
            {
                "job_name": "hub-processes",
                "file_sd_configs": [
                    {"files": [f"{targets_directory(settings)}/*.json"], "refresh_interval": interval}
                ],
            },
        ],
    }


def _prometheus(settings: Settings, program: str, directory: Path, *, alerting: bool) -> Program:
    file = directory / "prometheus.yml"
    # JSON is YAML, and needs nobody to quote it.
    file.write_text(
        json.dumps(prometheus_configuration(settings, alerting=alerting), indent=2), encoding="utf-8"
    )
    address = f"{_HOST}:{settings.prometheus_port}"
    argv = (
        program,
        f"--config.file={file}",
        f"--storage.tsdb.path={directory / 'prometheus'}",
        f"--storage.tsdb.retention.time={_RETENTION}",
        "--enable-feature=exemplar-storage",
        f"--web.listen-address={address}",
        "--log.level=warn",
    )
    return Program(
        "prometheus", argv, inherited_environment(), f"http://{address}/-/ready", f"http://{address}"
    )


def _alertmanager(settings: Settings, program: str, directory: Path) -> Program:
    address = f"{_HOST}:{settings.alertmanager_port}"
    argv = (
        program,
        f"--config.file={_DEPLOY / 'prometheus' / 'alertmanager.yml'}",
        f"--storage.path={directory / 'alertmanager'}",
        f"--web.listen-address={address}",
        "--cluster.listen-address=",
        "--log.level=warn",
    )
    return Program(
        "alertmanager", argv, inherited_environment(), f"http://{address}/-/ready", f"http://{address}"
    )


def _grafana(settings: Settings, program: str, home: Path, directory: Path) -> Program:
    address = f"{_HOST}:{settings.grafana_port}"
    environment = inherited_environment(
        GF_PATHS_DATA=str(directory / "grafana"),
        GF_PATHS_LOGS=str(directory / "grafana" / "logs"),
        GF_PATHS_PLUGINS=str(directory / "grafana" / "plugins"),
        GF_PATHS_PROVISIONING=str(_DEPLOY / "grafana" / "provisioning"),
        GF_SERVER_HTTP_ADDR=_HOST,
        GF_SERVER_HTTP_PORT=str(settings.grafana_port),
        GF_ANALYTICS_REPORTING_ENABLED="false",
        GF_ANALYTICS_CHECK_FOR_UPDATES="false",
        HUB_PROMETHEUS_URL=f"http://{_HOST}:{settings.prometheus_port}",
        HUB_DASHBOARDS=str(_DEPLOY / "grafana" / "dashboards"),
    )
    argv = (program, "server", "--homepath", str(home))
    return Program("grafana", argv, environment, f"http://{address}/api/health", f"http://{address}")
