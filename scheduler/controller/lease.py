"""The lease of leadership while it is held: renewed beside the steps, so that a step may take longer than the lease.

A thread of its own renews it over a connection of its own. What it may not do is keep alive a leader that no longer
works: it renews only while the steps get on. So a process that is stopped, a thread that is dead and a step that hangs
all lose the lease; whoever has lost it is fenced in the database by the epoch, whatever this object believes.
"""

import threading
from datetime import timedelta
from typing import Final

import structlog
from sqlalchemy import Engine

from kernel.clock import boottime_ms, utc_now
from kernel.database import transaction
from scheduler.leadership import Leadership, Standing, acquire, renew, resign, standing
from scheduler.refusals import LeadershipLost

STUCK_LEASES: Final = 4
"""For how many leases a step may show no progress before it counts as stuck and the lease is no longer renewed."""

_RENEWALS: Final = 4
"""Renewals in one lease: three may fail."""

_log = structlog.get_logger(__name__)


class Lease:
    """One term's lease, for two threads: the one that steps and the one that renews.

    Args:
        engine: where the lease is kept.
        leadership: what was won.
        lease_ms: its length.
        asked_boot_ms: when it was asked for; it is this leader's until `lease_ms` after that.
    """

    def __init__(self, engine: Engine, leadership: Leadership, lease_ms: int, asked_boot_ms: int) -> None:
        self.leadership = leadership
        self._engine = engine
        self._lease_ms = lease_ms
        self._renewed_ms = self._moved_ms = asked_boot_ms
        self._over = self._told = False
        self._turn = threading.Lock()

    def proceed(self) -> None:
        """The step gets on. Raises LeadershipLost, and only returns while the lease is ours by our own clock."""
        self._moved_ms = boottime_ms()
        if self._over or self._moved_ms >= self._renewed_ms + self._lease_ms // 2:
            self._renew()  # the other thread is late, or there is none

    def keep(self) -> None:
        """Renew once, unless the steps are stuck; for the renewing thread, which outlives every error."""
        if self._over or self._stuck():
            return
        try:
            self._renew()
        except LeadershipLost as lost:
            _log.warning("leadership_lost", reason=str(lost))
        except Exception as error:  # noqa: BLE001 - the database is away; the lease lapses or the next renewal succeeds
            _log.warning("not_renewed", reason=str(error))

    def resign(self) -> None:
        """Let a standby take over at once; if the database is away, the lease lapses by itself."""
        with self._turn, transaction(self._engine) as session:
            self._over = True
            resign(session, self.leadership, utc_now())

    def _stuck(self) -> bool:
        still_ms = boottime_ms() - self._moved_ms
        stuck = still_ms >= STUCK_LEASES * self._lease_ms
        if stuck and not self._told:
            _log.error("step_stuck", milliseconds=still_ms, epoch=self.leadership.epoch)
        self._told = stuck
        return stuck

    def _renew(self) -> None:
        with self._turn:
            asked_ms = boottime_ms()
            if self._over:
                raise LeadershipLost(holder=self.leadership.holder, epoch=self.leadership.epoch)
            try:
                with transaction(self._engine) as session:
                    renew(session, self.leadership, timedelta(milliseconds=self._lease_ms), utc_now())
            except LeadershipLost:
                self._over = True
                raise
            self._renewed_ms = asked_ms


class Candidate:
    """Waits for the lease: it has lapsed when it was not renewed for its whole length, by our own CLOCK_BOOTTIME.

    So neither a step of a wall clock nor clocks that differ between machines give the lease to two or keep it from all.

    Args:
        engine: where the lease is kept.
        holder: who wants it.
        lease_ms: for how long at a time.
    """

    def __init__(self, engine: Engine, holder: str, lease_ms: int) -> None:
        self._engine = engine
        self._holder = holder
        self._lease_ms = lease_ms
        self._seen: Standing | None = None
        self._since_ms = 0

    def take(self) -> Lease | None:
        """The lease if it is free or lapsed; None while somebody else holds it."""
        asked_ms = boottime_ms()
        lease = timedelta(milliseconds=self._lease_ms)
        with transaction(self._engine) as session:
            stands = standing(session)
            if stands.held and not self._has_lapsed(stands):
                return None
            leadership = acquire(session, self._holder, lease, utc_now(), lapsed=stands)
        return None if leadership is None else Lease(self._engine, leadership, self._lease_ms, asked_ms)

    def _has_lapsed(self, stands: Standing) -> bool:
        now_ms = boottime_ms()
        if stands != self._seen:
            self._seen, self._since_ms = stands, now_ms
        return now_ms >= self._since_ms + stands.lease_ms


def renewals_ms(lease_ms: int) -> int:
    """How long the renewing thread waits between two renewals."""
    return max(1, lease_ms // _RENEWALS)
