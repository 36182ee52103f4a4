"""A job's log as Server-Sent Events: what is there, then what comes, over all attempts, until the job has ended.

Each event's id is `attempt.offset`, from which a broken connection goes on. Text is cut between characters only;
bytes that are no UTF-8 are replaced.
"""

import asyncio
import codecs
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fastapi.concurrency import run_in_threadpool
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as NoConnectionFree

from compute_hub.job_files import log_piece
from kernel.errors import Conflict, HubError
from scheduler.jobs import ENDED_STATES

FOLLOWERS_MAX: Final = 200
"""Logs followed at once through one API process."""

OWN_FOLLOWERS_MAX: Final = 100
"""Of these, by one enterprise."""

_LOOK_S: Final = 0.3
_SILENCE_LOOKS: Final = 40
"""After so many looks without news a comment is sent, so that nobody in between takes the connection for dead."""


class TooManyFollowers(Conflict):
    """More logs are being followed than one process serves, or than one enterprise may."""

    sentence = "{most} logs are being followed already. Read the log without `follow`, or try again later."


@dataclass(frozen=True)
class Followed:
    """How a job stands at one look."""

    state: str
    reason: str
    attempt: int


class Followers:
    """Counts who follows, so that it stays bounded."""

    def __init__(self, most: int = FOLLOWERS_MAX, own_most: int = OWN_FOLLOWERS_MAX) -> None:
        self._most, self._own_most = most, own_most
        self._counts: Counter[object] = Counter()

    def check(self, owner: object) -> None:
        """Whether there is room for one more of an enterprise's. Raises TooManyFollowers."""
        if self._counts.total() >= self._most:
            raise TooManyFollowers(most=self._most)
        if self._counts[owner] >= self._own_most:
            raise TooManyFollowers(most=self._own_most)

    async def counted(self, owner: object, events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The same events; whoever takes them is counted from the first to the last, however they end."""
        self._counts[owner] += 1
        try:
            async for event in events:
                yield event
        finally:
            self._counts[owner] -= 1
            self._counts = +self._counts


async def follow_log(
    look: Callable[[], Followed],
    log_of: Callable[[int], Path],
    *,
    job: object,
    rank: int,
    attempt: int,
    offset: int,
) -> AsyncIterator[bytes]:
    """Events `log`, `state` and, last, `end`, each with a JSON object as data.

    Without `end` they stop when the job may or can no longer be looked at; whoever comes again hears why.

    Args:
        look: reads how the job stands, or refuses it.
        log_of: the log of the rank by attempt.
        job: named in refusals.
        rank: whose log it is.
        attempt: with which to begin.
        offset: the first byte of that attempt's log that is wanted.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    shown: Followed | None = None
    quiet = 0
    while True:
        try:
            stands = await run_in_threadpool(look)
        except (HubError, DBAPIError, NoConnectionFree):
            return
        if stands != shown:
            shown, quiet = stands, 0
            fields = {"state": stands.state, "reason": stands.reason, "attempt": stands.attempt}
            yield _event("state", f"{attempt}.{_whole(offset, decoder)}", fields)
        while data := await run_in_threadpool(log_piece, job, rank, log_of(attempt), offset):
            offset += len(data)
            quiet = 0
            text = decoder.decode(data)
            place = f"{attempt}.{_whole(offset, decoder)}"
            yield _event("log", place, {"attempt": attempt, "rank": rank, "text": text})
        over = attempt < stands.attempt or stands.state in ENDED_STATES
        if over and (text := decoder.decode(b"", final=True)):  # half a character, which nobody will end
            yield _event("log", f"{attempt}.{offset}", {"attempt": attempt, "rank": rank, "text": text})
        if attempt < stands.attempt:
            attempt, offset = attempt + 1, 0
            continue
        if stands.state in ENDED_STATES:
            yield _event("end", f"{attempt}.{offset}", {"state": stands.state, "reason": stands.reason})
            return
        quiet += 1
        if quiet % _SILENCE_LOOKS == 0:
            yield b": still here\n\n"
        await asyncio.sleep(_LOOK_S)


def _whole(offset: int, decoder: codecs.IncrementalDecoder) -> int:
    """Where the last whole character before an offset ends, from which a broken connection goes on."""
    return offset - len(decoder.getstate()[0])


def _event(kind: str, place: str, data: dict[str, object]) -> bytes:
    return f"event: {kind}\nid: {place}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()
