from pathlib import Path

import pytest
from pydantic import ValidationError

from compute_hub.queues import live_queues
from compute_hub.settings import MalformedSettings, NoSettingsFile, Settings, settings
from scheduler.policy.model import Queue, Quota
from vouchers.domain.facts import CentreFacts

TENANT = "01a2025b-3b89-77ea-b621-cebd59c02566"


@pytest.fixture(autouse=True)
def _read_anew() -> None:
    settings.cache_clear()


def test_a_variable_overrides_the_file_and_the_file_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "hub.toml"
    file.write_text("tick_ms = 300\napi_port = 9000\n")
    monkeypatch.setenv("HUB_CONFIG", str(file))
    monkeypatch.setenv("HUB_API_PORT", "9001")
    chosen = settings()
    assert (chosen.tick_ms, chosen.api_port, chosen.leader_lease_ms) == (300, 9001, 2500)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("tick_ms = 'soon'\n", "HUB_TICK_MS"),
        ("tickms = 3\n", "HUB_TICKMS"),
        ("node_lease_ms = 2000\n", "leader_lease_ms"),
        ("default_environment = 'x'\n", "there is no environment 'x'; there are none"),
        ("[[nodes]]\nname = 'a b'\ndevices = []\n", "HUB_NODES__0__NAME"),
        ("[[queues]]\ntenant = 'somebody'\n", "HUB_QUEUES__0__TENANT"),
        (f"[[queues]]\ntenant = '{TENANT}'\n" * 2, "a tenant has one queue"),
        (f"[[queues]]\ntenant = '{TENANT}'\nquotas = {{X = {{guaranteed = -1}}}}\n", "GUARANTEED"),
        (
            (
                "[[nodes]]\nname = 'a'\ndevices = ["
                "{model='X', vendor='nvidia', count=1}, {model='Y', vendor='nvidia', count=1}]\n"
            ),
            "one node per model",
        ),
        (
            (
                "[[nodes]]\nname = 'a'\ndevices = [{model='X', vendor='nvidia', count=4}]\n"
                f"[[queues]]\ntenant = '{TENANT}'\nquotas = {{X = {{guaranteed = 5}}}}\n"
            ),
            "guaranteed 5 X together, but the nodes have 4",
        ),
    ],
)
def test_a_setting_that_cannot_be_meant_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, named: str
) -> None:
    file = tmp_path / "hub.toml"
    file.write_text(content)
    monkeypatch.setenv("HUB_CONFIG", str(file))
    with pytest.raises(MalformedSettings, match=named):
        settings()


def test_queues_of_tenants_are_read_in_devices_and_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "hub.toml"
    file.write_text(
        f"[[queues]]\ntenant = '{TENANT}'\nrunning_max = 9\nmax_wait_s = 60\n"
        "[queues.quotas.MLU370-X8]\nguaranteed = 4\nborrowed_max = 2\nlent_max = 0\nweight = 3\n"
    )
    monkeypatch.setenv("HUB_CONFIG", str(file))
    quota = Quota(guarantee_milli=4000, borrow_milli=2000, lend_milli=0, weight=3)
    assert live_queues(settings()) == (
        Queue(TENANT, quotas={"MLU370-X8": quota}, max_wait_ms=60_000, running_max=9),
    )


def test_a_settings_file_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUB_CONFIG", "nowhere.toml")
    with pytest.raises(NoSettingsFile, match=r"nowhere\.toml"):
        settings()


def test_the_default_file_describes_two_nodes_of_four_cards() -> None:
    nodes = Settings().nodes
    assert [(node.name, sum(part.count for part in node.devices)) for node in nodes] == [
        ("node-1", 4),
        ("node-2", 4),
    ]


def test_an_environment_whose_usage_is_not_compute_is_a_service_with_a_command_of_its_own(
    tmp_path: Path,
) -> None:
    service = {"directory": str(tmp_path), "cost_kind": "model", "command": ["serve", "--model"]}
    plain = {"directory": str(tmp_path)}
    made = Settings(environments={"llm": service, "plain": plain})
    assert made.centre_facts.cost_kinds == {"llm": "model"}
    assert (made.centre_facts.cost_kind("llm"), made.centre_facts.cost_kind("plain")) == ("model", "compute")
    with pytest.raises(ValidationError, match="names the command that its jobs run"):
        Settings(environments={"llm": plain | {"cost_kind": "model"}})


def test_a_centres_peak_is_what_its_models_add_up_to_unless_it_is_stated() -> None:
    models = {"MLU370-X8": {"tflops": 96}}
    devices = [{"model": "MLU370-X8", "vendor": "cambricon", "count": 64}]
    nodes = [{"name": f"n{number}", "devices": devices} for number in range(17)]
    centre = {"region": "410100"}
    assert Settings(centre=centre, models=models, nodes=nodes).centre_facts == CentreFacts("410100", 104)
    stated = centre | {"pflops": 400}
    assert Settings(centre=stated, models=models, nodes=nodes).centre_facts == CentreFacts("410100", 400)
    assert Settings().centre_facts.region == "331003"
