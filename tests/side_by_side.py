"""Runs the same work in several forked processes at once, for tests of thousands of stories that wait on a server."""

import multiprocessing
import secrets
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection


def side_by_side(work: Callable[[int], None], processes: int = 2) -> None:
    """Call `work` with a different seed in each process and fail with what any of them failed with.

    A child must not use connections that its parent opened.
    """
    context = multiprocessing.get_context("fork")
    told = []
    for _ in range(processes):
        ours, theirs = context.Pipe(duplex=False)
        context.Process(target=_tell, args=(work, secrets.randbits(64), theirs)).start()
        theirs.close()
        told.append(ours)
    failures = [words for pipe in told if (words := _heard(pipe))]
    assert not failures, "\n".join(failures)


def _tell(work: Callable[[int], None], seed: int, pipe: Connection) -> None:
    words = "the process ended without a word"
    try:
        work(seed)
        words = ""
    except BaseException:  # noqa: BLE001 - the parent raises it
        words = traceback.format_exc()
    finally:
        pipe.send(words)


def _heard(pipe: Connection) -> str:
    try:
        return str(pipe.recv())
    except EOFError:
        return "a process was ended"
