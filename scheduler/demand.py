"""What jobs that could start now, were there room, wait for: by shape, so that somebody may add machines for them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import text
from sqlalchemy.orm import Session

SHAPES_MAX: Final = 500
"""Shapes told of; the longest waiting."""

_WAITING: Final = text("""
SELECT models, node_count, devices_per_node, slots_milli, cpu_milli, memory_mib, count(*), min(queued_at)
  FROM jobs j
 WHERE state = 'queued' AND stop_reason IS NULL AND NOT held
   AND (not_before IS NULL OR not_before <= :at) AND (retry_at IS NULL OR retry_at <= :at)
   AND NOT EXISTS (SELECT FROM jobs needed WHERE needed.id = ANY (j.depends_on) AND needed.state <> 'succeeded')
 GROUP BY models, node_count, devices_per_node, slots_milli, cpu_milli, memory_mib
 ORDER BY min(queued_at), models, node_count, devices_per_node, slots_milli, cpu_milli, memory_mib
 LIMIT :most
""")


@dataclass(frozen=True)
class Demanded:
    """`jobs` waiting jobs, each of which needs `nodes` machines with so much on each."""

    models: Sequence[str]
    nodes: int
    devices_per_node: int
    slots_milli: int
    cpu_milli: int
    memory_mib: int
    jobs: int
    oldest_queued_at: datetime


_RUNNING: Final = text("""
SELECT models, node_count, devices_per_node, slots_milli, cpu_milli, memory_mib, count(*), min(queued_at)
  FROM jobs WHERE state IN ('starting', 'running', 'stopping')
 GROUP BY models, node_count, devices_per_node, slots_milli, cpu_milli, memory_mib
 ORDER BY min(queued_at), models, node_count, devices_per_node, slots_milli, cpu_milli, memory_mib
 LIMIT :most
""")


def running_demand(session: Session) -> list[Demanded]:
    """The same of the jobs that are placed. Reads only."""
    return [Demanded(tuple(models), *rest) for models, *rest in session.execute(_RUNNING, {"most": SHAPES_MAX})]


def waiting_demand(session: Session, at: datetime) -> list[Demanded]:
    """By shape, the longest waiting first. Reads only."""
    rows = session.execute(_WAITING, {"at": at, "most": SHAPES_MAX})
    return [Demanded(tuple(models), *rest) for models, *rest in rows]
