"""How long jobs wait: every policy on one trace, on the same nodes, with the same limits and estimates.

The first rows see true durations (`fifo` and `srsf` are the anchors: 24,747 s and 21,365 s on cluster04 with
80 nodes of 8); the default policy sees enforced limits drawn by `--limits` and estimates drawn by
`--estimates`, and so does the row `default-blind`, whose ordering may not learn from limits or history.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from scheduler.policy.model import Queue
from scheduler.policy.settings import POLICIES
from scheduler.simulator.readers import read_trace
from scheduler.simulator.running import prepare, simulate_policy
from scheduler.simulator.workload import uniform_cluster

_KEYS = ("mean_jct_s", "mean_queue_s", "p99_queue_s", "max_queue_s", "bounded_slowdown", "jobs_per_s")


def main() -> None:
    """Print a row per policy, then one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trace", type=Path, required=True)
    parser.add_argument("--format", default="elasticflow")
    parser.add_argument("--nodes", type=int, default=80)
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--limits", default="factor:3")
    parser.add_argument("--estimates", default="lognormal:1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--policies", default="fifo,easy,sjf,srsf,default,default-blind")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    known = {**POLICIES, "default-blind": replace(POLICIES["default"], name="default-blind", learns=False)}
    cluster = uniform_cluster(options.nodes, options.devices)
    exact = prepare(read_trace(options.trace, options.format, options.devices), None, "exact", 0)
    noisy = prepare(exact, options.limits, options.estimates, options.seed)
    rows: dict[str, dict[str, Any]] = {}
    for name in options.policies.split(","):
        jobs = noisy if name.startswith("default") else exact
        result = simulate_policy(known[name], cluster, jobs, (Queue("main"),))
        rows[name] = {key: result.summary[key] for key in _KEYS}
        rows[name]["jobs_per_processor_s"] = round(len(jobs) / max(1e-9, result.summary["processor_s"]))
        if not options.json:
            cells = "  ".join(f"{key} {rows[name][key]:>10,.1f}" for key in _KEYS)
            print(f"{name:14} {cells}")
    print(json.dumps({"nodes": options.nodes, "seed": options.seed, "policies": rows}))


if __name__ == "__main__":
    main()
