"""What the free space of the workspaces' file system calls for; a pure rule."""

import pytest

from scheduler.node.watching import LOOK_MS, DiskAlarm, Order

COUNT, NOTHING, STOP = Order.COUNT, Order.NOTHING, Order.STOP_LARGEST


@pytest.mark.parametrize(
    ("free", "orders"),
    [
        ([900, 900, 900], [NOTHING, NOTHING, NOTHING]),
        (
            [900, 860, 801, 800],
            [NOTHING, NOTHING, NOTHING, COUNT],
        ),  # a hundred less since everybody was counted
        ([900, 700, 650, 600, 599], [NOTHING, COUNT, NOTHING, COUNT, NOTHING]),
        ([900, 700, 950, 870, 850], [NOTHING, COUNT, NOTHING, NOTHING, COUNT]),  # what was given back counts
        (
            [900, 90, 80, 80],
            [NOTHING, COUNT, COUNT, STOP],
        ),  # below the reserve: count first, then the largest goes
        ([90, 80, 80, 500, 90, 80, 80], [COUNT, COUNT, STOP, NOTHING, COUNT, COUNT, STOP]),
        (
            [90, 80, 80, *[80] * 30, 79],
            [COUNT, COUNT, STOP, *[COUNT] * 30, STOP],
        ),  # nobody, while nobody writes
        ([90, 80, 80, *[70] * 9, 60], [COUNT, COUNT, STOP, *[COUNT] * 9, STOP]),  # one a second
    ],
)
def test_who_writes_fast_is_counted_at_once_and_the_largest_goes_when_the_reserve_is_touched(
    free: list[int], orders: list[Order]
) -> None:
    alarm = DiskAlarm(reserve_bytes=100, step_bytes=100)
    assert [alarm.look(number * LOOK_MS, left) for number, left in enumerate(free)] == orders


def test_after_another_nodes_run_on_the_same_disk_was_stopped_it_is_waited_as_after_an_own_one() -> None:
    alarm = DiskAlarm(reserve_bytes=100, step_bytes=100)
    assert alarm.look(0, 90) is COUNT
    alarm.spare(LOOK_MS)
    orders = [alarm.look(number * LOOK_MS, 80 if number == 2 else 79) for number in range(2, 12)]
    assert orders == [*[COUNT] * 9, STOP]
