"""Of several nodes that share a disk exactly one stops a run, that of the largest, and then all look again."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scheduler.node.disk_turns import FOLDER, PATIENCE, DiskTurns


@pytest.fixture
def joined(tmp_path: Path) -> Iterator[Callable[[str], DiskTurns]]:
    everybody: list[DiskTurns] = []

    def join(node: str) -> DiskTurns:
        one = DiskTurns(tmp_path, node)
        one.passed()
        everybody.append(one)
        return one

    yield join
    for one in everybody:
        one.close()


def test_the_largest_of_all_goes_once_and_the_others_look_again(joined: Callable[[str], DiskTurns]) -> None:
    small, large, middle = map(joined, ("a", "b", "c"))
    for one, size in ((small, 1), (large, 30), (middle, 20)):
        one.publish(size)
    assert [small.take(1), middle.take(20), large.take(30)] == [False, False, True]
    large.publish(2)  # what it has left
    assert not middle.take(20)  # somebody has had the turn since it counted
    assert not small.take(1)
    assert middle.take(20)


def test_of_equal_ones_one_goes(joined: Callable[[str], DiskTurns]) -> None:
    first, second = joined("a"), joined("b")
    first.publish(5)
    second.publish(5)
    assert [first.take(5), second.take(5)] == [False, True]


def test_a_larger_one_that_does_nothing_is_waited_for_only_so_long(joined: Callable[[str], DiskTurns]) -> None:
    idle, mine = joined("a"), joined("b")
    idle.publish(9)
    assert [mine.take(1) for _ in range(PATIENCE + 1)] == [False] * PATIENCE + [True]


def test_the_dead_are_not_waited_for(joined: Callable[[str], DiskTurns]) -> None:
    dead, mine = joined("a"), joined("b")
    dead.publish(9)
    dead.close()
    assert mine.take(1)


def test_whoever_cannot_share_decides_alone(tmp_path: Path) -> None:
    (tmp_path / FOLDER).touch()
    alone = DiskTurns(tmp_path, "n")
    alone.passed()
    assert alone.take(1)
    assert not alone.passed()
