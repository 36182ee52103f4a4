"""What can be checked here of a real installation: systemd's own judgement, and the shape of the compose file."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from compute_hub.cli.main import app
from compute_hub.settings import Settings
from tests.deploy.rules import ROOT

UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))
HARDENED = [unit for unit in UNITS if "node" not in unit.name]
COMMANDS = set(get_command(app).commands)  # type: ignore[attr-defined] # typer makes a group of it
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, Any] = COMPOSE["services"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The units with paths at which there are programs, as after an installation."""
    folder = tmp_path_factory.mktemp("systemd")
    program = folder / "bin" / "hub"
    program.parent.mkdir()
    shutil.copy("/bin/true", program)
    for unit in UNITS:
        text = unit.read_text(encoding="utf-8").replace("/opt/compute-hub/.venv/bin/hub", str(program))
        (folder / unit.name).write_text(text, encoding="utf-8")
    return folder


def test_systemd_finds_nothing_wrong_with_the_units(installed: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", *map(str, sorted(installed.glob("*.service")))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_everything_but_nodes_is_confined_to_systemds_content() -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--threshold=20", *map(str, HARDENED)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-500:]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_units_start_what_the_hub_has_and_bound_what_it_takes(unit: Path) -> None:
    text = unit.read_text(encoding="utf-8")
    (start,) = [line for line in text.splitlines() if line.startswith("ExecStart=")]
    words = start.split()
    if words[0].endswith("/hub"):
        assert words[1] in COMMANDS
        for variable in (word.partition("=")[0] for word in text.split() if word.startswith("HUB_")):
            assert variable == "HUB_CONFIG" or variable.removeprefix("HUB_").lower() in Settings.model_fields
    assert "Restart=always" in text
    assert "node" in unit.name or "MemoryMax=" in text


def test_the_api_may_read_what_belongs_to_the_users_of_jobs_and_has_no_other_right() -> None:
    unit = (ROOT / "deploy" / "systemd" / "hub-api.service").read_text(encoding="utf-8").splitlines()
    assert "AmbientCapabilities=CAP_DAC_READ_SEARCH" in unit
    assert "CapabilityBoundingSet=CAP_DAC_READ_SEARCH" in unit
    entrypoint = SERVICES["api"]["entrypoint"]
    assert entrypoint[0] == "setpriv"
    assert {"--reuid=hub", "--regid=hub", "--ambient-caps=-all,+dac_read_search"} <= set(entrypoint)


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_bounded_confined_and_asked_for_its_health(name: str) -> None:
    service = SERVICES[name]
    assert {"image", "mem_limit", "pids_limit"} <= set(service)
    assert "healthcheck" in service or name == "migrate"
    if name != "node":
        assert "no-new-privileges:true" in service["security_opt"]
        assert not service.get("privileged")
    for variable in service.get("environment", {}):
        if variable.startswith("HUB_") and service["image"] == "compute-hub":
            assert variable.removeprefix("HUB_").lower() in Settings.model_fields
    if "command" in service and service["image"] == "compute-hub":
        assert service["command"][0] in COMMANDS


def test_the_compose_file_follows_the_schema_of_the_compose_specification() -> None:
    schema = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run(
        [*schema, str(ROOT / "deploy" / "compose.yaml")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_services_refer_only_to_what_the_file_declares_and_what_is_there() -> None:
    for service in SERVICES.values():
        assert set(service.get("depends_on", {})) <= set(SERVICES)
        assert set(service.get("secrets", ())) <= set(COMPOSE["secrets"])
        for mount in service["volumes"]:
            source = mount.split(":")[0]
            assert source in COMPOSE["volumes"] or (ROOT / "deploy" / source).exists()


@pytest.mark.parametrize("name", ["prometheus.yml", "compose.yml"])
def test_promtool_is_content_with_the_scrape_configurations(name: str) -> None:
    file = ROOT / "deploy" / "prometheus" / name
    done = subprocess.run(
        ["promtool", "check", "config", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    jobs = {job["job_name"] for job in yaml.safe_load(file.read_text(encoding="utf-8"))["scrape_configs"]}
    assert jobs == {"hub-centre", "hub-api", "hub-controller", "hub-biller", "hub-keeper", "hub-node"}
