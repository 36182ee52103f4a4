"""The tenant's own money: prepaid, credit line, budgets, group accounts, parts of vouchers."""

from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from kernel.database import transaction
from kernel.ids import derived_id
from kernel.money import MICROS_MAX
from ledger.errors import InsufficientFunds
from tests.vouchers.world import FACTS, NOW, YUAN, Place, World
from vouchers.capturing import capture_charge
from vouchers.domain.facts import ChargeFacts
from vouchers.enterprises import enterprise_facts, record_controller
from vouchers.errors import (
    AlreadyBound,
    AmountRefused,
    BankReferenceUsed,
    BudgetSpent,
    DatesReversed,
    GroupFull,
    NoFunding,
    NothingOwed,
    NotRelated,
    VoucherNotFound,
    VoucherSpent,
)
from vouchers.recharging import recharge
from vouchers.redemption import place_hold, quote, release_hold
from vouchers.tables import GroupMember
from vouchers.wallets import (
    WalletBalance,
    allot_part,
    bind_affiliate,
    deposit,
    grant_credit,
    owed_micros,
    repay_credit,
    set_budget,
    unbind_affiliate,
    wallet_balance,
    withdraw_credit,
)

MOULDS = ChargeFacts(model="MLU370", project="moulds")
CARS = ChargeFacts(model="MLU370", project="cars")


def paid(session: Session, place: Place, yuan: int, facts: ChargeFacts = FACTS) -> list[tuple[str, int]]:
    coverage = quote(session, place.tenant, yuan * YUAN, facts, None, NOW)
    return [(line.source, line.amount_micros // YUAN) for line in coverage.lines]


def group(session: Session, world: World, count: int) -> tuple[Place, list[UUID]]:
    """A payer with ¥1,000 and affiliates with nothing, all controlled by the payer."""
    payer = world.place(session)
    code = enterprise_facts(session, payer.tenant).credit_code
    affiliates = [world.enterprise(session) for _ in range(count)]
    for affiliate in affiliates:
        controlled = enterprise_facts(session, affiliate).credit_code
        record_controller(session, controlled, code, by="officer", at=NOW)
    return payer, affiliates


def test_a_banks_reference_is_booked_once(world: World) -> None:
    with transaction(world.engine) as session:
        place = world.place(session, yuan=0)
        for _ in range(2):
            deposit(session, place.tenant, YUAN, f"ref {place.tenant}", NOW)
        assert place.prepaid(session) == 1
        other = world.enterprise(session)
        for tenant, yuan in ((place.tenant, 2), (other, 1)):
            with pytest.raises(BankReferenceUsed):
                deposit(session, tenant, yuan * YUAN, f"ref {place.tenant}", NOW)


def test_one_bank_transfer_is_a_deposit_or_a_repayment_and_never_both(world: World) -> None:
    with transaction(world.engine) as session:
        place = world.place(session, yuan=0)
        grant_credit(session, place.tenant, 100 * YUAN, "2026", NOW)
        place.run(session, 40)
        for book, again in ((deposit, repay_credit), (repay_credit, deposit)):
            reference = f"{book.__name__} {place.tenant}"
            book(session, place.tenant, 20 * YUAN, reference, NOW)
            book(session, place.tenant, 20 * YUAN, reference, NOW)
            with pytest.raises(BankReferenceUsed) as refused:
                again(session, place.tenant, 20 * YUAN, reference, NOW)
            words = book.__name__.replace("_", " ")
            assert f"'{reference}' was booked as a {words} of 20000000 micro-yuan" in str(refused.value)
        found = wallet_balance(session, place.tenant)
        assert (found.prepaid_available_micros, found.credit_available_micros) == (20 * YUAN, 80 * YUAN)


def test_what_is_paid_beyond_the_debt_becomes_prepaid_and_never_raises_the_line(world: World) -> None:
    with transaction(world.engine) as session:
        place = world.place(session, yuan=0)
        grant_credit(session, place.tenant, 120 * YUAN, "2026", NOW)
        withdraw_credit(session, place.tenant, 20 * YUAN, "less", NOW)
        place.run(session, 40)
        place_hold(session, place.job(2), place.tenant, 5 * YUAN, FACTS, None, NOW)
        assert owed_micros(session, place.tenant) == 40 * YUAN

        def repay(micros: int, reference: str) -> tuple[int, int]:
            repay_credit(session, place.tenant, micros, f"{reference} {place.tenant}", NOW)
            found = wallet_balance(session, place.tenant)
            return found.prepaid_available_micros, found.credit_available_micros + found.credit_held_micros

        assert repay(39 * YUAN, "a") == (0, 99 * YUAN)
        assert repay(52 * YUAN, "b") == repay(52 * YUAN, "b") == (50 * YUAN, 101 * YUAN)
        with pytest.raises(BankReferenceUsed):
            repay(2 * YUAN, "b")
        assert owed_micros(session, place.tenant) == -YUAN
        with pytest.raises(NothingOwed, match="as a deposit"):
            repay(1, "c")
        release_hold(session, place.job(2), NOW)


def test_a_repayment_to_the_fen_stays_on_the_line(world: World) -> None:
    with transaction(world.engine) as session:
        place = world.place(session, yuan=0)
        grant_credit(session, place.tenant, 100 * YUAN, "2026", NOW)
        place.run(session, 40)
        repay_credit(session, place.tenant, 41 * YUAN, f"a {place.tenant}", NOW)
        found = wallet_balance(session, place.tenant)
        assert (found.prepaid_available_micros, found.credit_available_micros) == (0, 101 * YUAN)


def test_the_largest_amount_is_booked_and_not_a_millionth_more(world: World) -> None:
    with transaction(world.engine) as session:
        tenant = world.enterprise(session)
        deposit(session, tenant, MICROS_MAX, f"ref {tenant}", NOW)
        assert wallet_balance(session, tenant).prepaid_available_micros == MICROS_MAX
        for refused in (MICROS_MAX + 1, 0):
            with pytest.raises(AmountRefused):
                deposit(session, tenant, refused, f"more {tenant}", NOW)


def test_prepaid_money_is_used_before_the_credit_line_and_payment_makes_that_good(world: World) -> None:
    with transaction(world.engine) as session:
        place = world.place(session, yuan=60)
        grant_credit(session, place.tenant, 100 * YUAN, "2026", NOW)
        assert paid(session, place, 100) == [("prepaid", 60), ("credit", 40)]
        place.run(session, 100)
        assert wallet_balance(session, place.tenant) == WalletBalance(0, 0, 60 * YUAN, 0, None)
        with pytest.raises(NoFunding) as refused:
            quote(session, place.tenant, 61 * YUAN, FACTS, None, NOW)
        assert (refused.value.facts["short"], refused.value.facts["available"]) == (YUAN, 60 * YUAN)
        with pytest.raises(InsufficientFunds):
            withdraw_credit(session, place.tenant, 61 * YUAN, "less", NOW)
        repay_credit(session, place.tenant, 40 * YUAN, f"invoice {place.tenant}", NOW)
        withdraw_credit(session, place.tenant, 100 * YUAN, "none", NOW)
        assert wallet_balance(session, place.tenant).credit_available_micros == 0


def test_a_projects_budget_limits_what_the_enterprise_pays_itself(world: World) -> None:
    with transaction(world.engine) as session:
        place = world.place(session)
        place.voucher(session, 1_000)

        def budget(yuan: int, reference: str, *, lower: bool = False, days: int = 1) -> None:
            set_budget(
                session,
                place.tenant,
                "moulds",
                starts_at=NOW - timedelta(days=1),
                ends_at=NOW + timedelta(days=days),
                amount_micros=yuan * YUAN,
                reference=reference,
                by="boss",
                at=NOW,
                lower=lower,
            )

        budget(70, "first")
        budget(70, "first")
        place_hold(session, place.job(), place.tenant, 90 * YUAN, MOULDS, None, NOW)
        with pytest.raises(BudgetSpent) as refused:
            quote(session, place.tenant, 11 * YUAN, MOULDS, None, NOW)
        assert refused.value.facts["available"] == 7 * YUAN
        assert paid(session, place, 10, MOULDS) == [("voucher", 3), ("prepaid", 7)]
        assert paid(session, place, 100, CARS) == [("voucher", 30), ("prepaid", 70)]
        next_week = NOW + timedelta(days=7)
        assert quote(session, place.tenant, 100 * YUAN, MOULDS, None, next_week).tenant_micros == 70 * YUAN
        with pytest.raises(InsufficientFunds):
            budget(8, "cut", lower=True)
        capture_charge(session, place.job(), place.charge(), 10 * YUAN, MOULDS, NOW)
        release_hold(session, place.job(), NOW)
        budget(63, "cut", lower=True)
        with pytest.raises(DatesReversed):
            budget(1, "x", days=-1)


def test_a_group_pays_for_at_most_six_affiliates_each_bound_once(world: World) -> None:
    with transaction(world.engine) as session:
        payer, affiliates = group(session, world, 7)
        for affiliate in (*affiliates[:6], affiliates[0]):
            bind_affiliate(session, payer.tenant, affiliate, by="boss", at=NOW)
        with pytest.raises(GroupFull):
            bind_affiliate(session, payer.tenant, affiliates[6], by="boss", at=NOW)
        for bound, to in ((affiliates[0], affiliates[6]), (affiliates[6], affiliates[0])):
            with pytest.raises(AlreadyBound):
                bind_affiliate(session, to, bound, by="boss", at=NOW)
        with pytest.raises(AlreadyBound):
            bind_affiliate(session, affiliates[6], payer.tenant, by="boss", at=NOW)
        stranger = world.enterprise(session)
        with pytest.raises(NotRelated):
            bind_affiliate(session, stranger, affiliates[6], by="boss", at=NOW)
        unbind_affiliate(session, payer.tenant, affiliates[2])
        bind_affiliate(session, payer.tenant, affiliates[6], by="boss", at=NOW)
        member = session.get_one(GroupMember, affiliates[6])
        assert member.place == 3
    with pytest.raises(IntegrityError, match="ck_group_members_place"), transaction(world.engine) as session:
        session.add(
            GroupMember(affiliate_id=affiliates[2], payer_id=payer.tenant, place=7, bound_by="x", bound_at=NOW)
        )


def test_an_affiliate_uses_its_own_money_first_and_then_the_payers(world: World) -> None:
    with transaction(world.engine) as session:
        payer, (affiliate,) = group(session, world, 1)
        world.fund(session, affiliate, 30)
        bind_affiliate(session, payer.tenant, affiliate, by="boss", at=NOW)
        mine = Place(world, payer.programme, affiliate)
        offered = quote(session, affiliate, 100 * YUAN, FACTS, None, NOW)
        for coverage in (offered, mine.run(session, 100)):
            assert [(line.payer, line.amount_micros // YUAN) for line in coverage.lines] == [
                (str(affiliate), 30),
                (str(payer.tenant), 70),
            ]
        assert (mine.prepaid(session), payer.prepaid(session)) == (0, 930)
        unbind_affiliate(session, affiliate, affiliate)
        unbind_affiliate(session, affiliate, payer.tenant)
        assert wallet_balance(session, affiliate).payer_id == payer.tenant
        unbind_affiliate(session, payer.tenant, affiliate)
        with pytest.raises(NoFunding):
            quote(session, affiliate, YUAN, FACTS, None, NOW)


def test_a_late_correction_is_charged_to_whoever_paid_then_and_not_to_who_pays_now(world: World) -> None:
    with transaction(world.engine) as session:
        payer, (affiliate,) = group(session, world, 1)
        world.fund(session, affiliate, 30)
        bind_affiliate(session, payer.tenant, affiliate, by="boss", at=NOW)
        mine = Place(world, payer.programme, affiliate)
        mine.run(session, 100)
        assert (mine.prepaid(session), payer.prepaid(session)) == (0, 930)
        unbind_affiliate(session, payer.tenant, affiliate)
        charge = mine.charge()
        for bound, cost, own, paid_then in ((None, 90, 0, 940), (payer, 80, 0, 950), (None, 20, 10, 1000)):
            if bound is not None:
                newer = world.place(session)
                codes = [enterprise_facts(session, one).credit_code for one in (payer.tenant, newer.tenant)]
                record_controller(session, *codes, by="officer", at=NOW)
                bind_affiliate(session, newer.tenant, affiliate, by="boss", at=NOW)
            corrected = derived_id("corrected", charge)
            recharge(session, charge, corrected, cost * YUAN, reason="price", by="operator", at=NOW)
            charge = corrected
            assert (mine.prepaid(session), payer.prepaid(session)) == (own, paid_then)
        assert newer.prepaid(session) == 1_000


def test_parts_of_a_voucher_never_exceed_it_and_bind_their_project(world: World) -> None:
    with transaction(world.engine) as session:
        place = world.place(session)
        voucher = place.voucher(session, 100)

        def allot(project: str, yuan: int, reference: str, *, back: bool = False) -> None:
            allot_part(
                session,
                place.tenant,
                voucher,
                project,
                yuan * YUAN,
                reference=reference,
                by="boss",
                at=NOW,
                back=back,
            )

        for _ in range(2):
            allot("moulds", 60, "1")
        allot("cars", 30, "1")
        with pytest.raises(InsufficientFunds):
            allot("moulds", 11, "2")
        assert paid(session, place, 400, MOULDS) == [("voucher", 60), ("prepaid", 340)]
        assert paid(session, place, 400, CARS) == [("voucher", 30), ("prepaid", 370)]
        assert paid(session, place, 400) == [("voucher", 10), ("prepaid", 390)]
        with pytest.raises(InsufficientFunds):
            allot("cars", 31, "b", back=True)
        allot("cars", 30, "b", back=True)
        assert paid(session, place, 400, CARS) == [("prepaid", 400)]
        with pytest.raises(VoucherSpent):
            quote(session, place.tenant, YUAN, CARS, [voucher], NOW)
        allot_part(session, place.tenant, voucher, "cars", YUAN, reference="2", by="boss", at=NOW)
        assert paid(session, place, 400, CARS) == [("voucher", 1), ("prepaid", 399)]
        stranger = world.enterprise(session)
        with pytest.raises(VoucherNotFound):
            allot_part(session, stranger, voucher, "x", 1, reference="1", by="x", at=NOW)
        assert place.left(session, voucher)[3] == 100
