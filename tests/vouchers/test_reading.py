"""Totals and listings: every yuan of a programme is somewhere, and only in one place."""

import pytest

from kernel.database import transaction
from tests.vouchers.world import FACTS, NOW, YUAN, World
from vouchers.afterlife import recall_voucher
from vouchers.domain.facts import ChargeFacts
from vouchers.domain.terms import MS_PER_HOUR
from vouchers.errors import ClaimNotFound
from vouchers.reading import claim_view, list_claims, list_programmes, list_vouchers, programme_totals
from vouchers.redemption import place_hold
from vouchers.wallets import allot_part


def test_a_programmes_totals_are_the_sum_of_its_vouchers(world: World) -> None:
    with transaction(world.engine) as session:
        place = world.place(session)
        first, second, third = (place.voucher(session, 100) for _ in range(3))
        allot_part(session, place.tenant, first, "moulds", 60 * YUAN, reference="1", by="b", at=NOW)
        place.run(session, 100)
        place_hold(
            session,
            place.job(2),
            place.tenant,
            50 * YUAN,
            ChargeFacts("MLU370", project="moulds"),
            [first],
            NOW,
        )
        place_hold(session, place.job(3), place.tenant, 50 * YUAN, FACTS, [second], NOW)
        recall_voucher(session, third, by="o", reason="r", at=NOW)
        totals = programme_totals(session, place.programme)
        views = list_vouchers(session, slug=place.programme)
        assert totals.held == sum(view.held for view in views) == 30 * YUAN
        assert totals.remaining == sum(view.remaining for view in views)
        assert totals.captured == sum(view.captured for view in views) == 30 * YUAN
        assert totals.issued == totals.remaining + totals.held + totals.captured + totals.returned
        assert totals.budget == totals.pool + totals.issued - totals.returned
        assert place.programme in list_programmes(session)


def test_totals_of_card_time_are_in_card_time(world: World) -> None:
    review = {"clause": "c", "first_review": "panel", "final_approval": "board", "notice_days": 0}
    with transaction(world.engine) as session:
        programme = world.programme(session, "uk-airr", review=review)
        tenant = world.enterprise(session, region="GB")
        world.voucher(session, tenant, programme, 10 * MS_PER_HOUR)
        totals = programme_totals(session, programme)
        assert (totals.asset, totals.issued, totals.remaining) == (
            "card_ms:GH200",
            10 * MS_PER_HOUR,
            10 * MS_PER_HOUR,
        )


def test_listings_are_paged_by_id_and_unknown_claims_are_refused(world: World) -> None:
    with transaction(world.engine) as session:
        place = world.place(session)
        made = sorted(place.voucher(session, 1) for _ in range(3))
        first = list_vouchers(session, enterprise_id=place.tenant, limit=2)
        rest = list_vouchers(session, enterprise_id=place.tenant, limit=2, after=first[-1].id)
        assert [view.id for view in (*first, *rest)] == made
        assert list_claims(session, slug=place.programme) == []
        with pytest.raises(ClaimNotFound):
            claim_view(session, place.job())
