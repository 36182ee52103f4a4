"""Whose card time was used, idle, or reserved and not used at all: always that of whoever held the cards.

Four parts of one whole: what was allocated is metered or unused (starting, ending, lost nodes), and what was metered
is busy or idle. Busy time is what the device itself says; a simulated device counts its job's processor time.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from kernel.clock import from_unix_ms

_SLOTS_PER_CARD: Final = 1000

_ALLOCATED: Final = text("""
SELECT jobs.id, jobs.tenant_id, allocations.model,
       CAST(sum((upper(slots) - lower(slots)) * greatest(0, floor(1000 * extract(epoch FROM
           least(coalesce(upper(span), CAST(:at AS timestamptz)), CAST(:until AS timestamptz))
           - greatest(lower(span), CAST(:since AS timestamptz)))))) AS bigint)
FROM allocations JOIN runs ON runs.id = run_id JOIN jobs ON jobs.id = runs.job_id
WHERE span && tstzrange(:since, :until) AND (CAST(:tenant AS uuid) IS NULL OR jobs.tenant_id = :tenant)
  AND (CAST(:job AS uuid) IS NULL OR jobs.id = :job)
GROUP BY jobs.id, jobs.tenant_id, allocations.model
""")

_METERED: Final = text("""
SELECT usage_records.job_id, model, CAST(sum(slot_ms) AS bigint),
       CAST(sum(least(busy_ms * 1000, slot_ms)) AS bigint), CAST(sum(energy_mj) AS bigint),
       coalesce(bool_or(energy_basis = 'estimated'), false), coalesce(max(memory_bytes_max), 0),
       max(device_memory_bytes_max)
FROM usage_records JOIN jobs ON jobs.id = usage_records.job_id
WHERE usage_records.started_at + (offset_ms + duration_ms) * interval '1 millisecond' > :since
  AND usage_records.started_at + offset_ms * interval '1 millisecond' < :until
  AND (CAST(:tenant AS uuid) IS NULL OR jobs.tenant_id = :tenant)
  AND (CAST(:job AS uuid) IS NULL OR jobs.id = :job)
GROUP BY usage_records.job_id, model
""")


@dataclass(frozen=True)
class Held:
    """Card time in milliseconds of one job on one model, by what became of it, and the energy it took.

    `energy_mj` (millijoules) is None where no record knows it, and estimated where any of it is.
    """

    job_id: UUID
    tenant_id: UUID
    model: str
    allocated_ms: int
    metered_ms: int
    busy_ms: int
    energy_mj: int | None = None
    energy_estimated: bool = False
    memory_bytes_max: int = 0
    device_memory_bytes_max: int | None = None

    @property
    def unused_ms(self) -> int:
        """Allocated and never metered: reserved but not used."""
        return max(0, self.allocated_ms - self.metered_ms)

    @property
    def idle_ms(self) -> int:
        """Metered, with nothing on the device."""
        return self.metered_ms - self.busy_ms


def held_time(
    session: Session,
    *,
    at: datetime,
    tenant_id: UUID | None = None,
    job_id: UUID | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> list[Held]:
    """Card time by job and model within a period; records count whole in the periods they touch."""
    asked = {
        "at": at,
        "since": since or from_unix_ms(0),
        "until": until or at,
        "tenant": tenant_id,
        "job": job_id,
    }
    metered = {
        (job, model): (int(slot_ms), int(busy), *rest)
        for job, model, slot_ms, busy, *rest in session.execute(_METERED, asked)
    }
    found = []
    for job, tenant, model, slot_ms in session.execute(_ALLOCATED, asked):
        used, busy, *rest = metered.get((job, model), (0, 0, None, False, 0, None))
        cards = (slot_ms // _SLOTS_PER_CARD, used // _SLOTS_PER_CARD, busy // _SLOTS_PER_CARD)
        found.append(Held(job, tenant, model, *cards, *rest))
    return sorted(found, key=lambda held: (held.job_id, held.model))
