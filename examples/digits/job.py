"""How a training program behaves as a job of the hub, whatever it trains.

It sees its cards in the environment, prints its progress line by line, stops in order when asked to (SIGTERM:
checkpoint, then exit 143) and leaves `result.json` in the working directory and
`checkpoint.npz` where its next attempt finds it: in HUB_CHECKPOINTS, or the working directory where nothing is kept.
"""

import argparse
import json
import math
import os
import signal
import sys
import time
from pathlib import Path
from typing import Final

from mlp import Examples, Model

CHECKPOINT: Final = Path(os.environ.get("HUB_CHECKPOINTS", ""), "checkpoint.npz")
RESULT: Final = Path("result.json")
ACCURACY_MIN: Final = 0.95
EXIT_STOPPED: Final = 128 + signal.SIGTERM

_DEVICE_VARIABLES: Final = (
    "HUB_DEVICES",
    "CUDA_VISIBLE_DEVICES",
    "ASCEND_RT_VISIBLE_DEVICES",
    "MLU_VISIBLE_DEVICES",
)
_SECONDS_BETWEEN_LINES: Final = 1.0


class Stopped(Exception):
    """The hub asked this job to stop."""


class StopRequest:
    """Remembers SIGTERM until the program is at a point where its state is whole.

    The handler only takes a note: an exception out of it could tear a step or a socket message in two.
    """

    def __init__(self) -> None:
        self._received = False
        signal.signal(signal.SIGTERM, self._note)

    def check(self) -> None:
        """Raise Stopped when a stop was requested."""
        if self._received:
            raise Stopped

    def _note(self, _signal: int, _frame: object) -> None:
        self._received = True


class Progress:
    """Counts the seconds; about once a second prints an epoch line and renews the checkpoint."""

    def __init__(self, epochs: int, seconds_min: float, *, writes: bool = True) -> None:
        self._epochs = epochs
        self._seconds_min = seconds_min
        self._writes = writes
        self._started = time.monotonic()
        self._last_line = -_SECONDS_BETWEEN_LINES

    @property
    def seconds(self) -> float:
        """Since the start of the training."""
        return time.monotonic() - self._started

    def done(self, model: Model) -> bool:
        """Whether both the epochs and the least duration asked for are reached."""
        return model.epoch >= self._epochs and self.seconds >= self._seconds_min

    def epoch_ended(self, model: Model, loss: float, test: Examples) -> None:
        """Print the epoch's line and write the checkpoint, unless the last are less than a second old."""
        now = self.seconds
        if not self._writes or now - self._last_line < _SECONDS_BETWEEN_LINES:
            return
        self._last_line = now
        model.save(CHECKPOINT)
        say(f"epoch {model.epoch}: loss {loss:.4f}, test accuracy {model.accuracy(test):.4f}, {now:.1f} s")


def options(description: str | None) -> argparse.ArgumentParser:
    """The command line that the training programs share."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--epochs", type=_positive, default=60, help="passes over the training data (60)")
    parser.add_argument("--seed", type=_natural, default=1, help="of the weights and of the batches (1)")
    parser.add_argument(
        "--seconds-min", type=duration, default=0.0, help="keep refining for at least this many seconds (0)"
    )
    return parser


def visible_devices() -> list[str]:
    """The cards this process may use, by the names in the environment; `cpu` where none is named."""
    for variable in _DEVICE_VARIABLES:
        names = [name.strip() for name in os.environ.get(variable, "").split(",") if name.strip()]
        if names:
            return names
    return ["cpu"]


def stop(model: Model, *, writes: bool = True) -> int:
    """Leave a checkpoint behind; returns the exit status of a job that was stopped."""
    if writes:
        model.save(CHECKPOINT)
        say(f"stopped in epoch {model.epoch + 1}; {CHECKPOINT} continues from there")
    return EXIT_STOPPED


def finish(model: Model, test: Examples, **facts: object) -> int:
    """Write the checkpoint and the result, whatever the accuracy; returns the exit status."""
    model.save(CHECKPOINT)
    result = {"test_accuracy": round(model.accuracy(test), 6), "epochs": model.epoch, **facts}
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return judge(model, test)


def judge(model: Model, test: Examples) -> int:
    """Say how good the model is; returns the exit status, 1 when it is not good enough."""
    accuracy = model.accuracy(test)
    if accuracy < ACCURACY_MIN:
        complain(f"test accuracy is {accuracy:.4f}, below {ACCURACY_MIN}; train for more epochs")
        return 1
    say(f"done: test accuracy {accuracy:.4f} after {model.epoch} epochs")
    return 0


def say(sentence: str) -> None:
    """Print a line at once, so that whoever follows the log sees it now."""
    print(sentence, flush=True)


def complain(sentence: str) -> None:
    """Print a line to standard error."""
    print(sentence, file=sys.stderr, flush=True)


def duration(text: str) -> float:
    """Seconds from the command line: finite and not negative."""
    seconds = float(text)
    if not 0.0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a duration in seconds")
    return seconds


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def _natural(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return number
