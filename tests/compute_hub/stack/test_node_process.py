"""What a node's supervisor is told of the hub's settings."""

import os
from pathlib import Path

import pytest

from compute_hub.api.job_submission import SLOTS_MILLI_MIN
from compute_hub.settings import Devices, Node, Settings
from compute_hub.stack.node_process import NodeAlreadyRuns, claim_node, node_config


def test_a_node_runs_once_on_a_machine_and_again_when_the_first_is_gone(tmp_path: Path) -> None:
    first = claim_node(tmp_path, "n")
    with pytest.raises(NodeAlreadyRuns, match="Node n already runs here"):
        claim_node(tmp_path, "n")
    os.close(first)
    os.close(claim_node(tmp_path, "n"))


def test_a_node_takes_every_run_its_cards_can_be_divided_into(tmp_path: Path) -> None:
    cards = Devices(model="X", vendor="nvidia", count=16)
    settings = Settings(state_directory=tmp_path, cgroup_parent="/hub")
    config = node_config(settings, Node(name="n", devices=(cards,)), tmp_path, tmp_path / "s")
    assert config["limits"]["runs"] * SLOTS_MILLI_MIN >= 16 * 1000
    assert config["cgroup_parent"] == "/hub"
