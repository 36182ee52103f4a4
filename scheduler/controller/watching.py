"""Whom the controller tells how it is doing; telling never changes what it does."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol
from uuid import UUID


@dataclass(frozen=True)
class Step:
    """A step on a job's way, told when it is committed.

    Args:
        name: `admitted` (since it was queued), `claimed` (others are being stopped for it, since it was queued),
            `started` (since it was admitted), `requeued` or `ended` (both since it was started).
        job_id: of the job.
        attempt: which attempt it is about.
        traceparent: what the job's submission belongs to, empty if unknown.
        since: when what ends with this step began.
        at: when the step was taken.
        outcome: for `requeued` and `ended`, how.
        nodes, cards_milli: for `admitted`, where and how much.
    """

    name: Literal["admitted", "claimed", "started", "requeued", "ended"]
    job_id: UUID
    attempt: int
    traceparent: str
    since: datetime
    at: datetime
    outcome: str = ""
    nodes: tuple[str, ...] = ()
    cards_milli: int = 0


class Watcher(Protocol):
    """Takes the time of steps and hears about leadership and failures."""

    def timing(self, step: str) -> AbstractContextManager[object]:
        """Time one step: `admit`, or `tick` for a whole round."""
        ...

    def led(self, *, leading: bool) -> None:
        """Whether the controller leads now."""
        ...

    def failed(self) -> None:
        """A round ended in an error."""
        ...

    def planned(self, *, starts: int, evictions: int) -> None:
        """How many jobs a committed plan wanted to start and to stop."""
        ...

    def moved(self, steps: Sequence[Step]) -> None:
        """What became of jobs, in order."""
        ...


class Nobody:
    """A watcher that does not look."""

    def timing(self, step: str) -> AbstractContextManager[object]:  # noqa: ARG002 - the protocol's parameter
        """Nothing is timed."""
        return nullcontext()

    def led(self, *, leading: bool) -> None:
        """Nothing is noted."""

    def failed(self) -> None:
        """Nothing is noted."""

    def planned(self, *, starts: int, evictions: int) -> None:
        """Nothing is noted."""

    def moved(self, steps: Sequence[Step]) -> None:
        """Nothing is noted."""
