"""Lets many that start at once through one after another, so that whoever else speaks is heard in between.

What a start does on the supervisor's thread takes milliseconds: hundreds in a row would renew no lease for seconds.
"""

import asyncio
from collections import deque


class Turnstile:
    """At most one passes in each round of the event loop, in the order in which they came; one alone does not wait."""

    def __init__(self) -> None:
        self._free = True
        self._line: deque[asyncio.Future[None]] = deque()

    async def passed(self) -> None:
        """Wait for one's turn."""
        loop = asyncio.get_running_loop()
        if self._free:
            self._free = False
            loop.call_soon(self._next)
            return
        turn = loop.create_future()
        self._line.append(turn)
        await turn

    def _next(self) -> None:
        while self._line:
            turn = self._line.popleft()
            if not turn.done():  # else it is no longer waited for
                turn.set_result(None)
                asyncio.get_running_loop().call_soon(self._next)
                return
        self._free = True
