"""The whole money side of vouchers under random use, crashes and retries."""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.vouchers.machine import MoneyMachine
from tests.vouchers.money import Money
from tests.vouchers.world import World

QUIET = settings(deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)


@pytest.fixture(scope="module")
def money(world: World) -> Money:
    return Money(world)


def test_no_order_of_steps_loses_or_makes_money(money: Money) -> None:
    few = settings(QUIET, max_examples=40, stateful_step_count=8)
    run_state_machine_as_test(lambda: MoneyMachine(money), settings=few)


@pytest.mark.slow
def test_thousands_of_orders_of_steps_lose_or_make_no_money(money: Money) -> None:
    many = settings(QUIET, max_examples=2_000, stateful_step_count=5)
    run_state_machine_as_test(lambda: MoneyMachine(money), settings=many)
