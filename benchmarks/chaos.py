"""Faults at random moments under load, then the books: is a job lost, did one run twice, does anything remain?

    python -m benchmarks.chaos --points 40 --json

First it measures, before there is load, how soon the job of a lost node is queued again and a standby leads. Half of
the jobs may be tried again, the others fail when the centre loses them: both are an answer, no answer is not.
"""

import argparse
import json
import random
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import psutil

from benchmarks.peers.faults import FAULTS, Fault
from benchmarks.peers.losses import REQUEUED_WITHIN_S, TAKEN_OVER_WITHIN_S, noticed
from benchmarks.peers.mending import Mender
from benchmarks.peers.ours import Hub
from compute_hub.sdk import ENDED, HubClient, Unreachable
from kernel.clock import boottime_ms
from kernel.errors import HubError

_T = TypeVar("_T")

FOLDER: Final = Path("var/bench/chaos")
_SETTLE_S: Final = 180
_LOOK_S: Final = 0.5
_JOBS_PER_POINT: Final = 4

_DOUBLED: Final = """
    SELECT count(*) FROM allocations a JOIN allocations b ON a.id < b.id
    WHERE a.slots && b.slots AND a.span && b.span"""
_OVERLAPPING_RUNS: Final = """
    SELECT count(*) FROM runs a JOIN runs b ON a.job_id = b.job_id AND a.rank = b.rank AND a.attempt < b.attempt
    WHERE a.started_at IS NOT NULL AND b.started_at < coalesce(a.ended_at, 'infinity')"""
_ORPHAN_HOLDS: Final = """
    SELECT count(*) FROM job_funding f JOIN jobs j ON j.id = f.job_id
    WHERE j.ended_at IS NOT NULL AND f.state <> 'released'"""
_UNMETERED: Final = """
    SELECT coalesce(sum(greatest(0, extract(epoch FROM r.ended_at - r.started_at) * 1000
        - coalesce(u.ms, 0) - %s)), 0)::bigint
    FROM runs r LEFT JOIN (SELECT run_id, sum(duration_ms) AS ms FROM usage_records GROUP BY run_id) u
        ON u.run_id = r.id
    WHERE r.end_reason NOT IN ('node_lost', 'supervisor_lost', 'never_started') AND r.started_at IS NOT NULL"""
_ROUNDING_MS: Final = 50


def main() -> int:
    """Measure, strike, settle, count; 1 when anything is late or not zero."""
    parser = argparse.ArgumentParser(prog="benchmarks.chaos", description=__doc__)
    parser.add_argument("--points", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="as ever: the figures are one JSON line")
    arguments = parser.parse_args()
    say = partial(print, file=sys.stderr)
    try:
        with Hub(FOLDER, say) as hub, Mender(hub) as mender:
            noticed_s = noticed(hub, mender)
            within_s = hub.stack.settings.leader_lease_ms / 1000 + TAKEN_OVER_WITHIN_S
            found = torment(hub, arguments.points, arguments.seed, say)
        found["orphan_processes"] = len(left_behind(FOLDER))
    except HubError as refusal:
        print(refusal, file=sys.stderr)
        return 2
    print(json.dumps(found | noticed_s))
    late = noticed_s["requeue_s"] > REQUEUED_WITHIN_S or noticed_s["takeover_s"] > within_s
    return 1 if late or any(value for name, value in found.items() if name != "points") else 0


def torment(hub: Hub, points: int, seed: int, say: Any, faults: Sequence[Fault] = FAULTS) -> dict[str, int]:  # noqa: ANN401 - print
    """Strike so many times under load, let everything settle, and count; a `Mender` is at work. Raises HubError."""
    chance = random.Random(seed)  # noqa: S311 - chance, not secrecy
    never, jobs = threading.Event(), list[str]()
    order = [fault for _ in range(-(-points // len(faults))) for fault in chance.sample(faults, len(faults))]
    for number, fault in enumerate(order[:points]):
        jobs += _load(hub, chance)
        never.wait(chance.uniform(0.2, 2.0))
        say(f"{number + 1}/{points} {fault.name}")
        fault.strike(hub)
    found = _settled(hub, jobs)
    return {"points": points, "lost_jobs": found} | counts(hub)


def counts(hub: Hub) -> dict[str, int]:
    """What the database says happened that must not."""
    with hub.database() as connection:

        def one(query: str, *values: object) -> int:
            row = connection.execute(query.encode(), values or None).fetchone()
            return int(row[0]) if row else 0

        return {
            "doubled_runs": one(_DOUBLED) + one(_OVERLAPPING_RUNS),
            "orphan_processes": 0,
            "orphan_holds": one(_ORPHAN_HOLDS),
            "unmetered_ms": one(_UNMETERED, _ROUNDING_MS),
        }


def left_behind(folder: Path) -> list[str]:
    """Processes that still name the hub's folder."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = " ".join(process.info["cmdline"] or ())
        if str(folder.resolve()) in command:
            found.append(command)
    return found


def _load(hub: Hub, chance: random.Random) -> list[str]:
    with hub.client() as client:
        return [_submit(hub, client, chance) for _ in range(_JOBS_PER_POINT)]


def _submit(hub: Hub, client: HubClient, chance: random.Random) -> str:
    """Submit a job, again and again while the API is away."""
    seconds, retries = f"{chance.uniform(0.1, 8):.1f}", chance.choice((0, 20))
    return _answered(
        lambda: hub.submit(client, "/usr/bin/sleep", seconds, max_retries=retries, time_limit_s=120)
    )


def _answered(ask: Callable[[], _T]) -> _T:
    """What the API answers as soon as one answers: it may just have been killed. Raises Unreachable."""
    deadline, never = boottime_ms() + _SETTLE_S * 1000, threading.Event()
    while True:
        try:
            return ask()
        except Unreachable:
            if boottime_ms() > deadline:
                raise
            never.wait(_LOOK_S)


def _settled(hub: Hub, jobs: Sequence[str]) -> int:
    """Wait until every job has ended and its money is given back; how many had not."""
    deadline, never = boottime_ms() + _SETTLE_S * 1000, threading.Event()
    while boottime_ms() < deadline:
        with hub.database() as connection:
            row = connection.execute(
                "SELECT count(*) FROM jobs j JOIN job_funding f ON f.job_id = j.id"
                " WHERE j.ended_at IS NULL OR f.state <> 'released'"
            ).fetchone()
        if row == (0,):
            break
        never.wait(_LOOK_S)
    with hub.client() as client:
        states = [_answered(partial(client.get, f"/v1/jobs/{job_id}"))["state"] for job_id in jobs]
    return sum(state not in ENDED for state in states)


if __name__ == "__main__":
    sys.exit(main())
