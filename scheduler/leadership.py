"""At most one controller acts: a lease row with an epoch, checked inside every write transaction.

A controller that was stopped and resumed finds the epoch gone and can write nothing. Node supervisors refuse an
epoch older than one they have seen, so it can start or stop nothing either.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from scheduler.refusals import LeadershipLost
from scheduler.tables import LeaderRow


@dataclass(frozen=True)
class Leadership:
    """A won lease: who holds it and the epoch that fences everybody before."""

    holder: str
    epoch: int


def acquire(session: Session, holder: str, lease: timedelta, at: datetime) -> Leadership | None:
    """Take the lease if it is free or lapsed, with the next epoch; None while somebody else holds it."""
    lapsed = at - timedelta(microseconds=1)
    session.execute(
        insert(LeaderRow).values(id=1, holder="", epoch=0, expires_at=lapsed).on_conflict_do_nothing()
    )
    row = session.scalars(select(LeaderRow).with_for_update()).one()
    if row.expires_at > at:
        return None
    row.holder, row.epoch, row.expires_at = holder, row.epoch + 1, at + lease
    return Leadership(holder, row.epoch)


def renew(session: Session, leadership: Leadership, lease: timedelta, at: datetime) -> None:
    """Push the lease's end out. Raises LeadershipLost when another epoch has begun."""
    row = session.scalars(select(LeaderRow).with_for_update()).one()
    if row.epoch != leadership.epoch:
        raise LeadershipLost(holder=leadership.holder, epoch=leadership.epoch)
    row.expires_at = at + lease


def resign(session: Session, leadership: Leadership, at: datetime) -> None:
    """Let the lease lapse now, so that a standby need not wait for it. Does nothing when it is already lost."""
    row = session.scalars(select(LeaderRow).with_for_update()).one()
    if row.epoch == leadership.epoch:
        row.expires_at = at


def fence(session: Session, leadership: Leadership) -> None:
    """Hold the leadership for the rest of this transaction. Raises LeadershipLost; write nothing before this."""
    epoch = session.scalars(select(LeaderRow.epoch).with_for_update(read=True)).one()
    if epoch != leadership.epoch:
        raise LeadershipLost(holder=leadership.holder, epoch=leadership.epoch)
