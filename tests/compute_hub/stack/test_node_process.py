"""What a node's supervisor is told of the hub's settings."""

from pathlib import Path

from compute_hub.api.job_submission import SLOTS_MILLI_MIN
from compute_hub.settings import Devices, Node, Settings
from compute_hub.stack.node_process import node_config


def test_a_node_takes_every_run_its_cards_can_be_divided_into(tmp_path: Path) -> None:
    cards = Devices(model="X", vendor="nvidia", count=16)
    settings = Settings(state_directory=tmp_path, cgroup_parent="/hub")
    config = node_config(settings, Node(name="n", devices=(cards,)), tmp_path, tmp_path / "s")
    assert config["limits"]["runs"] * SLOTS_MILLI_MIN >= 16 * 1000
    assert config["cgroup_parent"] == "/hub"
