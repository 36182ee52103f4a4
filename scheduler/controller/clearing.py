"""Which running jobs must make way for the operator: a drain's deadline, an open maintenance window, a failed device.

The order to stop is written into the job and is one commit; the job is stopped like any other, with its own grace,
and queued again when its death is known (`settling.py`).
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from scheduler.controller.settling import DEVICE_FAILED, NODE_DRAINED
from scheduler.tables import JobRow

_ANYTHING: Final = text("""
SELECT EXISTS (SELECT FROM nodes WHERE drain_by <= :at)
    OR EXISTS (SELECT FROM devices WHERE failed)
    OR EXISTS (SELECT FROM reservations
                WHERE tenant_id IS NULL AND cancelled_at IS NULL AND begins_at <= :at AND ends_at > :at)
""")

_IN_THE_WAY: Final = text("""
SELECT j.id, min(a.node), bool_or(d.failed), bool_or(m.id IS NOT NULL)
  FROM jobs j
  JOIN runs r ON r.job_id = j.id AND r.attempt = j.attempt AND r.state <> 'ended'
  JOIN nodes n ON n.name = r.node
  JOIN allocations a ON a.run_id = r.id AND upper_inf(a.span)
  JOIN devices d ON d.node = a.node AND d.index = a.device_index
  LEFT JOIN (reserved_devices k JOIN reservations m ON m.id = k.reservation_id AND m.tenant_id IS NULL)
       ON k.slots && a.slots AND k.span @> CAST(:at AS timestamptz)
 WHERE j.state IN ('starting', 'running') AND j.stop_reason IS NULL
   AND (n.drain_by <= :at OR d.failed OR m.id IS NOT NULL)
 GROUP BY j.id ORDER BY j.id
""")


def order_clearing(session: Session, at: datetime) -> Sequence[UUID]:
    """Write down which jobs are to stop and why; the caller's transaction is fenced.

    Returns:
        The jobs, in order of their ids.
    """
    if not session.scalar(_ANYTHING, {"at": at}):
        return ()
    ordered = []
    for job_id, node, failed, maintained in session.execute(_IN_THE_WAY, {"at": at}).all():
        job = session.scalars(select(JobRow).where(JobRow.id == job_id).with_for_update()).one()
        if job.state not in {"starting", "running"} or job.stop_reason is not None:
            continue
        job.stop_reason = DEVICE_FAILED if failed else NODE_DRAINED
        cause = (
            "a device of node {} has failed" if failed
            else "the maintenance of node {} has begun" if maintained
            else "the time node {} had to run empty is over"
        )  # fmt: skip
        job.reason = f"{cause.format(node)}; it is being stopped and will be tried again"
        ordered.append(job.id)
    session.flush()
    return ordered
