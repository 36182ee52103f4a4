"""What the controller needs from outside: machines to sync, and somebody who answers for the money.

The scheduler does not know what money is; it asks `Accounting` inside its own transactions, so that an admission and
its hold, or an observation and its usage, are one commit.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol
from uuid import UUID

from sqlalchemy.orm import Session

from scheduler.node.protocol import OverRequest, Report, SyncRequest, UsageRecord
from scheduler.tables import JobRow


class Machines(Protocol):
    """The supervisors of all nodes, wherever they are (through Ray, or sockets of this host)."""

    def sync(self, requests: Mapping[str, SyncRequest]) -> Mapping[str, Report]:
        """One round trip to each named node, all at once; nodes that did not answer are missing from the result."""
        ...

    def watch(self, names: Collection[str]) -> None:
        """Say a word of each of these nodes, once, when something changes there that its last answer did not tell."""
        ...

    def ask_ahead(self, requests: Mapping[str, OverRequest]) -> None:
        """Sync each of these nodes as soon as none of its runs lives there any more, and say `wakeups.over` then.

        Nothing is done or said if that takes longer, or cannot be known. The node is not watched meanwhile.
        """
        ...

    def early(self, names: Collection[str]) -> Mapping[str, Report]:
        """What these nodes reported that were asked ahead, each once; of what is still under way nothing is said."""
        ...

    def reachable(self) -> Sequence[str]:
        """Names of the nodes that can be synced now, in order. Answers at once."""
        ...


@dataclass(frozen=True)
class Admission:
    """A job about to start, and what one millisecond of its placement uses, by accelerator model."""

    job: JobRow
    slot_ms_by_model: Mapping[str, int]


class Accounting(Protocol):
    """Whoever answers for the money and keeps the meter's records; always inside the controller's transaction."""

    def admit(self, session: Session, admissions: Sequence[Admission], at: datetime) -> Mapping[UUID, str]:
        """Set funds aside for jobs about to start; a sentence for each that has not enough, which then waits.

        One call serves all starts of a cycle: they are decided one after another, each on what those before it left,
        with a number of statements that does not depend on theirs; one that is refused takes nothing and harms none.

        Args:
            session: the admission's transaction.
            admissions: in the order in which they are to be served, each job once.
            at: now.
        """
        ...

    def keep_funded(
        self, session: Session, jobs: Sequence[JobRow], elapsed_ms: Mapping[UUID, int], at: datetime
    ) -> Mapping[UUID, str]:
        """Extend what is set aside for running jobs; those that must be stopped for want of funds, and why.

        Args:
            session: the controller's transaction.
            jobs: placed and not being stopped.
            elapsed_ms: by job, for how long its attempt has had its devices; no clock's step shows in it.
            at: now.
        """
        ...

    def record_usage(self, session: Session, usage: Mapping[str, Sequence[UsageRecord]], at: datetime) -> None:
        """Keep usage records, by node that sent them, each once."""
        ...

    def requeued(self, session: Session, jobs: Sequence[JobRow], at: datetime) -> None:
        """Jobs wait to run again; nothing need be set aside for them until they are admitted again."""
        ...

    def ended(self, session: Session, jobs: Sequence[JobRow], at: datetime) -> None:
        """Jobs are over; nothing more will be used except what is reported late."""
        ...
