"""Forgetting with a half-life, in integers, so that two machines never disagree about a share."""

from math import isqrt
from typing import Final

_STEPS: Final = 64


def _powers() -> tuple[int, ...]:
    # 2^(-1/64) is six square roots of one half; 200 bits leave no doubt about the last of the 30 we keep.
    scale = 200
    root = 1 << (scale - 1)
    for _ in range(6):
        root = isqrt(root << scale)
    power, powers = 1 << scale, []
    for _ in range(_STEPS):
        powers.append(power >> (scale - 30))
        power = power * root >> scale
    return tuple(powers)


_POWERS: Final = _powers()


def decayed(value: int, elapsed_ms: int, half_life_ms: int) -> int:
    """`value` after `elapsed_ms`: halved every `half_life_ms`, in 64 steps per half-life, rounded down."""
    steps = elapsed_ms * _STEPS // half_life_ms
    halvings, step = divmod(steps, _STEPS)
    if halvings > value.bit_length():
        return 0
    return value * _POWERS[step] >> (30 + halvings)
