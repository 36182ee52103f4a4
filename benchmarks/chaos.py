"""Faults at random moments under load, then the books: is a job lost, did one run twice, does anything remain?

    python -m benchmarks.chaos --points 40 --json

First it measures, before there is load, how soon the job of a lost node is queued again and a standby leads. Then
every kind of fault has its turn, in an order that `--seed` decides, again and again until so many points are done.
Half of the jobs may be tried again and must succeed; the others may fail, if it was the centre that lost them.
"""

import argparse
import json
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks.peers.faults import Fault
from benchmarks.peers.incidents import SmallDisk, disk_is_full, every_fault, small_disk
from benchmarks.peers.load import PATIENCE_S, submit_some
from benchmarks.peers.losses import REQUEUED_WITHIN_S, TAKEN_OVER_WITHIN_S, noticed
from benchmarks.peers.mending import Mender
from benchmarks.peers.ours import Hub
from benchmarks.peers.verdict import final_counts, processes_of, unsettled
from kernel.clock import boottime_ms
from kernel.errors import HubError

FOLDER: Final = Path("var/bench/chaos")
_LOOK_S: Final = 0.5
_PAUSE_S: Final = (0.2, 2.0)
"""Between a submission and a fault."""


def main() -> int:
    """Measure, strike, settle, count; 1 when anything is late or not zero."""
    parser = argparse.ArgumentParser(prog="benchmarks.chaos", description=__doc__)
    parser.add_argument("--points", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="only faults whose name contains this")
    parser.add_argument("--json", action="store_true", help="as ever: the figures are one JSON line")
    arguments = parser.parse_args()
    say = partial(print, file=sys.stderr, flush=True)
    try:
        hub = Hub(FOLDER, say)
        with ExitStack() as stack:
            faults = [*every_fault(), *_small_disks(stack, hub, say)]
            faults = [fault for fault in faults if arguments.only in fault.name]
            stack.enter_context(hub)
            mender = stack.enter_context(Mender(hub))
            noticed_s = {} if arguments.only else noticed(hub, mender)
            found = torment(hub, arguments.points, arguments.seed, say, faults)
        left = processes_of(FOLDER)
    except HubError as refusal:
        print(refusal, file=sys.stderr)
        return 2
    say("\n".join(left), end="")
    found["orphan_processes"] += len(left)
    print(json.dumps(found | noticed_s))
    within_s = hub.stack.settings.leader_lease_ms / 1000 + TAKEN_OVER_WITHIN_S
    late = noticed_s.get("requeue_s", 0) > REQUEUED_WITHIN_S or noticed_s.get("takeover_s", 0) > within_s
    return 1 if late or any(value for name, value in found.items() if name != "points") else 0


def _small_disks(stack: ExitStack, hub: Hub, say: Callable[[str], object]) -> list[Fault]:
    """Faults of disks that may fill without harm to others; none where such disks cannot be had."""
    found = []
    for disk in SmallDisk:
        try:
            stack.enter_context(small_disk(hub, disk))
        except (subprocess.CalledProcessError, FileNotFoundError) as error:
            say(f"Not done: {disk.value} is full ({error})")
        else:
            found.append(disk_is_full(hub, disk))
    return found


def torment(
    hub: Hub, points: int, seed: int, say: Callable[[str], object], faults: Sequence[Fault]
) -> dict[str, int]:
    """Strike so many times under load, let everything settle, and count; a `Mender` is at work. Raises HubError."""
    chance = random.Random(seed)  # noqa: S311 - chance, not secrecy
    order = [fault for _ in range(-(-points // len(faults))) for fault in chance.sample(faults, len(faults))]
    for number, fault in enumerate(order[:points]):
        submit_some(hub, chance)
        threading.Event().wait(chance.uniform(*_PAUSE_S))
        say(f"{number + 1}/{points} {fault.name}")
        fault.strike(hub, chance)
    _settle(hub, say)
    return {"points": points} | final_counts(hub)


def _settle(hub: Hub, say: Callable[[str], object]) -> None:
    """Wait until every job has ended, is metered and charged, and its money is given back; what never is, is judged."""
    deadline, never = boottime_ms() + PATIENCE_S * 1000, threading.Event()
    while left := unsettled(hub):
        if boottime_ms() > deadline:
            say(f"unsettled: {left}")
            return
        never.wait(_LOOK_S)


if __name__ == "__main__":
    sys.exit(main())
