"""What an autoscaler is told of jobs that run and wait."""

import threading
from collections.abc import Sequence
from dataclasses import replace
from itertools import count

from sqlalchemy import Engine

from kernel.clock import utc_now
from scheduler.demand import Demanded
from scheduler.ray.autoscaling import BUNDLES_MAX, Bundle, bundles_of, keep_telling

GANG = Demanded(("sim-a", "sim-b"), 2, 4, 1000, 1500, 1024, 3, utc_now())
HALF = Demanded(("sim-b",), 1, 1, 500, 250, 1, 1, utc_now())


def test_every_node_of_every_job_is_a_bundle_of_the_model_it_prefers() -> None:
    bundles = bundles_of([GANG, HALF])
    assert bundles[:6] == [{"CPU": 1.5, "memory": 2.0**30, "hub_device:sim-a": 4.0}] * 6
    assert bundles[6:] == [{"CPU": 0.25, "memory": 2.0**20, "hub_device:sim-b": 0.5}]


def test_the_number_of_bundles_is_bounded_and_the_first_come_first() -> None:
    bundles = bundles_of([HALF, replace(GANG, jobs=10 * BUNDLES_MAX)])
    assert len(bundles) == BUNDLES_MAX
    assert "hub_device:sim-b" in bundles[0]


def test_it_is_told_when_something_changed_and_again_when_it_did_not_listen(engine: Engine) -> None:
    stopping, calls = threading.Event(), count(1)
    told: list[Sequence[Bundle]] = []

    class DeafAtFirst:
        """An autoscaler that is away when it is told for the first time."""

        def want(self, bundles: Sequence[Bundle]) -> None:
            if next(calls) == 1:
                raise ConnectionError
            told.append(bundles)
            stopping.set()

    keep_telling(engine, DeafAtFirst(), stopping, every_s=0)
    assert told == [[]]
