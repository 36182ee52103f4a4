"""Card time that reservations kept, and what became of it: what the holder did not use is the holder's all the same.

A reservation's card time is its devices' from its begin to its end (or cancellation, or now). Used is what jobs of its
holder were allocated of it; what others still held of it, from before it was made, the holder could not have.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

_SLOTS_PER_CARD: Final = 1000

_KEPT: Final = text("""
WITH kept AS (
    SELECT k.reservation_id, r.tenant_id, k.slots, k.span * tstzrange(NULL, CAST(:at AS timestamptz)) AS span
      FROM reserved_devices k JOIN reservations r ON r.id = k.reservation_id
     WHERE k.reservation_id = ANY (:ids)),
taken AS (
    SELECT kept.reservation_id, jobs.tenant_id = kept.tenant_id AS own, kept.span * a.span AS span,
           upper(kept.slots * a.slots) - lower(kept.slots * a.slots) AS width
      FROM kept JOIN allocations a ON a.slots && kept.slots AND a.span && kept.span
      JOIN runs ON runs.id = a.run_id JOIN jobs ON jobs.id = runs.job_id)
SELECT reservation_id, CAST(sum(1000 * floor(1000 * extract(epoch FROM upper(span) - lower(span)))) AS bigint), 0, 0
  FROM kept WHERE NOT isempty(span) GROUP BY reservation_id
UNION ALL
SELECT reservation_id, 0,
       CAST(coalesce(sum(width * floor(1000 * extract(epoch FROM upper(span) - lower(span))))
                     FILTER (WHERE own), 0) AS bigint),
       CAST(coalesce(sum(width * floor(1000 * extract(epoch FROM upper(span) - lower(span))))
                     FILTER (WHERE own IS NOT TRUE), 0) AS bigint)
  FROM taken GROUP BY reservation_id
""")


@dataclass(frozen=True)
class Reserved:
    """Card time in milliseconds of one reservation so far."""

    reserved_ms: int
    used_ms: int
    others_ms: int

    @property
    def unused_ms(self) -> int:
        """Kept for the holder and not used by it."""
        return max(0, self.reserved_ms - self.used_ms - self.others_ms)


def reserved_time(session: Session, ids: Sequence[UUID], at: datetime) -> dict[UUID, Reserved]:
    """By reservation, its card time up to an instant. Reads only."""
    sums = {one: [0, 0, 0] for one in ids}
    for reservation_id, *parts in session.execute(_KEPT, {"ids": list(ids), "at": at}):
        for place, slot_ms in enumerate(parts):
            sums[reservation_id][place] += slot_ms
    return {one: Reserved(*(slot_ms // _SLOTS_PER_CARD for slot_ms in parts)) for one, parts in sums.items()}
