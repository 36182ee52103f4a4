"""However many runs are to start at once, whoever speaks to the supervisor is heard between any two of them."""

import asyncio
import itertools
import socket

from scheduler.node.turnstile import Turnstile


def test_between_any_two_that_pass_everybody_else_is_heard() -> None:
    said: list[str] = []

    async def start(turnstile: Turnstile) -> None:
        await turnstile.passed()
        said.append("start")

    async def scene() -> None:
        turnstile, loop = Turnstile(), asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.send(b"x")  # there is always something to hear
            loop.add_reader(ours, said.append, "heard")
            tasks = [asyncio.create_task(start(turnstile)) for _ in range(50)]
            tasks[7].cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.gather(*(start(turnstile) for _ in range(10)))
            loop.remove_reader(ours)

    asyncio.run(scene())
    assert said.count("start") == 59
    assert ("start", "start") not in itertools.pairwise(said)


def test_one_alone_does_not_wait() -> None:
    async def scene() -> None:
        turnstile = Turnstile()
        for _ in range(3):
            waiting = turnstile.passed()
            try:
                waiting.send(None)
            except StopIteration:
                pass
            else:
                raise AssertionError
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    asyncio.run(scene())
