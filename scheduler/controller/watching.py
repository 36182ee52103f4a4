"""Whom the controller tells how it is doing; telling never changes what it does."""

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


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


class Nobody:
    """A watcher that does not look."""

    def timing(self, step: str) -> AbstractContextManager[object]:  # noqa: ARG002 - the protocol's parameter
        """Nothing is timed."""
        return nullcontext()

    def led(self, *, leading: bool) -> None:
        """Nothing is noted."""

    def failed(self) -> None:
        """Nothing is noted."""
