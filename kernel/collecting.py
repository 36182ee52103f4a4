"""How often Python looks for garbage in cycles: seldom, in processes that serve for long and make little of it."""

import gc
from typing import Final

_YOUNG: Final = 20_000
"""Objects made and not freed before the youngest are looked through; Python's own 700 are a few requests' worth."""

_OLDER: Final = 20
"""Looks at a generation before the next one is looked at."""


def collect_seldom() -> None:
    """Leave alone what is there now (modules, tables, routes: none of it is garbage), and look seldom at the rest."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, _OLDER, _OLDER)
