"""Learns to read handwritten digits on several nodes, each process with one card or several.

Data-parallel: each rank holds its shard of the images, each of its cards computes the gradient of its own
micro-batch, and the ranks average their gradients at every step, so that all hold the same weights throughout;
at the end they compare them. Rank 0 writes `result.json` and keeps `checkpoint.npz`.
"""

import argparse
import json
import sys
from concurrent.futures import ThreadPoolExecutor

import job
import mlp
from gang import Gang, GangBroken, Seat


class Rank:
    """One process of the gang.

    Args:
        seat: which rank this is.
        gang: the connections to the others.
        model: the weights to start from; rank 0's count.
        devices: this rank's cards; each gets its own micro-batch.
    """

    def __init__(self, seat: Seat, gang: Gang, model: mlp.Model, devices: list[str]) -> None:
        self._seat = seat
        self._gang = gang
        self._model = model
        self._devices = devices

    def run(self, asked: argparse.Namespace) -> int:
        """Train together; returns the exit status."""
        train, test = mlp.load_data()
        shard = train[slice(self._seat.rank, None, self._seat.world_size)]
        steps = mlp.steps_per_epoch(len(train))
        cards = ", ".join(self._devices)
        job.say(f"rank {self._seat.rank}: {len(shard)} images on devices {cards}")
        model = self._model
        model.weights = mlp.from_message(self._gang.agree(model.weights.tobytes(), _first))
        progress = job.Progress(asked.epochs, asked.seconds_min, writes=self._seat.rank == 0)
        with ThreadPoolExecutor(len(self._devices)) as pool:
            while self._together_go_on(progress):
                order = shard.shuffled(asked.seed, self._seat.rank, model.epoch)
                loss = sum(self._step(batch, pool) for batch in order.parts(steps)) / steps
                model.epoch += 1
                progress.epoch_ended(model, loss, test)
        devices = self._compare_weights()
        if self._seat.rank == 0:
            return job.finish(
                model,
                test,
                seconds=round(progress.seconds, 3),
                devices=devices,
                world_size=self._seat.world_size,
                weights_sha256=model.fingerprint(),
            )
        return job.judge(model, test)

    def _together_go_on(self, progress: job.Progress) -> bool:
        """Rank 0's clock decides for all, or one rank would wait for a step that another does not take."""
        return self._gang.agree(b"" if progress.done(self._model) else b"on", _first) == b"on"

    def _step(self, batch: mlp.Examples, pool: ThreadPoolExecutor) -> float:
        """One step of all ranks; returns the mean loss over all of their cards."""
        micro_batches = batch.parts(len(self._devices))
        sums = sum(pool.map(lambda part: mlp.batch_sums(self._model.weights, part), micro_batches))
        return self._model.step(mlp.from_message(self._gang.agree(sums.tobytes(), mlp.add_messages)))

    def _compare_weights(self) -> list[tuple[int, str]]:
        """Check that all ranks hold the same weights; returns every (rank, card). Raises GangBroken."""
        mine = {"weights": self._model.fingerprint(), "devices": self._devices}
        ranks = json.loads(self._gang.agree(json.dumps(mine).encode(), _listed))
        if len({rank["weights"] for rank in ranks}) != 1:
            held = ", ".join(f"rank {number} {rank['weights'][:12]}" for number, rank in enumerate(ranks))
            raise GangBroken(f"the ranks hold different weights: {held}")
        return [(number, device) for number, rank in enumerate(ranks) for device in rank["devices"]]


def main() -> int:
    """Train as the command line and the environment say; returns the exit status."""
    parser = job.options(__doc__)
    parser.add_argument(
        "--timeout", type=job.duration, default=60.0, help="seconds to wait for another rank (60)"
    )
    asked = parser.parse_args()
    stop = job.StopRequest()
    try:
        seat = Seat.from_environment()
    except GangBroken as misplaced:
        job.complain(str(misplaced))
        return 2
    model = mlp.new_model(asked.seed)
    try:
        job.say(f"rank {seat.rank} of {seat.world_size} meets the others at {seat.address}:{seat.port}")
        with Gang(seat, timeout_s=asked.timeout, check=stop.check) as gang:
            return Rank(seat, gang, model, seat.share(job.visible_devices())).run(asked)
    except job.Stopped:
        return job.stop(model, writes=seat.rank == 0)
    except GangBroken as broken:
        job.complain(f"rank {seat.rank}: {broken}")
        return 1


def _first(parts: list[bytes]) -> bytes:
    return parts[0]


def _listed(parts: list[bytes]) -> bytes:
    return b"[" + b",".join(parts) + b"]"


if __name__ == "__main__":
    sys.exit(main())
