"""What may pay for a usage, at its edges: the last millionth, the last instant, no money at all, somebody else's."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from kernel.database import transaction
from ledger.domain.accounts import CNY, card_time
from tests.vouchers.world import FACTS, NOW, YUAN, World
from vouchers import accounts
from vouchers.capturing import capture_charge
from vouchers.domain.facts import ChargeFacts
from vouchers.errors import BudgetSpent, HoldNotFound, NoFunding, VoucherNotApplicable, VoucherSpent
from vouchers.holding import HoldRequest, place_holds
from vouchers.issuing import voucher_of
from vouchers.redemption import extend_hold, held_coverage, held_facts, place_hold, quote
from vouchers.wallets import WalletBalance, set_budget, wallet_balance

STORAGE = replace(FACTS, cost_kind="storage")


def test_a_named_voucher_that_is_not_for_such_usage_is_refused_by_its_clause_and_an_unnamed_one_left_out(
    world: World,
) -> None:
    with transaction(world.engine) as session:
        place = world.place(session)
        voucher = place.voucher(session, 100)
        with pytest.raises(VoucherNotApplicable) as refused:
            quote(session, place.tenant, YUAN, STORAGE, [voucher], NOW)
        assert refused.value.facts["clause"] == "Huangyan §1"
        assert refused.value.facts["voucher"] == voucher_of(session, voucher).number
        assert quote(session, place.tenant, YUAN, STORAGE, None, NOW).public_micros == 0


def test_a_vouchers_last_millionth_pays_and_a_spent_one_is_refused_by_name(world: World) -> None:
    with transaction(world.engine) as session:
        place = world.place(session)
        voucher = world.voucher(session, place.tenant, place.programme, 1)
        for named in (None, [voucher]):
            assert quote(session, place.tenant, YUAN, FACTS, named, NOW).public_micros == 1
        place_hold(session, place.job(), place.tenant, YUAN, FACTS, [voucher], NOW)
        with pytest.raises(VoucherSpent):
            quote(session, place.tenant, YUAN, FACTS, [voucher], NOW)
        with pytest.raises(VoucherSpent):
            place_hold(session, place.job(2), place.tenant, YUAN, FACTS, [voucher], NOW)
        asked = HoldRequest(place.job(2), place.tenant, YUAN, FACTS, [voucher], NOW, extends=False)
        assert [type(outcome) for outcome in place_holds(session, [asked], NOW)] == [VoucherSpent]
        assert quote(session, place.tenant, YUAN, FACTS, None, NOW).public_micros == 0


@pytest.mark.parametrize("rules", [{}, {"use_by": {"clause": "§5(2)", "days": 30}}])
def test_a_named_voucher_pays_for_usage_that_ends_with_it(world: World, rules: dict[str, Any]) -> None:
    with transaction(world.engine) as session:
        place = world.place(session, **rules)
        voucher = place.voucher(session, 100)
        last = voucher_of(session, voucher).use_by_at
        offered = quote(session, place.tenant, YUAN, FACTS, [voucher], NOW, usage_until=last)
        assert offered.public_micros == 300_000
        place_hold(session, place.job(), place.tenant, YUAN, FACTS, [voucher], NOW, usage_until=last)
        paid = capture_charge(session, place.job(), place.charge(), YUAN, FACTS, NOW, used_until=last)
        assert paid.public_micros == 300_000


def test_who_never_had_an_account_cannot_pay_a_millionth(world: World) -> None:
    with transaction(world.engine) as session:
        place = world.place(session, yuan=0)
        with pytest.raises(NoFunding) as refused:
            quote(session, place.tenant, 1, FACTS, None, NOW)
        assert (refused.value.facts["available"], refused.value.facts["short"]) == (0, 1)
        assert wallet_balance(session, place.tenant) == WalletBalance(0, 0, 0, 0, None)


def test_a_budget_binds_from_its_first_instant_until_its_end_which_is_the_next_ones(world: World) -> None:
    begins, ends = NOW, NOW + timedelta(days=1)
    facts = ChargeFacts(model="MLU370", project="moulds")
    with transaction(world.engine) as session:
        place = world.place(session)
        set_budget(
            session,
            place.tenant,
            "moulds",
            starts_at=begins,
            ends_at=ends,
            amount_micros=1,
            reference="first",
            by="boss",
            at=NOW,
        )
        instant = timedelta(microseconds=1)
        for bound in (begins, ends - instant):
            with pytest.raises(BudgetSpent):
                quote(session, place.tenant, YUAN, facts, None, bound)
        for free in (begins - instant, ends):
            assert quote(session, place.tenant, YUAN, facts, None, free).tenant_micros == YUAN


def test_each_segment_is_told_as_it_was_set_aside(world: World) -> None:
    with transaction(world.engine) as session:
        place = world.place(session)
        place.voucher(session, 40)
        first = place_hold(session, place.job(), place.tenant, 100 * YUAN, FACTS, None, NOW)
        second = extend_hold(session, place.job(), 150 * YUAN, FACTS, NOW)
        assert (first.public_micros, second.public_micros) == (30 * YUAN, 10 * YUAN)
        told = [held_coverage(session, place.job(), segment=number) for number in (0, 1)]
        assert [coverage.tenant_micros for coverage in told] == [70 * YUAN, 40 * YUAN]
        assert [coverage.public_micros for coverage in told] == [30 * YUAN, 10 * YUAN]
        with pytest.raises(HoldNotFound):
            held_coverage(session, place.job(), segment=2)


def test_what_a_job_was_held_for_is_told_by_model_and_as_it_was_first(world: World) -> None:
    with transaction(world.engine) as session:
        place = world.place(session)
        place_hold(session, place.job(), place.tenant, YUAN, replace(FACTS, card_ms=5), None, NOW)
        extend_hold(session, place.job(), 2 * YUAN, replace(FACTS, hardware="imported", card_ms=7), NOW)
        extend_hold(session, place.job(), 3 * YUAN, ChargeFacts(model="MLU590"), NOW)
        assert held_facts(session, []) == {}
        assert held_facts(session, [place.job(), place.job(2)]) == {
            (place.job(), "MLU370"): FACTS,
            (place.job(), "MLU590"): ChargeFacts(model="MLU590"),
        }


def test_an_account_says_its_asset_unless_it_is_money() -> None:
    model = card_time("MLU370")
    assert accounts.pool("huangyan", "2026", CNY).name == "programme/huangyan/pool/2026"
    assert accounts.pool("airr", "2026", model).name == "programme/airr/pool/2026/card_ms:MLU370"
