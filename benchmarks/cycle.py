"""What one cycle costs when a centre is full: 10,000 devices, 1,000 queues, up to 100,000 waiting jobs.

Steady state: in every cycle a handful of jobs end and as many arrive, and what can start does. Times are of
the whole cycle on the default policy; `growth` is the median cycle at 100,000 waiting jobs over that at 1,000.
"""

import argparse
import gc
import json
import resource
import time
from random import Random

from scheduler.policy.cycle import run_cycle
from scheduler.policy.model import DeviceState, Job, Node, Queue, Quota
from scheduler.policy.settings import POLICIES
from scheduler.policy.state import SchedulerState

_MODELS = ("A100", "910B", "MLU590", "V100")
_SIZES = ((1, 1, 1000), (1, 2, 1000), (1, 4, 1000), (1, 8, 1000), (2, 8, 1000), (4, 8, 1000), (1, 1, 500))
_WEIGHTS = (50, 8, 8, 15, 4, 2, 13)
_TICK_MS = 1000
_CHURN = 20


def build(pending: int, devices: int, queues: int, seed: int) -> tuple[SchedulerState, Random]:
    """A full cluster with so many waiting jobs."""
    random = Random(seed)  # noqa: S311 - a benchmark wants repeatable numbers
    per_model = devices // 8 // len(_MODELS)
    guarantee = per_model * 8 * 1000 // queues // 2
    leaves = [
        Queue(f"q{number:04d}", f"group-{number % 20:02d}", {model: Quota(guarantee) for model in _MODELS})
        for number in range(queues)
    ]
    groups = [
        Queue(f"group-{number:02d}", quotas={model: Quota(guarantee * -(-queues // 20)) for model in _MODELS})
        for number in range(20)
    ]
    state = SchedulerState([*groups, *leaves], POLICIES["default"])
    for model in _MODELS:
        for number in range(per_model):
            every = tuple(DeviceState(index) for index in range(8))
            state.node_joined(
                Node(f"{model}-{number:04d}", model, every, topology=(f"switch-{number // 16:03d}",))
            )
    for number in range(pending + devices):
        state.job_queued(make_job(random, number, queues, 0), 0)
    return state, random


def make_job(random: Random, number: int, queues: int, now_ms: int) -> Job:
    """A job like any other."""
    nodes, devices, slots = random.choices(_SIZES, _WEIGHTS)[0]
    duration_ms = max(60_000, round(3_600_000 * random.lognormvariate(0, 1.5)))
    return Job(
        id=f"job-{number}",
        queue=f"q{random.randrange(queues):04d}",
        submitted_ms=now_ms,
        time_limit_ms=duration_ms * 2,
        estimate_ms=duration_ms,
        models=(random.choice(_MODELS),),
        nodes=nodes,
        devices_per_node=devices,
        slots_milli=slots,
    )


def run(pending: int, devices: int, queues: int, cycles: int) -> list[float]:
    """Seconds of each cycle in steady state."""
    state, random = build(pending, devices, queues, 7)
    run_cycle(state, 0)
    number, now_ms = pending + devices, 0
    gc.collect()
    gc.freeze()
    times = []
    for _ in range(cycles):
        now_ms += _TICK_MS
        for job_id in random.sample(sorted(state.running), _CHURN):
            state.allocation_ended(job_id, now_ms, succeeded=True)
        while len(state.queued) < pending:
            state.job_queued(make_job(random, number, queues, now_ms), now_ms)
            number += 1
        began = time.perf_counter()
        run_cycle(state, now_ms)
        times.append(time.perf_counter() - began)
    gc.unfreeze()
    return times


def main() -> None:
    """Print the table, then one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pending", type=int, default=100_000)
    parser.add_argument("--devices", type=int, default=10_000)
    parser.add_argument("--queues", type=int, default=1000)
    parser.add_argument("--cycles", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    few = sorted(run(1000, options.devices, options.queues, options.cycles))
    many = sorted(run(options.pending, options.devices, options.queues, options.cycles))
    middle, late = len(many) // 2, max(0, -(-len(many) * 99 // 100) - 1)
    result = {
        "p50_ms": round(many[middle] * 1000, 2),
        "p99_ms": round(many[late] * 1000, 2),
        "growth": round(many[middle] / few[middle], 2),
        "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "p50_at_1000_ms": round(few[middle] * 1000, 2),
        "pending": options.pending,
    }
    if not options.json:
        print("\n".join(f"{key:16} {value}" for key, value in result.items()))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
