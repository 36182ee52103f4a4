"""How long a job will probably run, learned from jobs that ended; it may order jobs and guarantees nothing.

Up to three sources speak about a job: its enforced limit, its submitter's estimate, and what the same user's
job of the same name ran last. Each source is calibrated on ended jobs: its mean error in octaves corrects it,
the inverse of its mean squared error is its weight. Nothing is assumed about how good any source is.
Logarithms are integers in milli-octaves, so that equal histories give equal predictions everywhere.
"""

from bisect import bisect_right
from math import isqrt
from typing import Final

from scheduler.policy.model import Job

OCTAVE: Final = 1024
_STEPS: Final = 1024


def _mantissas() -> list[int]:
    # 2^(i/1024) in 2^-40ths: ten square roots of two, then powers by repeated multiplication.
    root = 2 << 200
    for _ in range(10):
        root = isqrt(root << 200)
    value, values = 1 << 200, []
    for _ in range(_STEPS):
        values.append(value >> 160)
        value = value * root >> 200
    return values


_MANTISSAS: Final = _mantissas()
_SHIFT: Final = 40
_TOP_BITS: Final = 10
_LOG_OF_TOP: Final = [bisect_right(_MANTISSAS, top << (_SHIFT - 9)) - 1 for top in range(1024)]
"""By the ten highest bits of a number, the first of which is set: what its logarithm is beyond a whole octave."""


def log2_milli(value: int) -> int:
    """The binary logarithm of a positive integer in 1/1024 octaves, to within two of them."""
    length = value.bit_length()
    return (length - 1) * OCTAVE + _LOG_OF_TOP[value << _TOP_BITS >> length]


def exp2_milli(octaves: int) -> int:
    """Two to the power of so many 1/1024 octaves, rounded down; 0 for a negative power."""
    whole, part = divmod(octaves, OCTAVE)
    if whole < 0:
        return 0
    mantissa = _MANTISSAS[part]
    return mantissa >> (_SHIFT - whole) if whole <= _SHIFT else mantissa << (whole - _SHIFT)


class Source:
    """One source of predictions and how well it has done."""

    __slots__ = ("bias", "count", "squares", "total", "weight")

    PRIOR_COUNT = 4
    """An untried source counts as if it had been wrong by an octave so often."""

    OFTEN = 64
    """After so many lessons it is settled only as often."""

    def __init__(self) -> None:
        self.count = 0
        self.total = 0
        self.squares = 0
        self._settle()

    def learn(self, error: int) -> None:
        """The truth was `error` milli-octaves above what the source said."""
        self.count += 1
        self.total += error
        self.squares += error * error
        if self.count < self.OFTEN or not self.count % self.OFTEN:
            self._settle()

    def _settle(self) -> None:
        count = self.count + self.PRIOR_COUNT
        self.bias = self.total // count
        mean_square = (self.squares + self.PRIOR_COUNT * OCTAVE * OCTAVE) // count
        self.weight = (OCTAVE * OCTAVE << 10) // max(256, mean_square - self.bias * self.bias)


class Predictor:
    """Predictions from limit, estimate and history, weighed by how well each has done."""

    HISTORY_MAX = 100_000
    """Names remembered; the longest unseen one is forgotten first."""

    def __init__(self) -> None:
        self._limit = Source()
        self._estimate = Source()
        self._last = Source()
        self._history: dict[tuple[str, str, str], int] = {}

    def predict_ms(self, job: Job) -> int:
        """What the job will probably run: at least 1, never above its limit."""
        source = self._limit
        weight = source.weight
        total = weight * (log2_milli(job.time_limit_ms) + source.bias)
        if job.estimate_ms is not None:
            source = self._estimate
            total += source.weight * (log2_milli(job.estimate_ms) + source.bias)
            weight += source.weight
        if job.name:
            last = self._history.get((job.tenant, job.user, job.name))
            if last is not None:
                source = self._last
                total += source.weight * (last + source.bias)
                weight += source.weight
        return max(1, min(job.time_limit_ms, exp2_milli(total // weight)))

    def learn(self, job: Job, ran_ms: int) -> None:
        """The job ended by itself after so long."""
        truth = log2_milli(max(1, ran_ms))
        self._limit.learn(truth - log2_milli(job.time_limit_ms))
        if job.estimate_ms is not None:
            self._estimate.learn(truth - log2_milli(job.estimate_ms))
        if job.name:
            key = (job.tenant, job.user, job.name)
            last = self._history.pop(key, None)
            if last is not None:
                self._last.learn(truth - last)
            elif len(self._history) >= self.HISTORY_MAX:
                del self._history[next(iter(self._history))]
            self._history[key] = truth
