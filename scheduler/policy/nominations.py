"""Nodes on which room is being made for a claimant: nobody else may start there, it starts there first.

A nomination is *due* when its last victim has run its minimum; until then it keeps new jobs off the nodes, so that
the wait of a claim inside its guarantee has an end that no later start can move. Invariant: a claimant has at most
one nomination, and only while it waits.
"""

from collections.abc import Container
from typing import NamedTuple


class Nomination(NamedTuple):
    """Room in the making for one waiting job.

    Attributes:
        nodes: positions in the pool where it will lie, as a set of bits.
        victims: running jobs that must go first.
        due_ms: when the last of them may be told to stop; None once they have been told.
    """

    job_id: str
    pool: str
    nodes: int
    victims: tuple[str, ...]
    due_ms: int | None


class Nominations:
    """Every nomination, in the order in which they were made."""

    def __init__(self) -> None:
        self.by_job: dict[str, Nomination] = {}
        self._nodes: dict[str, int] = {}

    def nodes_in(self, pool: str) -> int:
        """All nominated nodes of a pool."""
        return self._nodes.get(pool, 0)

    def own(self, pool: str, job_id: str) -> int:
        """The nodes nominated to this job."""
        mine = self.by_job.get(job_id)
        return mine.nodes if mine is not None and mine.pool == pool else 0

    def awaits_any(self, pool: str, running: Container[str]) -> bool:
        """Whether somebody still has to leave the pool for one of those nominated in it."""
        return any(
            victim in running
            for known in self.by_job.values()
            if known.pool == pool
            for victim in known.victims
        )

    def due(self, now_ms: int) -> list[str]:
        """Claimants whose last victim may be told to stop, and those who count on one of the same victims."""
        found = {
            name for name, known in self.by_job.items() if known.due_ms is not None and known.due_ms <= now_ms
        }
        grown = bool(found)
        while grown:
            victims = {victim for name in found for victim in self.by_job[name].victims}
            more = {
                name
                for name, known in self.by_job.items()
                if name not in found and known.due_ms is not None and not victims.isdisjoint(known.victims)
            }
            found |= more
            grown = bool(more)
        return [name for name in self.by_job if name in found]

    def make(self, nomination: Nomination) -> None:
        """Enter a nomination in place of the claimant's former one."""
        self.by_job[nomination.job_id] = nomination
        self._settle()

    def forget(self, job_id: str) -> Nomination | None:
        """The claimant started, no longer waits, or must be planned for anew."""
        known = self.by_job.pop(job_id, None)
        if known is not None:
            self._settle()
        return known

    def restore(self, by_job: dict[str, Nomination]) -> None:
        """Put back what was there before."""
        self.by_job = by_job
        self._settle()

    def node_lost(self, pool: str, bit: int) -> None:
        """Nominations on a lost node are void; their jobs make new claims at the next cycle."""
        for known in list(self.by_job.values()):
            if known.pool == pool and known.nodes & bit:
                self.forget(known.job_id)

    def _settle(self) -> None:
        self._nodes = {}
        for known in self.by_job.values():
            self._nodes[known.pool] = self._nodes.get(known.pool, 0) | known.nodes
