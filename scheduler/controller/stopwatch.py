"""How long placed attempts have had their devices, by CLOCK_BOOTTIME, so that no step of the wall clock shows in it.

Only at the first look (after a change of the leader) the wall clock has to say what passed before.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

from scheduler.tables import JobRow


class Stopwatch:
    """Remembers, by job and attempt, when it was first seen and what had passed by then."""

    def __init__(self) -> None:
        self._seen: dict[tuple[UUID, int], int] = {}

    def elapsed_ms(self, jobs: Sequence[JobRow], at: datetime, now_boot_ms: int) -> dict[UUID, int]:
        """By job, the milliseconds since its attempt was placed; forgets every job that is not named."""
        began = {}
        for job in jobs:
            before = 0 if job.placed_at is None else max(0, (at - job.placed_at) // timedelta(milliseconds=1))
            key = (job.id, job.attempt)
            began[key] = self._seen.get(key, now_boot_ms - before)
        self._seen = began
        return {job_id: now_boot_ms - began_boot_ms for (job_id, _), began_boot_ms in began.items()}
