"""What happens to vouchers after their use: each end is a movement, and nothing is lost or made."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from sqlalchemy.orm import Session

from kernel.database import transaction
from ledger.domain.accounts import CNY
from ledger.reading import history
from tests.vouchers.world import FACTS, NOW, YUAN, World
from vouchers import accounts
from vouchers.afterlife import (
    expire_vouchers,
    expiry_forecast,
    recall_voucher,
)
from vouchers.capturing import capture_charge
from vouchers.domain.forecast import Forecast, forecast
from vouchers.errors import (
    ChargeBeyondHold,
    NotApplicationsVoucher,
    ValidityOver,
    VoucherEnded,
    VoucherExpired,
    VoucherNotFound,
    VoucherPastUse,
)
from vouchers.issuing import issue_voucher, release_tranche, voucher_of
from vouchers.redemption import extend_hold, lapse_holds, place_hold, quote, release_hold
from vouchers.wallets import allot_part

# Issued on 10 March 2026 for twelve months: ends when 10 March 2027 begins in Shanghai.
END = datetime(2027, 3, 9, 16, 0, tzinfo=UTC)
BEFORE = END - timedelta(microseconds=1)


def _last_movement(session: Session, voucher: UUID) -> str:
    return history(session, accounts.voucher(voucher, CNY).id)[-1].movement


def expire_all(world: World, at: datetime) -> set[object]:
    ended = set()
    with transaction(world.engine) as session:
        while some := expire_vouchers(session, at):
            ended |= set(some)
    return ended


def test_a_voucher_ends_at_its_instant_in_the_programmes_time_zone(world: World) -> None:
    with transaction(world.engine) as session:
        place = world.place(session)
        voucher = place.voucher(session, 100_000)
        place.run(session, 100)
        assert voucher_of(session, voucher).expires_at == END
    assert voucher not in expire_all(world, BEFORE)
    with transaction(world.engine) as session:
        assert quote(session, place.tenant, YUAN, FACTS, [voucher], BEFORE).public_micros == 300_000
        with pytest.raises(VoucherExpired):
            quote(session, place.tenant, YUAN, FACTS, [voucher], END)
        assert place.pool(session) == 9_900_000
    assert voucher in expire_all(world, END)
    assert voucher not in expire_all(world, END)
    with transaction(world.engine) as session:
        assert place.left(session, voucher) == ("expired", 0, 30, 0)
        assert _last_movement(session, voucher) == "expire_voucher"
        with pytest.raises(VoucherEnded):
            recall_voucher(session, voucher, by="officer", reason="false statements", at=END)
        with pytest.raises(VoucherNotFound):
            recall_voucher(session, place.tenant, by="officer", reason="false statements", at=END)
        assert place.pool(session) == 9_900_000 + 99_970


def test_a_hold_placed_before_the_end_may_be_captured_for_usage_before_it(world: World) -> None:
    with transaction(world.engine) as session:
        place = world.place(session)
        voucher = place.voucher(session, 1_000)
        place_hold(session, place.job(), place.tenant, 100 * YUAN, FACTS, None, BEFORE)
    expire_all(world, END)
    later = END + timedelta(hours=3)
    with transaction(world.engine) as session:
        assert place.left(session, voucher) == ("expired", 30, 0, 0)
        captured = capture_charge(
            session, place.job(), place.charge(1), 50 * YUAN, FACTS, later, used_until=BEFORE
        )
        assert captured.public_micros == 15 * YUAN
        with pytest.raises(ChargeBeyondHold) as refused:
            capture_charge(
                session, place.job(), place.charge(2), YUAN, FACTS, later, used_until=END + timedelta(seconds=1)
            )
        assert refused.value.facts["available"] == 0
        extend_hold(session, place.job(), 110 * YUAN, FACTS, later)
        own = capture_charge(session, place.job(), place.charge(2), YUAN, FACTS, later)
        assert (own.public_micros, own.tenant_micros) == (0, YUAN)
        before = place.pool(session)
        release_hold(session, place.job(), later)
        assert place.pool(session) == before + 15
        assert place.left(session, voucher) == ("expired", 0, 15, 0)


def test_usage_that_outlasts_a_voucher_is_not_covered_by_it(world: World) -> None:
    with transaction(world.engine) as session:
        place = world.place(session)
        voucher = place.voucher(session, 1_000)
        until = END + timedelta(minutes=1)
        offered = quote(session, place.tenant, YUAN, FACTS, None, BEFORE, usage_until=until)
        assert offered.public_micros == 0
        with pytest.raises(VoucherExpired):
            quote(session, place.tenant, YUAN, FACTS, [voucher], BEFORE, usage_until=until)


def test_after_its_use_by_deadline_a_voucher_pays_only_for_usage_before_it_until_it_expires(
    world: World,
) -> None:
    with transaction(world.engine) as session:
        place = world.place(session, use_by={"clause": "§5(2)", "days": 30})
        voucher = place.voucher(session, 1_000)
        row = voucher_of(session, voucher)
        deadline = datetime(2026, 4, 8, 16, 0, tzinfo=UTC)  # when 9 April begins in Shanghai
        assert (row.use_by_at, row.expires_at) == (deadline, END)
        just_before, later = deadline - timedelta(microseconds=1), deadline + timedelta(days=1)
        place_hold(session, place.job(), place.tenant, 100 * YUAN, FACTS, None, just_before)
        for at, until in ((deadline, deadline), (just_before, later)):
            offered = quote(session, place.tenant, YUAN, FACTS, None, at, usage_until=until)
            assert offered.public_micros == 0
            with pytest.raises(VoucherPastUse) as refused:
                quote(session, place.tenant, YUAN, FACTS, [voucher], at, usage_until=until)
            assert refused.value.facts["use_by_at"] == deadline.isoformat()
        last = quote(session, place.tenant, YUAN, FACTS, None, just_before, usage_until=deadline)
        assert last.public_micros == 300_000
        with pytest.raises(ChargeBeyondHold):
            capture_charge(session, place.job(), place.charge(2), YUAN, FACTS, later)
        paid = capture_charge(
            session, place.job(), place.charge(), 50 * YUAN, FACTS, later, used_until=just_before
        )
        assert paid.public_micros == 15 * YUAN
    assert voucher not in expire_all(world, later)
    with transaction(world.engine) as session:
        assert place.left(session, voucher) == ("active", 15, 15, 970)
        (entry,) = expiry_forecast(session, NOW + timedelta(days=15), slug=place.programme).soonest
        # ¥15 in 15 days: at that pace another ¥14.90 until the deadline, not until it expires.
        assert 14 * YUAN < entry.forecast.used_by_then < 15 * YUAN
        early = world.voucher(session, place.tenant, place.programme, YUAN, NOW)
        with pytest.raises(ValidityOver) as over:
            world.voucher(
                session,
                place.tenant,
                world.programme(session, use_by={"clause": "§5(2)", "until": "2026-03-09"}),
                YUAN,
            )
        assert over.value.facts["clause"] == "§5(2)"
    with transaction(world.engine) as session:
        sooner = world.place(
            session, validity={"clause": "§5", "days": 10}, use_by={"clause": "§6", "days": 30}
        )
        ends = voucher_of(session, sooner.voucher(session, 1))
        assert ends.use_by_at == ends.expires_at
    assert early in expire_all(world, END)
    with transaction(world.engine) as session:
        last_day = world.programme(session, use_by={"clause": "§5(2)", "until": "2026-03-10"})
        midnight = datetime(2026, 3, 10, 16, 0, tzinfo=UTC)
        with pytest.raises(ValidityOver):
            world.voucher(session, world.enterprise(session), last_day, YUAN, issued_at=midnight)
        in_time = midnight - timedelta(microseconds=1)
        world.voucher(session, world.enterprise(session), last_day, YUAN, issued_at=in_time)


def test_a_recalled_voucher_keeps_only_what_is_set_aside(world: World) -> None:
    with transaction(world.engine) as session:
        place = world.place(session)
        voucher = place.voucher(session, 1_000)
        allot_part(session, place.tenant, voucher, "moulds", 200 * YUAN, reference="1", by="boss", at=NOW)
        place_hold(session, place.job(), place.tenant, 100 * YUAN, FACTS, None, NOW)
        before = place.pool(session)
        recall_voucher(session, voucher, by="officer", reason="false statements", at=NOW)
        recall_voucher(session, voucher, by="officer", reason="false statements", at=NOW)
        assert place.left(session, voucher) == ("recalled", 30, 0, 0)
        assert _last_movement(session, voucher) == "recall_voucher"
        assert place.pool(session) == before + 970
        with pytest.raises(VoucherEnded):
            quote(session, place.tenant, YUAN, FACTS, [voucher], NOW)
        release_hold(session, place.job(), NOW)
        assert place.pool(session) == before + 1_000


def test_the_second_tranche_waits_for_a_report_and_lapses_with_the_first(world: World) -> None:
    halves = [
        {"clause": "§5", "parts": 1, "needs": "award"},
        {"clause": "§5(2)", "parts": 1, "needs": "progress_report"},
    ]
    with transaction(world.engine) as session:
        place = world.place(session, tranches=halves)
        first = place.voucher(session, 1_001)
        application = voucher_of(session, first).application_id
        assert issue_voucher(session, application, by="officer", at=NOW) == first
        assert place.left(session, first)[3] == 500
        assert place.pool(session) == 10_000_000 - 1_001
        second = release_tranche(session, application, report="report 1", by="officer", at=NOW)
        assert release_tranche(session, application, report="report 1", by="officer", at=NOW) == second
        with pytest.raises(NotApplicationsVoucher):
            release_tranche(session, application, report="report 2", by="officer", at=NOW)

        other = world.enterprise(session)
        lonely = world.voucher(session, other, place.programme, 100 * YUAN)
        recall_voucher(session, lonely, by="officer", reason="closed", at=NOW)
        assert place.pool(session) == 10_000_000 - 1_001
        with pytest.raises(NotApplicationsVoucher):
            release_tranche(
                session, voucher_of(session, lonely).application_id, report="late", by="officer", at=NOW
            )


def test_holds_whose_far_end_has_come_are_released(world: World) -> None:
    with transaction(world.engine) as session:
        place = world.place(session)
        place_hold(session, place.job(), place.tenant, 100 * YUAN, FACTS, None, NOW)
        assert place.job() not in lapse_holds(session, NOW + timedelta(days=366, microseconds=-1), limit=1_000)
        assert place.job() in lapse_holds(session, NOW + timedelta(days=366), limit=1_000)
        assert place.prepaid(session) == 1_000


def test_the_forecast_projects_the_pace_so_far_to_the_end(world: World) -> None:
    # ¥30 in 10 of 365 days: at that pace ¥1,065 in the 355 days left, of ¥1,970 remaining.
    with transaction(world.engine) as session:
        place = world.place(session)
        voucher = place.voucher(session, 2_000)
        place.run(session, 100)
        outlook = expiry_forecast(session, NOW + timedelta(days=10), slug=place.programme)
    (entry,) = outlook.soonest
    assert entry.voucher.id == voucher
    assert entry.forecast.remaining == 1_970 * YUAN
    assert entry.forecast.used_by_then == 30 * YUAN * (354 * 24 + 14) // (10 * 24)
    assert outlook.by_month == {("CNY", "2027-03"): entry.forecast.lapsing}


def test_a_forecast_counts_every_voucher_in_the_month_of_its_last_day_and_tells_the_soonest(
    world: World,
) -> None:
    months = {"until": "2026-12-31", "clause": "§5"}
    with transaction(world.engine) as session:
        slug = world.programme(session, time_zone="Europe/London", validity=months, caps=[])
        for _ in range(5):
            world.voucher(session, world.enterprise(session), slug, YUAN)
        outlook = expiry_forecast(session, NOW, slug=slug, limit=2, page=2)
        nothing = expiry_forecast(session, NOW, slug=world.programme(session), page=1)
    assert outlook.by_month == {("CNY", "2026-12"): 5 * YUAN}
    assert len(outlook.soonest) == 2
    assert (nothing.soonest, nothing.by_month) == ((), {})


@pytest.mark.parametrize(
    ("captured", "remaining", "days_gone", "expected"),
    [
        (0, 100, 10, Forecast(100, 0, 100)),
        (50, 50, 10, Forecast(50, 50, 0)),
        (10, 90, 20, Forecast(90, 5, 85)),
        (10, 90, 0, Forecast(90, 0, 90)),
        (10, 90, 40, Forecast(90, 0, 90)),
    ],
)
def test_forecasts_at_the_edges(captured: int, remaining: int, days_gone: int, expected: Forecast) -> None:
    made = forecast(
        face=100,
        captured=captured,
        remaining=remaining,
        issued_at=NOW,
        use_by_at=NOW + timedelta(days=30),
        at=NOW + timedelta(days=days_gone),
    )
    assert made == expected
