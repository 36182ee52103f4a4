"""A charge at a wrong cost is given back and taken again from the very sources that paid it."""

import pytest
from sqlalchemy.orm import Session

from kernel.database import transaction
from ledger.domain.accounts import CNY
from tests.vouchers.world import FACTS, NOW, YUAN, Place, World
from vouchers import accounts
from vouchers.afterlife import recall_voucher
from vouchers.capturing import coverage_of
from vouchers.domain.explanation import Coverage
from vouchers.errors import ChargeNotFound
from vouchers.recharging import recharge
from vouchers.redemption import place_hold


def again(session: Session, place: Place, yuan: int) -> Coverage:
    return recharge(
        session, place.charge(1), place.charge(2), yuan * YUAN, reason="wrong rate", by="operator", at=NOW
    )


def test_a_charge_is_taken_again_from_the_vouchers_that_paid_it_and_no_other(world: World) -> None:
    with transaction(world.engine) as session:
        place = world.place(session)
        voucher = place.voucher(session, 100)
        place.run(session, 100)
        other = world.voucher(session, place.tenant, world.programme(session), 100 * YUAN)
        taken = again(session, place, 50)
        assert (taken.public_micros, taken.tenant_micros) == (15 * YUAN, 35 * YUAN)
        assert place.left(session, voucher) == ("active", 0, 15, 85)
        assert place.left(session, other) == ("active", 0, 0, 100)
        assert place.prepaid(session) == 1_000 - 35
        assert coverage_of(session, place.charge(2)).cost_micros == 50 * YUAN


def test_a_charge_that_should_have_cost_nothing_is_given_back_only(world: World) -> None:
    with transaction(world.engine) as session:
        place = world.place(session)
        voucher = place.voucher(session, 100)
        place.run(session, 100)
        assert again(session, place, 0) == Coverage(0, ())
        assert place.left(session, voucher) == ("active", 0, 0, 100)
        assert place.prepaid(session) == 1_000


@pytest.mark.parametrize(("yuan", "taken"), [(50, 15), (0, 0), (100, 30)])
def test_a_voucher_that_has_ended_pays_again_and_what_is_left_of_its_share_goes_to_the_pool(
    world: World, yuan: int, taken: int
) -> None:
    with transaction(world.engine) as session:
        place = world.place(session)
        voucher = place.voucher(session, 100)
        if yuan == 100:
            place_hold(session, place.job(9), place.tenant, 10 * YUAN, FACTS, None, NOW)
        place.run(session, 100)
        recall_voucher(session, voucher, by="officer", reason="false statements", at=NOW)
        before = place.pool(session)
        assert again(session, place, yuan).public_micros == taken * YUAN
        assert place.left(session, voucher) == ("recalled", 3 if yuan == 100 else 0, taken, 0)
        assert place.pool(session) == before + 30 - taken
        account = accounts.voucher(voucher, CNY)
        assert accounts.available(session, [account]) == {account.id: 0}


def test_what_was_never_charged_cannot_be_charged_again(world: World) -> None:
    with transaction(world.engine) as session, pytest.raises(ChargeNotFound):
        again(session, world.place(session), 1)
