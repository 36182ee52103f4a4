"""Which lines of a claim are inspected: drawn from a recorded seed, so that anybody can draw them again."""

import hashlib
from collections.abc import Iterable


def draw(seed: str, line_ids: Iterable[str], count: int) -> tuple[str, ...]:
    """The `count` lines whose SHA-256 of seed and id is smallest, in that order."""
    return tuple(sorted(line_ids, key=lambda line_id: (_ticket(seed, line_id), line_id))[:count])


def _ticket(seed: str, line_id: str) -> str:
    return hashlib.sha256(f"{len(seed)}:{seed}{line_id}".encode()).hexdigest()
