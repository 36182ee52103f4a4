"""Postings per second beside pgbench TPC-B on the same durable server, interleaved in one run.

`python -m benchmarks.ledger --json` prints one JSON object as its last line. pgbench runs at scale 10 with 8
clients; so do we, each client a process that keeps one connection in autocommit, so that every call of `post`
is one durable transaction. Machines are shared and noisy: phases take turns round by round, each round gives
its own ratio, and the median of the ratios counts. `benchmarks.ledger_growth` measures what a posting costs at
three sizes of the ledger, and what the audit of 1,000,000 transfers costs.

`hold` is what a job does, one transfer to a call: a hold, two captures, a release.

Goals: ratio_single ≥ 0.6, ratio_batch ≥ 3, ratio_hot ≥ 1 (anchors.md: one stored function reached 0.41–0.59).
"""

import argparse
import json
import tempfile
from pathlib import Path
from statistics import median

from benchmarks.ledger_load import PHASES, Run, pgbench_tps, say, set_up, set_up_pgbench
from kernel.postgres import PrivatePostgres


def compare(server: PrivatePostgres, run: Run, rounds: int, seconds: int) -> dict[str, float]:
    """Median rates, and medians of the ratios between neighbours in time."""
    rates: dict[str, list[float]] = {name: [] for name in ("pgbench", *(phase.name for phase in PHASES))}
    ratios: dict[str, list[float]] = {phase.name: [] for phase in PHASES}
    for number in range(1, rounds + 1):
        for phase in PHASES:
            tps = pgbench_tps(server, seconds)
            rate = run.measure(phase, seconds).per_s
            rates["pgbench"].append(tps)
            rates[phase.name].append(rate)
            ratios[phase.name].append(rate / tps)
            say(f"round {number}/{rounds}: pgbench {tps:,.0f}/s, {phase.name} {rate:,.0f}/s = {rate / tps:.2f}")
    return {
        "pgbench_tps": round(median(rates["pgbench"]), 1),
        "single_per_s": round(median(rates["single"]), 1),
        "hold_per_s": round(median(rates["hold"]), 1),
        "batch_per_s": round(median(rates["batch"]), 1),
        "hot_batch_per_s": round(median(rates["hot_batch"]), 1),
        "ratio_single": round(median(ratios["single"]), 3),
        "ratio_hold": round(median(ratios["hold"]), 3),
        "ratio_batch": round(median(ratios["batch"]), 3),
        "ratio_hot": round(median(ratios["hot_batch"]), 3),
    }


def main() -> None:
    """Run the phases and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the result as one JSON line")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4, help="of each phase in each round")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hub-bench-") as folder:
        server = PrivatePostgres(Path(folder) / "pg", durable=True)
        server.start()
        try:
            set_up(server)
            set_up_pgbench(server)
            run = Run(server, "ledger")
            result = compare(server, run, asked.rounds, asked.seconds)
            result["violations"] = run.violations()
        finally:
            server.stop()
    print(json.dumps(result) if asked.json else json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
