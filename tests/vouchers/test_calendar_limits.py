"""Days and zones that no programme can mean are refused by name, before anything is written."""

import json
from datetime import timedelta
from typing import Any

import pytest

from compute_hub.workers.biller import end_what_is_due
from kernel.database import transaction
from tests.vouchers.world import EXAMPLES, World
from vouchers.domain.calendar import MalformedPeriod, claim_period
from vouchers.domain.terms import ProgrammeInvalid
from vouchers.programmes import parse_programme
from vouchers.tables import Voucher


def huangyan() -> dict[str, Any]:
    return dict(json.loads((EXAMPLES / "huangyan.json").read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"effective": {"from": "0001-01-01"}}, "effective"),
        ({"validity": {"clause": "§5", "until": "9999-12-31"}}, "validity.until"),
        ({"validity": {"clause": "§5", "until": "1948-12-31"}}, "validity.until"),
        ({"time_zone": "Asia"}, "time_zone"),
        ({"time_zone": "Asia/Nowhere"}, "time_zone"),
    ],
)
def test_a_day_or_zone_that_cannot_be_meant_is_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ProgrammeInvalid) as refusal:
        parse_programme(huangyan() | change)
    assert named in str(refusal.value)


@pytest.mark.parametrize("period", ["0001-01", "9999-12", "1948-12", "2200-01"])
def test_a_period_beyond_the_calendar_is_malformed(period: str) -> None:
    with pytest.raises(MalformedPeriod, match=period):
        claim_period(parse_programme(huangyan()), period)


def test_the_biller_ends_vouchers_at_their_instant(world: World) -> None:
    with transaction(world.engine) as session:
        place = world.place(session)
        voucher_id = place.voucher(session, 1000)
        expires_at = session.get_one(Voucher, voucher_id).expires_at
    before = expires_at - timedelta(milliseconds=1)
    assert end_what_is_due(world.engine, before) > 0, "the year has turned, and with it the programme's budget"
    assert end_what_is_due(world.engine, before) == 0
    assert end_what_is_due(world.engine, expires_at) == 2, (
        "the voucher, and the past year's pool that it refilled"
    )
    assert end_what_is_due(world.engine, expires_at) == 0
    with transaction(world.engine) as session:
        assert place.left(session, voucher_id) == ("expired", 0, 0, 0)
