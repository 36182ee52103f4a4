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

from kernel.prepared import Prepared
from scheduler.refusals import LeadershipLost
from scheduler.tables import LeaderRow

_FENCE: Final = Prepared(select(func.scheduler_fence(bindparam("alone", type_=Boolean), type_=BigInteger)))


@dataclass(frozen=True)
class Leadership:
    """A won lease: who holds it and the epoch that fences everybody before."""

    holder: str
    epoch: int


@dataclass(frozen=True)
class Standing:
    """How the lease stands: it goes on for `lease_ms` after each renewal, unless it is not held."""

    epoch: int
    renewals: int
    lease_ms: int
    held: bool


def standing(session: Session) -> Standing:
    """How the lease stands now; one that nobody ever had is held by nobody."""
    row = session.scalars(select(LeaderRow).execution_options(populate_existing=True)).one_or_none()
    return Standing(0, 0, 0, held=False) if row is None else _standing(row)


def acquire(
    session: Session, holder: str, lease: timedelta, at: datetime, *, lapsed: Standing
) -> Leadership | None:
    """Take the lease with the next epoch, if it stands as the caller saw it lapse; None if somebody was quicker.

    Whoever is in the middle of a transaction under the old epoch finishes it first, or is ended by the database.
    """
    _fence(session, alone=True)
    first = insert(LeaderRow).values(
        id=1, holder="", epoch=0, held=False, lease_ms=0, renewals=0, expires_at=at
    )
    session.execute(first.on_conflict_do_nothing())
    query = select(LeaderRow).with_for_update().execution_options(populate_existing=True)
    row = session.scalars(query).one()
    if _standing(row) != lapsed:
        return None
    row.holder, row.epoch, row.held, row.renewals = holder, row.epoch + 1, True, 0
    row.lease_ms, row.expires_at = lease // timedelta(milliseconds=1), at + lease
    return Leadership(holder, row.epoch)


def renew(session: Session, leadership: Leadership, lease: timedelta, at: datetime) -> None:
    """Push the lease's end out. Raises LeadershipLost when another epoch has begun."""
    fence(session, leadership)
    session.execute(update(LeaderRow).values(renewals=LeaderRow.renewals + 1, expires_at=at + lease))


def resign(session: Session, leadership: Leadership, at: datetime) -> None:
    """Let the lease lapse now, so that a standby need not wait for it. Does nothing when it is already lost."""
    session.execute(
        update(LeaderRow).where(LeaderRow.epoch == leadership.epoch).values(held=False, expires_at=at)
    )


def fence(session: Session, leadership: Leadership) -> None:
    """Hold the leadership for the rest of this transaction. Raises LeadershipLost; write nothing before this."""
    if _fence(session, alone=False) != leadership.epoch:
        raise LeadershipLost(holder=leadership.holder, epoch=leadership.epoch)


def _standing(row: LeaderRow) -> Standing:
    return Standing(row.epoch, row.renewals, row.lease_ms, row.held)


def _fence(session: Session, *, alone: bool) -> int | None:
    ((epoch,),) = _FENCE(session, alone=alone)
    return None if epoch is None else int(epoch)
