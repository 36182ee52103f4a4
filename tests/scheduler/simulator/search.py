"""The judge outside the suite: random histories with fresh seeds for as long as asked, or one whole trace.

The suite's own properties are derandomised: a test that fails now and then stops whoever comes by, not whoever broke
it. This is where new examples come from; what it finds is kept by hand in `test_reclaims.py`.

    python -m tests.scheduler.simulator.search --seconds 60 --seed 1
    python -m tests.scheduler.simulator.search --trace FILE --format elasticflow --nodes 12 --jobs-max 3000
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from scheduler.policy.model import Queue
from scheduler.policy.settings import POLICIES
from scheduler.simulator.clusters import read_cluster
from scheduler.simulator.readers import read_trace
from scheduler.simulator.running import prepare
from scheduler.simulator.workload import uniform_cluster
from tests.scheduler.simulator.logs import judged
from tests.scheduler.simulator.test_validity import (
    FAILURES,
    RESERVATIONS,
    crowds,
    guaranteed,
    jobs,
    test_a_claim_inside_its_guarantee_starts_within_the_minimum_run_and_the_grace,
    test_every_job_that_can_run_ends,
    test_every_log_is_valid_and_repeatable,
    test_who_is_kept_from_reserved_nodes_keeps_nobody_else_from_them,
    trees,
)
from tests.scheduler.validity import faults

_EXAMPLES = 60
_ORDERS = st.sampled_from(["default", "default", "easy", "srsf", "fifo"])
PROPERTIES = (
    (test_every_log_is_valid_and_repeatable, (jobs(), trees(), FAILURES, RESERVATIONS, _ORDERS)),
    (
        test_who_is_kept_from_reserved_nodes_keeps_nobody_else_from_them,
        (crowds(), st.sampled_from(["default", "easy", "srsf"])),
    ),
    (test_every_job_that_can_run_ends, (jobs(), trees())),
    (
        test_a_claim_inside_its_guarantee_starts_within_the_minimum_run_and_the_grace,
        (guaranteed(), st.sampled_from([0, 60_000, 300_000]), st.sampled_from([0, 5000])),
    ),
)


def say(text: str) -> None:
    sys.stdout.write(text + "\n")


def search(seconds: float, first: int) -> int:
    """Try every property with seed after seed; returns how many seeds failed."""
    until, at, failed = time.monotonic() + seconds, first, 0
    while time.monotonic() < until:
        for test, made in PROPERTIES:
            failed += not _holds(test.hypothesis.inner_test, made, at)  # type: ignore[attr-defined]
        at += 1
    say(f"{at - first} seeds from {first} on, {_EXAMPLES} examples of each property: {failed} failed")
    return failed


def _holds(test: Callable[..., None], made: tuple[st.SearchStrategy[object], ...], number: int) -> bool:
    rules = settings(
        max_examples=_EXAMPLES,
        phases=[Phase.generate],
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    try:
        seed(number)(rules(given(*made)(test)))()
    except AssertionError as found:
        say(f"seed {number}: {test.__name__}: {(str(found) or 'an assertion failed').splitlines()[0]}")
        return False
    return True


def whole(options: argparse.Namespace) -> int:
    """Judge one trace under the default policy; returns how many faults there are."""
    place = uniform_cluster(options.nodes, 8) if options.cluster is None else read_cluster(options.cluster)
    widest = max(len(node.devices) for node in place.nodes)
    work = prepare(
        read_trace(options.trace, options.format, widest)[: options.jobs_max], "factor:3", "lognormal:1", 0
    )
    queues = tuple(Queue(name) for name in sorted({one.job.queue for one in work}))
    log, _ = judged(place, work, queues, POLICIES["default"])
    found = faults(log)
    say(f"{options.trace.name}: {len(work)} jobs, {len(log.attempts)} attempts, {len(found)} faults")
    say("\n".join(found[:20]))
    return len(found)


def main() -> None:
    """Search or judge, as asked; exits 1 when something was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--trace", type=Path)
    parser.add_argument("--format", default="elasticflow")
    parser.add_argument("--nodes", type=int, default=80)
    parser.add_argument("--cluster", type=Path)
    parser.add_argument("--jobs-max", type=int, default=10**9)
    options = parser.parse_args()
    sys.exit(bool(whole(options) if options.trace else search(options.seconds, options.seed)))


if __name__ == "__main__":
    main()
