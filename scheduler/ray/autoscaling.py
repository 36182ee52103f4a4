"""What is told to Ray's autoscaler: bundles for everything that runs or waits, so that it can add machines.

    python -m scheduler.ray.autoscaling ADDRESS < bundles.json      # tells Ray, in a process of its own

Ray compares what is requested with the whole cluster, not with what is free of it, so running jobs are requested, too.
Devices are the resource `hub_device:MODEL`, which the hub's raylets and the autoscaler's node types state. It is a
hint: nothing is placed by it, and without an autoscaler it is a number in Ray's store.
"""

import json
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from typing import Final, Protocol

import structlog
from sqlalchemy import Engine

from kernel.clock import utc_now
from kernel.database import transaction
from scheduler.demand import Demanded, running_demand, waiting_demand

DEVICE_RESOURCE: Final = "hub_device:"
"""Of a raylet: `hub_device:MODEL`, as many as the machine has."""

BUNDLES_MAX: Final = 1000
"""Bundles in one request; what has waited longest comes first."""

TELL_S: Final = 10.0
_PATIENCE_S: Final = 60.0

Bundle = dict[str, float]

_log = structlog.get_logger(__name__)


class Autoscaler(Protocol):
    """Whoever can add machines."""

    def want(self, bundles: Sequence[Bundle]) -> None:
        """All that should fit at once; replaces what was wanted before."""
        ...


class RayAutoscaler:
    """Ray's own, told by a process that leaves again: a driver whose head goes away is ended by Ray.

    Args:
        address: of Ray's head; how to be let in stands in this process's environment.
    """

    def __init__(self, address: str) -> None:
        self._address = address

    def want(self, bundles: Sequence[Bundle]) -> None:
        """Request resources. Raises CalledProcessError, TimeoutExpired while Ray is away."""
        subprocess.run(
            [sys.executable, "-m", __name__, self._address],
            input=json.dumps(list(bundles)).encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=_PATIENCE_S,
            check=True,
        )


def keep_telling(
    engine: Engine, autoscaler: Autoscaler, stopping: threading.Event, every_s: float = TELL_S
) -> None:
    """Tell the autoscaler whenever what is needed has changed; what it did not take is told again."""
    told: list[Bundle] | None = None
    while not stopping.wait(every_s):
        try:
            with transaction(engine) as session:
                wanted = bundles_of([*running_demand(session), *waiting_demand(session, utc_now())])
            if wanted != told:
                autoscaler.want(wanted)
                told = wanted
        except Exception as error:  # noqa: BLE001 - it is a hint; the next turn tries again
            _log.warning("autoscaler_not_told", error=str(error))


def bundles_of(demands: Iterable[Demanded]) -> list[Bundle]:
    """One bundle for each node of each job, of the model the job prefers."""
    bundles: list[Bundle] = []
    for one in demands:
        model = one.models[0] if one.models else "any"
        bundle = {
            "CPU": one.cpu_milli / 1000,
            "memory": float(one.memory_mib << 20),
            f"{DEVICE_RESOURCE}{model}": one.devices_per_node * one.slots_milli / 1000,
        }
        room = BUNDLES_MAX - len(bundles)
        bundles += [dict(bundle) for _ in range(min(room, one.jobs * one.nodes))]
    return bundles


def main() -> None:
    """Tell Ray what is on standard input."""
    import ray  # noqa: PLC0415 - the controller that starts this has no Ray in it
    from ray.autoscaler.sdk import request_resources  # noqa: PLC0415 - nor this

    from scheduler.ray.start import keep_loopback  # noqa: PLC0415 - nor this

    keep_loopback()
    ray.init(address=sys.argv[1], namespace="compute-hub", log_to_driver=False, configure_logging=False)
    request_resources(bundles=json.load(sys.stdin))
    ray.shutdown()


if __name__ == "__main__":
    main()
