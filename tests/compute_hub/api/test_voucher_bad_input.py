"""Programmes, wallets, controllers and claims that cannot be meant: refused over HTTP by field and with the way out."""

import json
from collections.abc import Callable
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest

from kernel.clock import utc_now
from tests.compute_hub.api.house import EXAMPLES, Asker, House, job, month_in_china

HUANGYAN: dict[str, Any] = json.loads((EXAMPLES / "huangyan.json").read_text(encoding="utf-8"))
BUDGET: dict[str, Any] = HUANGYAN["budget"]
RATIO: dict[str, Any] = HUANGYAN["ratios"][0]

PROGRAMMES = [
    (
        {"budget": BUDGET | {"amount": "1.0000001"}},
        "programme_invalid",
        "budget.amount: '1.0000001' is not",
        "six places",
    ),
    (
        {"budget": BUDGET | {"amount": "-1.00"}},
        "programme_invalid",
        "budget.amount: '-1.00' is not",
        "without sign",
    ),
    (
        {"budget": BUDGET | {"amount": "9007199255"}},
        "malformed_amount",
        "budget.amount: ",
        "at most 9007199254.740992",
    ),
    ({"asset": "USD"}, "programme_invalid", "asset: 'USD' is not", "write CNY, or card_ms:"),
    (
        {"ratios": [RATIO | {"ratio": "1.01"}]},
        "programme_invalid",
        "ratios[0].ratio: '1.01' is not",
        "from 0 to 1",
    ),
    (
        {"effective": {"from": "2026-02-01", "until": "2026-01-31"}},
        "programme_invalid",
        "effective: it ends on 2026-01-31 before it starts on 2026-02-01",
        "exchange the days",
    ),
]


@pytest.mark.parametrize(("changed", "code", "field", "way_out"), PROGRAMMES)
def test_a_programme_that_cannot_be_meant_names_the_field_and_what_to_write(
    house: House, changed: dict[str, object], code: str, field: str, way_out: str
) -> None:
    document = HUANGYAN | {"programme": f"bad-{house.number()}"} | changed
    with house.untouched():
        words = house.authority.refused(422, code, "POST", "/v1/programmes", {"document": document})
    assert words.startswith(field)
    assert way_out in words


def test_versions_that_would_overlap_are_refused_with_the_way_out(house: House) -> None:
    programme = house.programme()
    for changed, code, way_out in (
        ({"version": 2}, "versions_overlap", "name 1 in supersedes"),
        ({"name": "another"}, "version_exists", "publish the change as a new version"),
    ):
        document = HUANGYAN | {"programme": programme} | changed
        with house.untouched():
            words = house.authority.refused(409, code, "POST", "/v1/programmes", {"document": document})
        assert way_out in words


def test_a_circle_of_control_is_refused(house: House) -> None:
    names = [f"91331003{house.number():09d}X" for _ in range(3)]
    for controlled, controller in pairwise(names):
        body = {"controlled": controlled, "controller": controller, "reason": "r"}
        house.authority.post("/v1/controllers", body)
    with house.untouched():
        body = {"controlled": names[2], "controller": names[0], "reason": "r"}
        words = house.authority.refused(422, "controller_cycle", "POST", "/v1/controllers", body)
    assert words.startswith(f"controller: {names[2]} cannot be controlled by {names[0]}")
    assert "name another controller" in words


def wrong_unit(house: House, firm: Asker) -> tuple[Asker, int, str, str, dict[str, Any], str]:
    asked = {"programme": house.programme(), "requested_card_ms": 1000}
    return firm, 422, "wrong_unit", "/v1/applications", asked, "requested_cny"


def reversed_round(house: House, _: Asker) -> tuple[Asker, int, str, str, dict[str, Any], str]:
    body = {"name": "r", "opens_at": "2026-03-02T00:00:00Z", "cut_off_at": "2026-03-01T00:00:00Z"}
    path = f"/v1/programmes/{house.programme()}/rounds"
    return house.authority, 422, "dates_reversed", path, body, "cut_off_at: "


def reversed_budget(_: House, firm: Asker) -> tuple[Asker, int, str, str, dict[str, Any], str]:
    times = {"starts_at": "2026-03-02T00:00:00Z", "ends_at": "2026-03-01T00:00:00Z"}
    body = {"project": "p", "amount_cny": "1.00", "reference": "r"} | times
    return firm, 422, "dates_reversed", "/v1/budgets:raise", body, "ends_at: "


def future_claim(house: House, _: Asker) -> tuple[Asker, int, str, str, dict[str, Any], str]:
    later = utc_now() + timedelta(days=62)
    body = {"programme": house.programme(), "period": f"{later:%Y-%m}"}
    return house.operator, 409, "period_not_begun", "/v1/claims", body, "period: "


CASES = [wrong_unit, reversed_round, reversed_budget, future_claim]


@pytest.mark.parametrize("case", CASES)
def test_wrong_units_and_times_are_refused_by_field(
    house: House, case: Callable[[House, Asker], tuple[Asker, int, str, str, dict[str, Any], str]]
) -> None:
    firm = house.enterprise("10.00")
    asker, status, code, path, body, field = case(house, firm)
    with house.untouched():
        assert field in asker.refused(status, code, "POST", path, body)


def test_a_claim_over_a_closed_period_is_refused(house: House) -> None:
    firm, programme = house.enterprise("1000.00"), house.programme()
    voucher = house.voucher(firm, programme, requested_cny="500.00")
    house.use(firm.post("/v1/jobs", job(voucher_ids=[voucher["id"]]))["id"], 100_000)
    asked = {"programme": programme, "period": month_in_china()}
    path = f"/v1/claims/{house.operator.post('/v1/claims', asked)['id']}"
    house.reviewer.post(f"{path}:check", {"centre_credit_code": "91331003CENTRE0001"})
    house.reviewer.post(f"{path}:first-review")
    house.approver.post(f"{path}:final-approval")
    with house.untouched():
        words = house.operator.refused(409, "period_closed", "POST", "/v1/claims", asked)
    assert words.startswith(f"period: {asked['period']} of {programme} is closed")
    assert "goes into the next period's claim" in words
