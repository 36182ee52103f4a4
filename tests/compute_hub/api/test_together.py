"""What is asked together is answered together, each by itself."""

import asyncio
import threading
from collections.abc import Iterator, Sequence

import pytest

from compute_hub.api.together import MOST, Together


class Slow:
    """Answers twice a number; the first go waits until it is let go on."""

    def __init__(self) -> None:
        self.goes: list[list[int]] = []
        self.began, self.go_on = threading.Event(), threading.Event()

    def answer_all(self, numbers: Sequence[int]) -> list[int | Exception]:
        self.goes.append(list(numbers))
        self.began.set()
        assert self.go_on.wait(30)
        if 13 in numbers:
            raise RuntimeError("thirteen")
        if 666 in numbers:
            raise SystemExit("not an Exception")
        return [ValueError(f"odd: {number}") if number % 2 else 2 * number for number in numbers]


@pytest.fixture
def slow() -> Slow:
    return Slow()


@pytest.fixture
def together(slow: Slow) -> Iterator[Together[int, int]]:
    """Closed in the end, whatever waits."""
    together = Together(slow.answer_all, "slow")
    yield together
    slow.go_on.set()
    together.close()


async def _turn() -> None:
    """Until all that was begun before has had its turn."""
    turn = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(turn.set_result, None)
    await turn


async def _all(together: Together[int, int], slow: Slow, numbers: Sequence[int]) -> list[int | BaseException]:
    """Ask for the first; for the others while it is answered."""
    first = asyncio.create_task(together.ask(numbers[0]))
    await asyncio.to_thread(slow.began.wait, 30)
    others = [asyncio.create_task(together.ask(number)) for number in numbers[1:]]
    await _turn()
    slow.go_on.set()
    return await asyncio.gather(first, *others, return_exceptions=True)


def test_who_comes_alone_is_answered_at_once_and_who_comes_meanwhile_goes_together(
    slow: Slow, together: Together[int, int]
) -> None:
    answers = asyncio.run(_all(together, slow, [2, 4, 5, 6]))
    assert slow.goes == [[2], [4, 5, 6]]
    assert [answers[0], answers[1], answers[3]] == [4, 8, 12]
    assert str(answers[2]) == "odd: 5"


def test_no_more_than_so_many_wait_for_each_other(slow: Slow, together: Together[int, int]) -> None:
    numbers = [2 * number for number in range(2 * MOST)]
    assert asyncio.run(_all(together, slow, numbers)) == [2 * number for number in numbers]
    assert [len(go) for go in slow.goes] == [1, MOST, MOST - 1]


def test_what_fails_for_all_is_raised_for_all_and_the_next_are_answered(
    slow: Slow, together: Together[int, int]
) -> None:
    answers = asyncio.run(_all(together, slow, [2, 13, 4]))
    assert [str(answer) for answer in answers] == ["4", "thirteen", "thirteen"]
    with pytest.raises(RuntimeError, match="not an Exception"):
        asyncio.run(together.ask(666))
    assert asyncio.run(together.ask(8)) == 16


def test_who_no_longer_waits_is_passed_over(slow: Slow, together: Together[int, int]) -> None:
    async def impatient() -> int:
        first = asyncio.create_task(together.ask(2))
        await asyncio.to_thread(slow.began.wait, 30)
        gone, there = asyncio.create_task(together.ask(4)), asyncio.create_task(together.ask(6))
        await _turn()
        gone.cancel()
        slow.go_on.set()
        assert await first == 4
        return await there

    assert asyncio.run(impatient()) == 12
    assert slow.goes == [[2], [4, 6]]


def test_an_event_loop_that_is_gone_keeps_nobody_elses_answer(slow: Slow, together: Together[int, int]) -> None:
    async def leave() -> None:
        asking = asyncio.create_task(together.ask(2))
        await asyncio.to_thread(slow.began.wait, 30)
        asking.cancel()

    asyncio.run(leave())
    slow.go_on.set()
    assert asyncio.run(together.ask(4)) == 8


def test_what_was_asked_before_the_end_is_answered(slow: Slow) -> None:
    closing = Together(slow.answer_all, "closing")

    async def ask() -> list[int]:
        asked = [asyncio.create_task(closing.ask(number)) for number in (2, 4)]
        await asyncio.to_thread(slow.began.wait, 30)
        end = asyncio.create_task(asyncio.to_thread(closing.close))
        slow.go_on.set()
        await end
        return await asyncio.gather(*asked)

    assert asyncio.run(ask()) == [4, 8]
