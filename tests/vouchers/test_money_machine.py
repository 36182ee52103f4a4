"""The whole money side of vouchers under random use, crashes and retries."""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.vouchers.machine import MoneyMachine
from tests.vouchers.world import World

QUIET = settings(deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)


def test_no_order_of_steps_loses_or_makes_money(world: World) -> None:
    run_state_machine_as_test(
        lambda: MoneyMachine(world), settings=settings(QUIET, max_examples=12, stateful_step_count=12)
    )


@pytest.mark.slow
def test_many_orders_of_steps_lose_or_make_no_money(world: World) -> None:
    run_state_machine_as_test(
        lambda: MoneyMachine(world), settings=settings(QUIET, max_examples=200, stateful_step_count=12)
    )
