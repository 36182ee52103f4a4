"""How many jobs a second the hub starts and ends, beside Slurm and Ray's Jobs API on the same machine in the same run.

A job does nothing on one device of 2 nodes × 8 devices. Ours go through the HTTP API, a sandbox each, are metered and
paid for; a peer's have none of that. They are submitted one by one and, for Slurm and the hub, as one array, too.
Figures are from the first submission to the end of the last job, the median of several rounds.
With `--account` it says how much of the processors each part of the hub used for a job.

    python -m benchmarks.throughput --jobs 300 --peers slurm,ray-jobs --json

With `--scale` the question is another one: do 1,000 running and 10,000 waiting jobs on simulated nodes hold?
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final

from benchmarks.peers import accounts
from benchmarks.peers.ours import Hub
from benchmarks.peers.ray_jobs import ray_jobs_per_s
from benchmarks.peers.scale import scale
from benchmarks.peers.slurm import slurm_jobs_per_s
from kernel.errors import HubError

FOLDER: Final = Path("var/bench/throughput")
_STARTS: Final = 40
_RAY_JOBS: Final = 20

Figures = dict[str, float]
_Say = Callable[[str], None]


def main() -> int:
    """Measure and print; 2 when a peer is missing."""
    parser = argparse.ArgumentParser(prog="benchmarks.throughput", description=__doc__)
    parser.add_argument("--jobs", type=int, default=300)
    parser.add_argument("--peers", default="slurm,ray-jobs", help="of slurm, ray-jobs; empty for none")
    parser.add_argument("--rounds", type=int, default=3, help="of so many jobs each, for the hub and for Slurm")
    parser.add_argument("--scale", action="store_true", help="fill a centre of simulated nodes instead")
    parser.add_argument("--running", type=int, default=1000, help="jobs that run there at every moment")
    parser.add_argument("--queued", type=int, default=10_000, help="jobs that wait there")
    parser.add_argument("--run-s", type=int, default=60, help="how long each runs there")
    parser.add_argument("--hold-s", type=int, default=60, help="for how long that is watched")
    parser.add_argument(
        "--account", action="store_true", help="also say which part used how much of the processors"
    )
    parser.add_argument("--json", action="store_true", help="as ever: the figures are one JSON line")
    arguments = parser.parse_args()
    say: _Say = partial(print, file=sys.stderr)
    peers = [name for name in arguments.peers.split(",") if name]
    try:
        with _earlier_kept(FOLDER):
            if arguments.scale:
                asked = (arguments.running, arguments.queued, arguments.run_s, arguments.hold_s)
                print(json.dumps(scale(FOLDER / "scale", *asked, say)))
            else:
                print(json.dumps(measure(arguments, peers, say)))
    except HubError as refusal:
        print(refusal, file=sys.stderr)
        return 2
    return 0


def measure(arguments: argparse.Namespace, peers: list[str], say: _Say) -> Figures:
    """All figures. Raises HubError when something does not come up or a job does not succeed."""
    jobs, rounds = arguments.jobs, arguments.rounds
    say(f"the hub: {_STARTS} starts one by one, then {jobs} jobs at once, {rounds} times")
    with Hub(FOLDER / "hub", say) as hub:
        figures = hub.start_ms(_STARTS)
        found = [hub.throughput(jobs) for _ in range(rounds)]
        figures |= {name: round(median(one[name] for one in found), 2) for name in found[0]}
        say(f"jobs a second by round: {_listed([one['ours_jobs_per_s'] for one in found])}")
        used = hub.used_ms_per_job
        found = [hub.array_throughput(jobs) for _ in range(rounds)]
        figures |= {name: round(median(one[name] for one in found), 2) for name in found[0]}
        say(f"as an array: {_listed([one['ours_array_jobs_per_s'] for one in found])}")
        if arguments.account:
            say(accounts.table(used))
        else:
            figures |= hub.supervisor_load()
    ours = figures["ours_jobs_per_s"]
    if "slurm" in peers:
        say("Slurm: as many, one by one and as an array")
        singles, arrays = slurm_jobs_per_s(FOLDER / "slurm", jobs, rounds)
        say(f"jobs a second by round: {_listed(singles)}; as an array: {_listed(arrays)}")
        figures["slurm_jobs_per_s"] = round(median(singles), 2)
        figures["slurm_array_jobs_per_s"] = round(median(arrays), 2)
        figures["ratio_slurm"] = round(ours / median(singles), 2)
        figures["ratio_slurm_array"] = round(figures["ours_array_jobs_per_s"] / median(arrays), 2)
    if "ray-jobs" in peers:
        say(f"Ray's Jobs API: {_RAY_JOBS} jobs")
        rate = ray_jobs_per_s(FOLDER / "ray", _RAY_JOBS)
        figures |= {"ray_jobs_per_s": round(rate, 3), "ratio_ray": round(ours / rate, 1)}
    return figures


@contextmanager
def _earlier_kept(folder: Path) -> Iterator[None]:
    """What an earlier run has left in this folder is deleted when this one is over.

    For a minute after thousands of files were deleted ext4 looks at each of their inodes, one by one, whenever anybody
    makes a folder, which would be measured instead of the hub and its peers.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    before = Path(tempfile.mkdtemp(prefix=f"{folder.name}-before-", dir=folder.parent))
    if folder.exists():
        folder.rename(before / folder.name)
    try:
        yield
    finally:
        shutil.rmtree(before, ignore_errors=True)


def _listed(rates: Sequence[float]) -> str:
    return ", ".join(f"{rate:.1f}" for rate in rates)


if __name__ == "__main__":
    sys.exit(main())
