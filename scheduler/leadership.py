"""At most one controller acts: a lease row with an epoch, checked inside every write transaction.

A controller that was stopped and resumed finds the epoch gone and can write nothing. Node supervisors refuse an
epoch older than one they have seen, so it can start or stop nothing either.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import BigInteger, Boolean, bindparam, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from scheduler.refusals import LeadershipLost
from scheduler.tables import LeaderRow

_FENCE: Final = select(func.scheduler_fence(bindparam("alone", type_=Boolean), type_=BigInteger))


@dataclass(frozen=True)
class Leadership:
    """A won lease: who holds it and the epoch that fences everybody before."""

    holder: str
    epoch: int


def acquire(session: Session, holder: str, lease: timedelta, at: datetime) -> Leadership | None:
    """Take the lease if it is free or lapsed, with the next epoch; None while somebody else holds it.

    Whoever is in the middle of a transaction under the old epoch finishes it first, or is ended by the database.
    """
    held = session.scalars(select(LeaderRow.expires_at)).one_or_none()
    if held is not None and held > at:
        return None
    _fence(session, alone=True)
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
    fence(session, leadership)
    session.execute(update(LeaderRow).values(expires_at=at + lease))


def resign(session: Session, leadership: Leadership, at: datetime) -> None:
    """Let the lease lapse now, so that a standby need not wait for it. Does nothing when it is already lost."""
    session.execute(update(LeaderRow).where(LeaderRow.epoch == leadership.epoch).values(expires_at=at))


def fence(session: Session, leadership: Leadership) -> None:
    """Hold the leadership for the rest of this transaction. Raises LeadershipLost; write nothing before this."""
    if _fence(session, alone=False) != leadership.epoch:
        raise LeadershipLost(holder=leadership.holder, epoch=leadership.epoch)


def _fence(session: Session, *, alone: bool) -> int | None:
    return session.scalars(_FENCE, {"alone": alone}).one()
