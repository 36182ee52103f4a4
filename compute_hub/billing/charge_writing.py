"""Writing what a batch of jobs was charged: charges, their lines, which records they are about, and how far jobs came.

A charge and the records it is about are written in the transaction in which these leave the queue; the number of
statements does not depend on how many there are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy.orm import Session

from compute_hub.billing.domain.rating import Priced, share_out
from compute_hub.billing.tables import ChargedUsageRow, ChargeLineRow, ChargeRow
from compute_hub.billing.uncharged import Streak, follows
from kernel.bulk import array, array_of_text, copy_rows, run
from kernel.errors import Conflict
from vouchers.domain.explanation import ROUNDING, Coverage

VolumeKey = tuple[UUID, str, str]
"""Tenant, model and month."""

_FUNDINGS: Final = b"""
    UPDATE job_funding x SET rated_units = u.units, charges = u.charges, state = u.state
      FROM unnest(%s::uuid[], %s::numeric[], %s::bigint[], %s::text[]) AS u(job_id, units, charges, state)
     WHERE x.job_id = u.job_id
"""
_VOLUMES: Final = b"""
    INSERT INTO tenant_volumes (tenant_id, model, month, slot_ms)
    SELECT * FROM unnest(%s::uuid[], %s::text[], %s::text[], %s::bigint[])
    ON CONFLICT (tenant_id, model, month) DO UPDATE SET slot_ms = tenant_volumes.slot_ms + excluded.slot_ms
"""
_UNQUEUE: Final = b"""
    WITH gone AS (
        DELETE FROM uncharged_usage x
         USING unnest(%s::uuid[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[])
            AS u(job_id, attempt, rank, first_k, until_k)
         WHERE x.job_id = u.job_id AND x.attempt = u.attempt AND x.rank = u.rank
           AND x.k >= u.first_k AND x.k < u.until_k
        RETURNING x.k)
    SELECT count(*) FROM gone
"""


class RecordsTaken(Conflict):
    """Somebody else charged records of this batch meanwhile; nothing of it is kept."""

    sentence = "Of {expected} records to be charged only {left} still waited."


@dataclass
class Written:
    """What is to be written of all jobs."""

    charges: list[dict[str, Any]] = field(default_factory=list)
    lines: list[dict[str, Any]] = field(default_factory=list)
    charged: list[dict[str, Any]] = field(default_factory=list)
    done: list[Streak] = field(default_factory=list)
    volumes: dict[VolumeKey, int] = field(default_factory=dict)
    fundings: list[tuple[UUID, int, int, str]] = field(default_factory=list)
    """Of each job its exact cost so far, how many charges it has, and its state."""


def charge_values(
    charge_id: UUID,
    n: int,
    coverage: Coverage,
    *,
    job_id: UUID,
    tenant_id: UUID,
    attempt: int,
    model: str,
    month: str,
    slot_ms: int,
    cost: int,
    at: datetime,
) -> dict[str, Any]:
    """A charge as it is kept: what it cost, who paid which part, and what of it is forgone."""
    return {
        "id": charge_id,
        "job_id": job_id,
        "tenant_id": tenant_id,
        "n": n,
        "attempt": attempt,
        "model": model,
        "month": month,
        "slot_ms": slot_ms,
        "amount_micros": coverage.cost_micros,
        "voucher_micros": coverage.public_micros - coverage.reimbursed_micros,
        "tenant_micros": coverage.tenant_micros,
        "rounding_micros": sum(line.amount_micros for line in coverage.lines if line.source == ROUNDING),
        "forgone_micros": cost - coverage.cost_micros,
        "charged_at": at,
    }


def line_values(charge_id: UUID, units_before: int, pieces: Sequence[Priced]) -> list[dict[str, Any]]:
    """A charge's lines, one per price; their costs telescope to the charge's."""
    return [
        {
            "charge_id": charge_id,
            "line": number,
            "rate_id": piece.rate_id,
            "window": piece.window,
            "from_slot_ms": piece.from_slot_ms,
            "price_micros": piece.price_micros,
            "slot_ms": piece.slot_ms,
            "cost_micros": cost,
        }
        for number, (piece, cost) in enumerate(zip(pieces, share_out(units_before, pieces), strict=True))
    ]


def ranges_of(charge_id: UUID, streaks: Sequence[Streak]) -> list[dict[str, Any]]:
    """Which records a charge is about; streaks without a gap between them are one range."""
    found: list[dict[str, Any]] = []
    before: Streak | None = None
    for streak in streaks:
        if before is not None and follows(before, streak):
            found[-1]["until_k"] = streak.until_k
        else:
            found.append(
                {
                    "job_id": streak.job_id,
                    "attempt": streak.attempt,
                    "rank": streak.rank,
                    "first_k": streak.first_k,
                    "until_k": streak.until_k,
                    "charge_id": charge_id,
                }
            )
        before = streak
    return found


def write_charges(session: Session, written: Written) -> None:
    """Write all of it. Raises RecordsTaken."""
    copy_rows(session, ChargeRow, written.charges)
    copy_rows(session, ChargeLineRow, written.lines)
    copy_rows(session, ChargedUsageRow, written.charged)
    _unqueue(session, written.done)
    if written.volumes:
        keys = list(written.volumes)
        columns = (
            array(tenant_id for tenant_id, _, _ in keys),
            array_of_text(model for _, model, _ in keys),
            array_of_text(month for _, _, month in keys),
            array(written.volumes.values()),
        )
        run(session, _VOLUMES, columns)
    if written.fundings:
        jobs, units, charges, states = zip(*written.fundings, strict=True)
        columns = (array(jobs), array(units), array(charges), array_of_text(states))
        run(session, _FUNDINGS, columns)


def _unqueue(session: Session, done: Sequence[Streak]) -> None:
    """Take what was charged out of the queue, in which every record of it must still be. Raises RecordsTaken."""
    if not done:
        return
    columns = (
        array(streak.job_id for streak in done),
        array(streak.attempt for streak in done),
        array(streak.rank for streak in done),
        array(streak.first_k for streak in done),
        array(streak.until_k for streak in done),
    )
    ((left,),) = run(session, _UNQUEUE, columns)
    expected = sum(streak.until_k - streak.first_k for streak in done)
    if left != expected:
        raise RecordsTaken(left=left, expected=expected)
