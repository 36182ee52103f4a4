"""The hub as a replay runs it: everything real but the nodes, which are simulated behind one actor on one Ray node."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from compute_hub.settings import Settings
from compute_hub.stack.ports import free_port
from compute_hub.stack.ray_node import start_ray
from compute_hub.stack.up import LocalStack

MODEL: Final = "MLU370-X8"
ENVIRONMENT: Final = "none"
_PATIENCE_MS: Final = 60_000
"""A replay counts money, not failures: nobody is given up because the machine is busy with something else."""
_CPU_MILLI: Final = 128_000
_MEMORY_MIB: Final = 1_048_576


class ReplayStack(LocalStack):
    """PostgreSQL, API, biller, controller and one raylet; the controller's nodes are simulated.

    Args:
        folder: where its state goes; emptied first.
        tell: is told what is being started.
        nodes: how many nodes.
        devices: of each.
        price_cny: of a card-hour of the replay.
        region: where the centre lies.
        meter_interval_ms: how often running programs are metered.
        patient: whether leases are so long that nobody is given up because the machine is busy; else they are those
            of any hub.
    """

    def __init__(
        self,
        folder: Path,
        tell: Callable[[str], None],
        *,
        nodes: int,
        devices: int,
        price_cny: str,
        region: str,
        meter_interval_ms: int,
        patient: bool = True,
    ) -> None:
        state = folder / "state"
        shutil.rmtree(state, ignore_errors=True)
        state.mkdir(parents=True)
        self.schedule = folder / "schedule.csv"
        facts: dict[str, Any] = {
            "state_directory": str(state),
            "api_port": free_port(),
            "ray_port": free_port(),
            "controllers": 1,
            "meter_interval_ms": meter_interval_ms,
            "centre": {"region": region},
            "nodes": [
                {
                    "name": f"node-{number:03d}",
                    "devices": [{"model": MODEL, "vendor": "simulated", "count": devices}],
                    "cpu_milli": _CPU_MILLI,
                    "memory_mib": _MEMORY_MIB,
                    "labels": {"switch": f"switch-{number // 8:02d}"},
                }
                for number in range(nodes)
            ],
            "environments": {ENVIRONMENT: {"directory": str(state)}},
            "prices": [{"model": MODEL, "price_cny_per_card_hour": price_cny}],
        }
        if patient:
            facts |= {"leader_lease_ms": _PATIENCE_MS // 3, "node_lease_ms": _PATIENCE_MS}
        variables = {
            f"HUB_{name.upper()}": value if isinstance(value, str) else json.dumps(value)
            for name, value in facts.items()
        }
        super().__init__(Settings(**facts), variables, tell)

    def _start_nodes(self) -> None:
        self._starting(f"one Ray node for {len(self.settings.nodes)} simulated nodes")
        log = self.logs / "ray.log"
        self._children.append(
            start_ray(self.settings, "replay", head=True, resources={}, environment={}, log=log)
        )

    def _controller(self) -> Sequence[str]:
        return ("controller", "--simulated", str(self.schedule))
