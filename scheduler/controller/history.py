"""What a new leader's policy must know of the past, read from the tables: who used how much lately, how long jobs ran.

Without it every change of the leader would make all tenants equal again and all predictions those of a beginner.
"""

from collections.abc import Mapping
from datetime import timedelta
from typing import Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from kernel.clock import from_unix_ms, unix_ms
from scheduler.controller.picture import job_of
from scheduler.policy.decay import decayed
from scheduler.policy.model import MS_PER_HOUR
from scheduler.policy.state import SchedulerState
from scheduler.tables import AllocationRow, JobRow, RunRow

HALF_LIVES: Final = 8
"""Use longer ago counts less than a 256th and is left out."""

DURATIONS_MAX: Final = 2000
"""Ended jobs from which durations are learned; the latest."""

_HALF_LIFE_MS: Final = 24 * MS_PER_HOUR
_SCALE_BITS: Final = 20


def learn_durations(session: Session, policy: SchedulerState) -> None:
    """Let the policy learn from the latest jobs that succeeded, in the order of their ends."""
    rows = session.scalars(
        select(JobRow)
        .where(JobRow.state == "succeeded")
        .order_by(JobRow.ended_at.desc(), JobRow.id)
        .limit(DURATIONS_MAX)
    ).all()
    for row in reversed(rows):
        if row.placed_at is not None and row.ended_at is not None:
            policy.predictor.learn(job_of(row), (row.ended_at - row.placed_at) // timedelta(milliseconds=1))


def recent_use(session: Session, now_ms: int, half_lives_ms: Mapping[str, int]) -> dict[tuple[str, str], int]:
    """By tenant and model, the half-life average of milli-slots used, worked out from allocations.

    An allocation of w slots over [a, b) contributes w × (2^-((now-b)/h) - 2^-((now-a)/h)).
    """
    longest_ms = max(half_lives_ms.values(), default=_HALF_LIFE_MS)
    since = from_unix_ms(max(0, now_ms - HALF_LIVES * longest_ms))
    lower, upper = func.lower(AllocationRow.span), func.upper(AllocationRow.span)
    width = func.upper(AllocationRow.slots) - func.lower(AllocationRow.slots)
    rows = session.execute(
        select(JobRow.tenant_id, AllocationRow.model, width, lower, upper)
        .join(RunRow, RunRow.id == AllocationRow.run_id)
        .join(JobRow, JobRow.id == RunRow.job_id)
        .where(func.upper_inf(AllocationRow.span) | (upper > since))
    )
    scaled: dict[tuple[str, str], int] = {}
    for tenant_id, model, slots, began, ended in rows:
        half_life_ms = half_lives_ms.get(str(tenant_id), _HALF_LIFE_MS)
        weight = int(slots) << _SCALE_BITS
        began_ms = min(now_ms, unix_ms(began))
        ended_ms = now_ms if ended is None else min(now_ms, unix_ms(ended))
        part = decayed(weight, now_ms - ended_ms, half_life_ms) - decayed(
            weight, now_ms - began_ms, half_life_ms
        )
        key = (str(tenant_id), model)
        scaled[key] = scaled.get(key, 0) + part
    return {key: value >> _SCALE_BITS for key, value in sorted(scaled.items())}
