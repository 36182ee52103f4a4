"""An estimate says what a submission would do, and does nothing."""

from typing import Any

import pytest

from kernel.money import parse_yuan
from tests.compute_hub.api.house import House, job


def test_an_estimate_names_cost_payers_and_start_and_leaves_no_trace(house: House) -> None:
    firm, programme = house.enterprise("100.00"), house.programme()
    voucher = house.voucher(firm, programme, requested_cny="100.00")
    with house.untouched():
        found = firm.post("/v1/jobs:estimate", job(time_limit_s=3600))
    limit, predicted = found["limit"], found["predicted"]
    assert (limit["cost_cny"], limit["duration_s"], limit["affordable"]) == ("36.000000", 3600, True)
    assert [line["voucher_id"] for line in limit["coverage"]["lines"] if line["voucher_id"]] == [voucher["id"]]
    assert parse_yuan(limit["voucher_cny"]) + parse_yuan(limit["tenant_cny"]) == parse_yuan(limit["cost_cny"])
    assert parse_yuan(predicted["cost_cny"]) <= parse_yuan(limit["cost_cny"])
    assert (found["start_sentence"], found["warnings"]) == ("it would start at once", [])
    assert limit["prices"] == [
        {"price_cny_per_card_hour": "36.000000", "time_window": "", "card_ms": 3_600_000}
    ]


def test_a_model_voucher_pays_for_jobs_of_a_model_service_and_a_tenant_cannot_make_compute_one(
    house: House,
) -> None:
    kinds = {"clause": "§1", "enterprise_regions": ["33"], "centre_regions": ["any"], "cost_kinds": ["model"]}
    firm, programme = house.enterprise("100.00"), house.programme(eligible=kinds)
    house.voucher(firm, programme, requested_cny="100.00")
    serving = job(environment="llm", argv=["serve", "--model", "qwen"], time_limit_s=3600)
    offered = firm.get("/v1/environments")["environments"]
    assert offered[1] == {"name": "llm", "cost_kind": "model", "command": ["serve", "--model"], "usual": False}
    for path in ("/v1/jobs:quote", "/v1/jobs:estimate"):
        for asked, sources in ((serving, {"voucher", "prepaid"}), (job(), {"prepaid"})):
            found = firm.post(path, asked)
            lines = (found["limit"]["coverage"] if "limit" in found else found)["lines"]
            assert {line["source"] for line in lines} == sources
    array = {"job": serving | {"argv": ["serve", "python"]}, "size": 2}
    for body, field in (
        (serving | {"argv": ["python", "train.py"]}, "argv"),
        (serving | {"argv": ["serve"]}, "argv"),
        (serving | {"env": {"LD_PRELOAD": "mine.so"}}, "env"),
        (serving | {"kind": "ray"}, "kind"),
    ):
        with house.untouched():
            words = firm.refused(422, "service_only", "POST", "/v1/jobs", body)
        assert words.startswith(
            f"{field}: environment 'llm' is a service whose jobs begin with 'serve --model'"
        )
    firm.refused(422, "service_only", "POST", "/v1/job-arrays", array)
    assert firm.post("/v1/jobs", serving)["state"] == "queued"


@pytest.mark.parametrize(
    "terms",
    [
        {"validity": {"clause": "§5", "days": 1}},
        {"validity": {"clause": "§5", "days": 99}, "use_by": {"clause": "§6", "days": 1}},
    ],
)
def test_an_estimate_warns_of_a_voucher_that_ends_first_and_says_what_is_not_affordable(
    house: House, terms: dict[str, Any]
) -> None:
    firm = house.enterprise("1.00")
    programme = house.programme(**terms)
    voucher = house.voucher(firm, programme, requested_cny="100.00")
    found = firm.post("/v1/jobs:estimate", job(time_limit_s=3 * 86_400))
    (warning,) = found["warnings"]
    assert voucher["number"] in warning
    assert voucher["use_by_at"][:19] in warning
    assert (found["limit"]["affordable"], found["limit"]["coverage"]) == (False, None)
    assert found["limit"]["cost_cny"] == "2592.000000"


def test_an_estimate_of_what_can_never_run_is_refused_like_its_submission(house: House) -> None:
    firm = house.enterprise()
    with house.untouched():
        firm.refused(422, "unknown_accelerator", "POST", "/v1/jobs:estimate", job(accelerator="H100"))
        house.operator.refused(403, "wrong_role", "POST", "/v1/jobs:estimate", job())


def test_a_price_list_is_set_whole_or_not_at_all_and_an_agreement_is_seen_by_its_tenant_only(
    house: House,
) -> None:
    firm, other = house.enterprise("100.00"), house.enterprise()
    night = [{"from": "00:00", "until": "24:00", "factor": "0.5"}]
    own = {"model": "MLU370-X8", "price_cny_per_card_hour": "30", "time_of_day": night}
    own |= {"tenant_id": str(firm.tenant_id), "agreement": "KH-7", "reason": "contract KH-7"}
    with house.untouched():
        broken = {
            "model": "Z",
            "price_cny_per_card_hour": "1",
            "volume": [{"from_card_hours": 1, "factor": "1"}],
        }
        sentence = house.operator.refused(
            422, "rate_card_refused", "POST", "/v1/rates:publish", {"cards": [own, broken]}
        )
        assert sentence.startswith("cards[1].volume[0].from_card_hours: ")
    house.operator.post("/v1/rates:publish", {"cards": [own]})
    assert [rate["agreement"] for rate in firm.get("/v1/rates")["items"]].count("KH-7") == 1
    assert [rate["agreement"] for rate in other.get("/v1/rates")["items"]].count("KH-7") == 0
    limit = firm.post("/v1/jobs:estimate", job(time_limit_s=3600))["limit"]
    assert limit["cost_cny"] == "15.000000"
    assert limit["prices"][0]["time_window"] == "all 00:00-24:00"
