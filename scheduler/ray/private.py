"""Jobs of kind `ray`: what a rank of them runs, and what it needs beyond what it asked for."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

KIND: Final = "ray"

PIDS: Final = 4096
"""Threads count: Ray's own processes have hundreds."""

_SOURCE: Final = Path(__file__).with_name("rank.py").read_text(encoding="utf-8")


def rank_argv(argv: Sequence[str], *, cpu_milli: int, memory_mib: int) -> tuple[str, ...]:
    """The command of every rank: Ray, and on rank 0 the tenant's program. The environment must have Python and Ray."""
    return ("python", "-c", _SOURCE, str(max(1, cpu_milli // 1000)), str(memory_mib), *argv)
