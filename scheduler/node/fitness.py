"""Whose a failed start is, and whether this node can start anything.

What the next job would meet here, too (no descriptors, no space, no memory, a helper that does not answer, no sandbox)
is the node's own, whatever job met it. The job is tried elsewhere, and the node says that it starts nothing until the
smallest sandbox there is can be built again; it tries after a pause that doubles while that fails.

Invariant: an error is the node's by its number or by a failed trial, never by words that a job may have written.
"""

import asyncio
import errno
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from scheduler.node.errors import NodeFailed

PAUSE_MS: Final = 2000
"""Before the first trial after a failure; doubled for each further one until something could be started."""

PAUSE_MS_MAX: Final = 300_000

_RESOURCES: Final = frozenset(
    {
        *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOBUFS, errno.ETOOMANYREFS),
        *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EUCLEAN),
        *(errno.ENODEV, errno.ENXIO, errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN, errno.ETIMEDOUT),
    }
)
"""What a node runs out of or loses. No path, name or permission is among them: those may be the job's doing."""

_log = structlog.get_logger(__name__)


def is_nodes_own(error: BaseException) -> bool:
    """Whether a start that failed so says nothing about the job."""
    if isinstance(error, OSError):
        return error.errno in _RESOURCES or isinstance(error, TimeoutError | ConnectionError)
    return isinstance(error, NodeFailed | MemoryError)


class Fitness:
    """Whether anything can be started here.

    Args:
        trial: builds the smallest sandbox; a sentence when that fails, else empty.
        changed: to be told when the answer changes.
    """

    def __init__(self, trial: Callable[[], Awaitable[str]], changed: Callable[[], None]) -> None:
        self.problem = ""
        self._trial = trial
        self._changed = changed
        self._pause_ms = PAUSE_MS
        self._recovering: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()

    def failed(self, why: str) -> None:
        """Something could not be started, which is the node's own fault: nothing is, until a trial succeeds."""
        if not self.problem:
            _log.info("starts_nothing", reason=why)
        self.problem = f"This node could not start a run: {why.rstrip('.')}."
        if self._recovering is None:
            self._recovering = asyncio.get_running_loop().create_task(self._recover())

    def started(self) -> None:
        """Something could be started: a later failure is a new one."""
        if not self.problem:
            self._pause_ms = PAUSE_MS

    async def examine(self) -> str:
        """Try now, because a sandbox failed that may have failed for its job; why the node cannot, else empty."""
        async with self._turn:
            why = await self._trial()
        if why:
            self.failed(why)
        return why

    def close(self) -> None:
        """Try no more."""
        if self._recovering is not None:
            self._recovering.cancel()

    async def _recover(self) -> None:
        while self.problem:
            await asyncio.sleep(self._pause_ms / 1000)
            self._pause_ms = min(2 * self._pause_ms, PAUSE_MS_MAX)
            async with self._turn:
                why = await self._trial()
            self.problem = f"This node cannot start a run: {why.rstrip('.')}." if why else ""
        self._recovering = None
        _log.info("starts_again")
        self._changed()
