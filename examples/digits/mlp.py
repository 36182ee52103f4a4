"""A perceptron with one hidden layer, on the handwritten digits that scikit-learn ships.

All parameters live in one flat vector: averaging gradients, comparing ranks and writing a checkpoint are then
each a single operation on one array. Nothing here knows how many cards or processes train.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

# Must precede numpy: a job has the cores it asked for, but BLAS would start a thread for every core it sees.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

PIXELS: Final = 64
HIDDEN: Final = 96
CLASSES: Final = 10
BATCH: Final = 64
"""Images per step, over all cards of all ranks together."""

_SHAPES: Final = ((PIXELS, HIDDEN), (HIDDEN,), (HIDDEN, CLASSES), (CLASSES,))
_ENDS: Final = np.cumsum([np.prod(shape) for shape in _SHAPES])
_LEARNING_RATE: Final = 0.05
_MOMENTUM: Final = 0.9
_WEIGHT_DECAY: Final = 1e-4
_SPLIT_SEED: Final = 0
"""Fixed, so that accuracies compare and a resumed run never tests on what it has learned."""

np.seterr(divide="raise", over="raise", invalid="raise")


@dataclass(frozen=True)
class Examples:
    """Images as rows of 64 grey values in [0, 1], each with the digit it shows."""

    images: Floats
    labels: Labels

    def __len__(self) -> int:
        """How many images."""
        return len(self.labels)

    def __getitem__(self, rows: Labels | slice) -> "Examples":
        """The images of these rows."""
        return Examples(self.images[rows], self.labels[rows])

    def parts(self, count: int) -> list["Examples"]:
        """Cut in order into `count` parts whose sizes differ by at most one."""
        return [self[rows] for rows in np.array_split(np.arange(len(self)), count)]

    def shuffled(self, *seeds: int) -> "Examples":
        """In an order that depends on the seeds alone."""
        return self[np.random.default_rng(seeds).permutation(len(self))]


@dataclass
class Model:
    """What training changes, and all that a checkpoint holds."""

    weights: Floats
    velocity: Floats
    epoch: int = 0

    def step(self, sums: Floats) -> float:
        """One step of gradient descent with momentum and weight decay.

        Args:
            sums: of the whole batch, as `batch_sums` makes them.

        Returns:
            The mean loss of the batch before the step.
        """
        loss, count = sums[-2:]
        gradient = sums[:-2] / count
        self.velocity = _MOMENTUM * self.velocity + gradient + _WEIGHT_DECAY * self.weights
        self.weights = self.weights - _LEARNING_RATE * self.velocity
        return float(loss / count)

    def accuracy(self, examples: Examples) -> float:
        """The share of images whose digit is recognised."""
        _, scores = _forward(self.weights, examples.images)
        return float(np.mean(scores.argmax(axis=1) == examples.labels))

    def fingerprint(self) -> str:
        """SHA-256 over every bit of the weights."""
        return hashlib.sha256(self.weights.tobytes()).hexdigest()

    def save(self, path: Path) -> None:
        """Write a checkpoint; whoever reads `path` finds the previous one or this one, never half of either."""
        partial = path.with_name(path.name + ".partial")
        with partial.open("wb") as file:
            np.savez(file, weights=self.weights, velocity=self.velocity, epoch=self.epoch)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)


def steps_per_epoch(images: int) -> int:
    """How many batches a pass over this many images takes."""
    return -(-images // BATCH)


def load_data() -> tuple[Examples, Examples]:
    """The 1,797 digits as training and test examples, 4 : 1, each digit in its proportion."""
    images, labels = load_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(
        images / 16.0, labels, test_size=0.2, stratify=labels, random_state=_SPLIT_SEED
    )
    return Examples(train_x, train_y), Examples(test_x, test_y)


def new_model(seed: int) -> Model:
    """Random weights, scaled so that signals keep their variance (He et al., ICCV 2015); biases are zero."""
    random = np.random.default_rng(seed)
    pieces = [
        random.normal(0.0, np.sqrt(2.0 / shape[0]), shape).ravel() if len(shape) > 1 else np.zeros(shape)
        for shape in _SHAPES
    ]
    weights = np.concatenate(pieces)
    return Model(weights, np.zeros_like(weights))


def load_model(path: Path) -> Model:
    """The model of a checkpoint that `Model.save` wrote."""
    with np.load(path, allow_pickle=False) as stored:
        return Model(stored["weights"], stored["velocity"], int(stored["epoch"]))


def batch_sums(weights: Floats, examples: Examples) -> Floats:
    """The gradient of the cross-entropy, then the cross-entropy, then the count, each summed over the examples.

    Sums of parts add up to the sums of the whole, so cards and ranks may have micro-batches of unequal size.
    """
    hidden, scores = _forward(weights, examples.images)
    _, _, output, _ = _layers(weights)
    scores -= scores.max(axis=1, keepdims=True)
    log_likelihood = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    rows = np.arange(len(examples))
    error = np.exp(log_likelihood)
    error[rows, examples.labels] -= 1.0
    hidden_error = (error @ output.T) * (hidden > 0.0)
    gradient = (examples.images.T @ hidden_error, hidden_error.sum(axis=0), hidden.T @ error, error.sum(axis=0))
    loss = -log_likelihood[rows, examples.labels].sum()
    return np.concatenate([*(piece.ravel() for piece in gradient), [loss, len(examples)]])


def add_messages(messages: list[bytes]) -> bytes:
    """The sum of vectors that travel as bytes, added in the order given: the same bits every time."""
    return sum(map(from_message, messages)).tobytes()


def from_message(message: bytes) -> Floats:
    """The vector that travelled as bytes."""
    return np.frombuffer(message, dtype=np.float64)


def _forward(weights: Floats, images: Floats) -> tuple[Floats, Floats]:
    into_hidden, hidden_bias, output, output_bias = _layers(weights)
    hidden = np.maximum(images @ into_hidden + hidden_bias, 0.0)
    return hidden, hidden @ output + output_bias


def _layers(weights: Floats) -> list[Floats]:
    pieces = np.split(weights, _ENDS[:-1])
    return [piece.reshape(shape) for piece, shape in zip(pieces, _SHAPES, strict=True)]
