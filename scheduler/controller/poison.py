"""Finds the one job that makes a plan fail, by halving, so that it can be set aside and the others go on."""

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def find_poison(items: Sequence[T], fails: Callable[[Sequence[T]], bool]) -> T | None:
    """The last item of the shortest prefix that fails; None when it fails without any, or does not fail at all.

    Asks about log₂ n prefixes. When several items fail, each call finds one of them.
    """
    if fails(()) or not fails(items):
        return None
    good, bad = 0, len(items)
    while bad - good > 1:
        middle = (good + bad) // 2
        if fails(items[:middle]):
            bad = middle
        else:
            good = middle
    return items[bad - 1]
