"""What is asked while others are being answered is answered in one go, by one thread.

Handing each request to a thread of its own costs more than most of them do, and what asks the database for one could
ask for many in the same transaction (group commit). Nobody waits for company: who comes alone is answered alone, at
once; who comes meanwhile goes together next.
"""

import asyncio
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Final, Generic, TypeVar

MOST: Final = 32
"""Asked in one go: so many wait for the slowest of them."""

_FAREWELL_S: Final = 3

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class _Waiting(Generic[Asked, Answer]):
    asked: Asked
    answer: asyncio.Future[Answer]


class Together(Generic[Asked, Answer]):
    """A thread that answers what coroutines of any event loop ask.

    Args:
        answer_all: an answer to each that is asked, or the error to raise for it. What it raises is raised for all.
        name: of the thread.
    """

    def __init__(
        self, answer_all: Callable[[Sequence[Asked]], Sequence[Answer | Exception]], name: str
    ) -> None:
        self._answer_all = answer_all
        self._queue: SimpleQueue[_Waiting[Asked, Answer] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    async def ask(self, asked: Asked) -> Answer:
        """The answer, as soon as it is this one's turn. Raises what `answer_all` says."""
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._queue.put(_Waiting(asked, answer))
        return await answer

    def close(self) -> None:
        """Answer what was asked until now, and nothing more; not for longer than three seconds."""
        self._queue.put(None)
        self._thread.join(_FAREWELL_S)

    def _run(self) -> None:
        while (first := self._queue.get()) is not None:
            some, going_on = self._company(first)
            try:
                answered = list(zip(some, self._answer_all([one.asked for one in some]), strict=True))
            except BaseException as error:  # noqa: BLE001 - raised where it was asked; the thread goes on
                defect = error if isinstance(error, Exception) else RuntimeError(repr(error))
                answered = [(one, defect) for one in some]
            _tell(answered)
            if not going_on:
                return

    def _company(self, first: _Waiting[Asked, Answer]) -> tuple[list[_Waiting[Asked, Answer]], bool]:
        """Whoever else has come by now, and whether more may come."""
        some = [first]
        try:
            while len(some) < MOST:
                one = self._queue.get_nowait()
                if one is None:
                    return some, False
                some.append(one)
        except Empty:
            pass
        return some, True


def _tell(answered: Sequence[tuple[_Waiting[Asked, Answer], Answer | Exception]]) -> None:
    """Hand answers over, with one word to each event loop."""
    told: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Answer], Answer | Exception]]] = {}
    for one, answer in answered:
        told.setdefault(one.answer.get_loop(), []).append((one.answer, answer))
    for loop, pairs in told.items():
        with suppress(RuntimeError):  # it is closed, and whoever asked there is gone
            loop.call_soon_threadsafe(_settle, pairs)


def _settle(pairs: Sequence[tuple[asyncio.Future[Answer], Answer | Exception]]) -> None:
    for future, answer in pairs:
        if future.done():  # who asked was cancelled
            continue
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)
