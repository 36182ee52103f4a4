"""Later parts of a grant: they count under the cap from the award on, and stay money of the cycle they came from."""

from datetime import timedelta
from typing import Final

import pytest
from sqlalchemy.orm import Session

from kernel.database import transaction
from tests.vouchers.world import NOW, YUAN, Place, World
from vouchers import accounts
from vouchers.afterlife import recall_voucher
from vouchers.applications import checks_of, submit_application
from vouchers.errors import GrantIndivisible, NotApplicationsVoucher
from vouchers.issuing import issue_voucher, release_tranche, voucher_of

HALVES: Final = [
    {"clause": "§5", "parts": 1, "needs": "award"},
    {"clause": "§5(2)", "parts": 1, "needs": "progress_report"},
]
CAP: Final = [{"clause": "§4", "per": "enterprise", "cycle": "year", "amount": "100.00"}]
NEXT_YEAR: Final = NOW + timedelta(days=300)


def test_a_grant_too_small_for_its_tranches_is_refused_where_it_is_granted(world: World) -> None:
    with transaction(world.engine) as session:
        place = world.place(session, tranches=HALVES)
        with pytest.raises(GrantIndivisible, match="granted: 1 "):
            world.approved(session, place.tenant, place.programme, 1)
        world.voucher(session, world.enterprise(session), place.programme, 2)


def failed(session: Session, place: Place) -> list[str]:
    """The checks that an application for a millionth more does not pass."""
    application = submit_application(
        session, enterprise_id=place.tenant, programme=place.programme, requested=1, by="tenant", at=NOW
    )
    return [check.rule for check in checks_of(session, application) if check.verdict == "fail"]


def test_what_waits_for_a_report_counts_under_the_cap(world: World) -> None:
    with transaction(world.engine) as session:
        place = world.place(session, tranches=HALVES, caps=CAP)
        waiting = world.approved(session, place.tenant, place.programme, 50 * YUAN)
        first = voucher_of(session, issue_voucher(session, waiting, by="officer", at=NOW))
        second = world.approved(session, place.tenant, place.programme, 50 * YUAN)
        issue_voucher(session, second, by="officer", at=NOW)
        assert failed(session, place) == ["cap_per_enterprise"]
        release_tranche(session, first.application_id, report="r", by="officer", at=NOW)
        assert failed(session, place) == ["cap_per_enterprise"]


def test_a_promise_that_lapsed_no_longer_counts_under_the_cap(world: World) -> None:
    with transaction(world.engine) as session:
        place = world.place(session, tranches=HALVES, caps=CAP)
        application = world.approved(session, place.tenant, place.programme, 60 * YUAN)
        issue_voucher(session, application, by="officer", at=NOW)
        lapsed = place.voucher(session, 40)
        assert failed(session, place) == ["cap_per_enterprise"]
        recall_voucher(session, lapsed, by="officer", reason="closed", at=NOW)
        # The promise of ¥20 went back to the pool with its voucher; the ¥20 that were issued stay counted.
        place.voucher(session, 20)
        assert failed(session, place) == ["cap_per_enterprise"]


def test_a_tranche_released_next_year_is_money_of_its_grants_year(world: World) -> None:
    with transaction(world.engine) as session:
        place = world.place(session, tranches=HALVES, caps=CAP)
        first = place.voucher(session, 100)
        application = voucher_of(session, first).application_id
        second = voucher_of(session, release_tranche(session, application, report="r", by="o", at=NEXT_YEAR))
        assert (second.cycle, second.cap_year) == ("2026", 2026)
        pools = [accounts.pool(place.programme, year, "CNY") for year in ("2026", "2027")]
        before = accounts.available(session, pools)
        recall_voucher(session, second.id, by="officer", reason="closed", at=NEXT_YEAR)
        after = accounts.available(session, pools)
        assert [after[pool.id] - before[pool.id] for pool in pools] == [50 * YUAN, 0]


def test_each_report_releases_the_next_part_until_every_part_is_released(world: World) -> None:
    parts = [
        {"clause": f"§5({number})", "parts": parts, "needs": "progress_report" if number else "award"}
        for number, parts in enumerate((1, 2, 4))
    ]
    with transaction(world.engine) as session:
        place = world.place(session, tranches=parts)
        voucher = voucher_of(session, world.voucher(session, place.tenant, place.programme, 10))
        application, faces = voucher.application_id, [voucher.face]
        promised = accounts.promised(application, "CNY")
        assert accounts.available(session, [promised])[promised.id] == 9
        for report, face in (("first", 3), ("first", 3), ("second", 6)):
            released = voucher_of(session, release_tranche(session, application, report=report, by="o", at=NOW))
            faces.append(released.face)
            assert released.face == face
        assert faces == [1, 3, 3, 6]
        assert accounts.available(session, [promised])[promised.id] == 0
        with pytest.raises(NotApplicationsVoucher):
            release_tranche(session, application, report="third", by="o", at=NOW)
