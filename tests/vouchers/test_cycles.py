"""The turn of a budget cycle: the new budget comes by itself, what is left of the old one never lies idle."""

from datetime import UTC, datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from compute_hub.workers.biller import end_what_is_due
from kernel.database import transaction
from ledger.reading import balances
from tests.vouchers.world import NOW, YUAN, World
from vouchers import accounts
from vouchers.programmes import publish_programme
from vouchers.reading import programme_totals
from vouchers.tables import CycleClosing

# 2027 begins in Shanghai.
NEW_YEAR = datetime(2026, 12, 31, 16, 0, tzinfo=UTC)
EVE = NEW_YEAR - timedelta(microseconds=1)


def pools(session: Session, slug: str, asset: str = "CNY") -> dict[str, int]:
    """Whole yuan in each cycle's pool that has ever had one."""
    named = {cycle: accounts.pool(slug, cycle, asset) for cycle in ("2026", "2027", "2028", "once")}
    found = balances(session, [account.id for account in named.values()])
    return {cycle: found[account.id].net // YUAN for cycle, account in named.items() if account.id in found}


def funds(session: Session, authority: str) -> int:
    account = accounts.authority_funds(authority, "CNY")
    return balances(session, [account.id])[account.id].net // YUAN


def test_a_new_year_brings_its_budget_and_gives_the_old_ones_rest_back_in_parts(world: World) -> None:
    split = [
        {"level": "city", "authority": "turn-city", "parts": 2},
        {"level": "district", "authority": "turn-district", "parts": 1},
    ]
    budget = {"clause": "§2", "cycle": "year", "amount": "900.00", "split": split}
    with transaction(world.engine) as session:
        place = world.place(session, budget=budget)
        place.voucher(session, 300)
        place.run(session, 100)
    end_what_is_due(world.engine, EVE)
    with transaction(world.engine) as session:
        assert pools(session, place.programme) == {"2026": 600}
    for _ in range(2):
        end_what_is_due(world.engine, NEW_YEAR)
        with transaction(world.engine) as session:
            assert pools(session, place.programme) == {"2026": 0, "2027": 900}
            assert [funds(session, name) for name in ("turn-city", "turn-district")] == [-800, -400]
    end_what_is_due(world.engine, NOW + timedelta(days=366))
    with transaction(world.engine) as session:
        # The voucher's last 270 came back to the pool of 2026 and went on to those who had paid it.
        assert pools(session, place.programme) == {"2026": 0, "2027": 900}
        assert [funds(session, name) for name in ("turn-city", "turn-district")] == [-620, -310]
        totals = programme_totals(session, place.programme)
        assert (totals.budget, totals.captured) == (930 * YUAN, 30 * YUAN)
        assert totals.budget == totals.pool + totals.issued - totals.returned
        closed = select(CycleClosing.number, CycleClosing.amount).where(CycleClosing.slug == place.programme)
        assert session.execute(closed.order_by(CycleClosing.number)).all() == [
            (1, 600 * YUAN),
            (2, 270 * YUAN),
        ]


def test_a_programme_gets_its_budget_from_its_first_day_to_its_last_be_it_a_millionth(world: World) -> None:
    yearly = {"clause": "§2", "cycle": "year", "amount": "0.000001"}
    with transaction(world.engine) as session:
        ending = world.programme(
            session, budget=yearly, effective={"from": "2026-01-01", "until": "2027-01-01"}
        )
        begins = world.programme(session, budget=yearly | {"cycle": "once"})
        ahead = {"programme": begins, "version": 2, "supersedes": 1, "effective": {"from": "2027-01-01"}}
        publish_programme(session, world.document("huangyan", **ahead, budget=yearly), by="officer", at=NOW)
    end_what_is_due(world.engine, NEW_YEAR)
    with transaction(world.engine) as session:
        for slug in (ending, begins):
            pool = accounts.pool(slug, "2027", "CNY")
            assert accounts.available(session, [pool]) == {pool.id: 1}


def test_a_programme_may_carry_its_rest_over_to_the_next_cycle(world: World) -> None:
    budget = {"clause": "§2", "cycle": "year", "amount": "900.00", "unspent": "carried_over"}
    with transaction(world.engine) as session:
        place = world.place(session, budget=budget)
        place.voucher(session, 300)
    end_what_is_due(world.engine, NEW_YEAR)
    with transaction(world.engine) as session:
        assert pools(session, place.programme) == {"2026": 0, "2027": 1_500}
        assert programme_totals(session, place.programme).budget == 1_800 * YUAN


def test_a_programme_that_is_over_gets_nothing_more_and_gives_everything_back(world: World) -> None:
    dates = {"effective": {"from": "2026-01-01", "until": "2026-06-30"}}
    with transaction(world.engine) as session:
        yearly, once = (
            world.programme(session, budget={"clause": "§2", "cycle": cycle, "amount": "900.00"}, **dates)
            for cycle in ("year", "once")
        )
    end_what_is_due(world.engine, datetime(2026, 6, 30, 15, 59, tzinfo=UTC))
    with transaction(world.engine) as session:
        assert (pools(session, yearly), pools(session, once)) == ({"2026": 900}, {"once": 900})
    end_what_is_due(world.engine, datetime(2026, 6, 30, 16, 0, tzinfo=UTC))
    with transaction(world.engine) as session:
        assert (pools(session, yearly), pools(session, once)) == ({"2026": 900}, {"once": 0})
    end_what_is_due(world.engine, NEW_YEAR)
    with transaction(world.engine) as session:
        assert pools(session, yearly) == {"2026": 0}
        assert programme_totals(session, once).budget == 0


def test_a_version_published_ahead_gets_its_budget_when_it_begins(world: World) -> None:
    with transaction(world.engine) as session:
        slug = world.programme(session, budget={"clause": "§2", "cycle": "once", "amount": "900.00"})
        later = world.document(
            "huangyan",
            programme=slug,
            version=2,
            supersedes=1,
            effective={"from": "2026-05-01"},
            budget={"clause": "§2", "cycle": "year", "amount": "500.00"},
        )
        publish_programme(session, later, by="officer", at=NOW)
    end_what_is_due(world.engine, datetime(2027, 5, 1, tzinfo=UTC))
    with transaction(world.engine) as session:
        assert pools(session, slug) == {"2026": 0, "2027": 500, "once": 900}
