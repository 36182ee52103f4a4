"""Every voucher use case through HTTP, by the role whose duty it is."""

from datetime import timedelta

from kernel.clock import utc_now
from kernel.money import parse_yuan
from tests.compute_hub.api.house import House, job
from vouchers.domain.terms import MS_PER_HOUR


def test_an_application_is_drafted_revised_sent_back_resubmitted_and_issued(house: House) -> None:
    firm, programme = house.enterprise(), house.programme()
    draft = firm.post("/v1/applications:draft", {"programme": programme, "requested_cny": "300000.00"})
    assert (draft["state"], draft["checks"], draft["requested_card_ms"]) == ("draft", [], None)
    path = f"/v1/applications/{draft['id']}"
    revised = firm.post(f"{path}:revise", {"requested_cny": "100.00"})
    assert (revised["requested_cny"], revised["state"]) == ("100.000000", "draft")
    submitted = firm.post(f"{path}:submit")
    assert submitted["state"] == "submitted"
    assert {check["verdict"] for check in submitted["checks"]} == {"pass"}
    back = house.reviewer.post(f"{path}:request-revision", {"reason": "say which centre"})
    assert back["state"] == "revision"
    contract = {
        "contract_number": "C-1",
        "supplier_credit_code": "91331003CENTRE0001",
        "contract_cny": "900.00",
    }
    firm.post(f"{path}:revise", {"contract": contract})
    assert firm.post(f"{path}:submit")["revision"] == 2
    house.reviewer.post(f"{path}:first-review", {})
    approved = house.approver.post(f"{path}:final-approval", {"granted_cny": "80.00"})
    assert (approved["state"], approved["granted_cny"]) == ("approved", "80.000000")
    voucher = house.authority.post(f"{path}:issue")
    assert (voucher["face_cny"], voucher["remaining_cny"]) == ("80.000000", "80.000000")
    assert firm.get(f"/v1/vouchers/{voucher['id']}") == voucher
    steps = [step["step"] for step in firm.get(path)["steps"]]
    assert steps[:3] == ["draft", "revised", "submitted"]
    assert steps[-1] == "issued"


def test_an_application_can_be_withdrawn_rejected_or_fail_its_checks(house: House) -> None:
    programme = house.programme()
    firm, other, stranger = house.enterprise(), house.enterprise(), house.enterprise(region="330106")
    one = house.application(firm, programme, requested_cny="1.00")
    assert firm.post(f"/v1/applications/{one}:withdraw")["state"] == "withdrawn"
    two = house.application(other, programme, requested_cny="1.00")
    assert house.reviewer.post(f"/v1/applications/{two}:reject", {"reason": "no"})["state"] == "rejected"
    failed = stranger.post("/v1/applications", {"programme": programme, "requested_cny": "1.00"})
    assert failed["state"] == "rejected"
    (check,) = [check for check in failed["checks"] if check["verdict"] == "fail"]
    assert (check["rule"], check["clause"]) == ("enterprise_eligible", "Huangyan §1")
    listed = house.auditor.get("/v1/applications", programme=programme, limit=2)
    assert [entry["id"] for entry in listed["items"]] == [failed["id"], two]
    rest = house.auditor.get("/v1/applications", programme=programme, limit=2, after=listed["next"])
    assert ([entry["id"] for entry in rest["items"]], rest["next"]) == ([one], None)


def test_who_reviewed_cannot_approve_not_even_with_another_key(house: House) -> None:
    programme, firm = house.programme(), house.enterprise()
    application = house.application(firm, programme, requested_cny="1.00")
    house.reviewer.post(f"/v1/applications/{application}:first-review", {})
    made = house.operator.post("/v1/api-keys", {"role": "approver", "person": " officer  FIRST_REVIEWER "})
    same = type(firm)(house.http, made["key"])
    path = f"/v1/applications/{application}:final-approval"
    same.refused(403, "same_person", "POST", path, {})
    assert house.approver.post(path, {})["state"] == "approved"


def test_the_public_may_object_to_an_approval_and_an_upheld_objection_ends_it(house: House) -> None:
    review = {"clause": "§6", "first_review": "desk", "final_approval": "bureau", "notice_days": 7}
    programme = house.programme(review=review)
    firm, rival = house.enterprise(), house.enterprise()
    path = f"/v1/applications/{house.application(firm, programme, requested_cny='1.00')}"
    rival.refused(404, "application_not_found", "POST", f"{path}:object", {"reason": "early"})
    house.reviewer.post(f"{path}:first-review", {})
    house.approver.post(f"{path}:final-approval", {})
    house.authority.refused(409, "notice_running", "POST", f"{path}:issue")
    public = rival.get("/v1/notices")["items"][0]
    assert path.endswith(public["application_id"])
    assert rival.post(f"{path}:object", {"reason": "it resells"})["objections_open"] == 1
    objection = firm.get(path)["objections"][0]
    resolved = house.authority.post(
        f"/v1/objections/{objection['id']}:resolve", {"upheld": True, "resolution": "it does"}
    )
    assert resolved["state"] == "rejected"


def test_card_time_is_counted_in_card_milliseconds_never_in_yuan(house: House) -> None:
    review = {"clause": "§6", "first_review": "desk", "final_approval": "bureau", "notice_days": 0}
    programme = house.programme("uk-airr", review=review)
    firm = house.enterprise(region="GB")
    asked = {"programme": programme, "contract_days": 30, "centre_region": "GB"}
    words = firm.refused(422, "wrong_unit", "POST", "/v1/applications", asked | {"requested_cny": "1.00"})
    assert words.startswith("requested_card_ms: ")
    voucher = house.voucher(firm, programme, requested_card_ms=100 * MS_PER_HOUR, centre_region="GB")
    assert (voucher["face_cny"], voucher["face_card_ms"]) == (None, 100 * MS_PER_HOUR)
    shown = firm.get(f"/v1/programmes/{programme}")
    assert (shown["budget_cny"], shown["budget_card_ms"]) == (None, 2_000_000 * MS_PER_HOUR)
    assert shown["issued_card_ms"] == 100 * MS_PER_HOUR
    (account,) = house.auditor.get("/v1/ledger/accounts", prefix=f"voucher/{voucher['id']}")["items"]
    assert (account["net_cny"], account["net_card_ms"]) == (None, 100 * MS_PER_HOUR)


def test_rounds_tranches_and_the_versions_of_a_programme(house: House) -> None:
    tranches = [
        {"clause": "§5a", "parts": 1, "needs": "award"},
        {"clause": "§5b", "parts": 1, "needs": "progress_report"},
    ]
    review = {"clause": "§6", "first_review": "desk", "final_approval": "bureau", "notice_days": 0}
    programme = house.programme(tranches=tranches, review=review | {"rounds": True})
    now = utc_now()
    dates = {"opens_at": now.isoformat(), "cut_off_at": (now + timedelta(days=1)).isoformat()}
    called = house.authority.post(f"/v1/programmes/{programme}/rounds", {"name": "spring"} | dates)
    assert house.enterprise().get(f"/v1/programmes/{programme}/rounds")["items"] == [called]
    backwards = {"name": "x", "opens_at": dates["cut_off_at"], "cut_off_at": dates["opens_at"]}
    path = f"/v1/programmes/{programme}/rounds"
    house.authority.refused(422, "dates_reversed", "POST", path, backwards)
    firm = house.enterprise()
    voucher = house.voucher(firm, programme, requested_cny="10.00", round_id=called["id"])
    assert voucher["face_cny"] == "5.000000"
    application = firm.get("/v1/applications")["items"][0]["id"]
    release = f"/v1/applications/{application}:release-tranche"
    assert house.authority.post(release, {"report": "R1"})["face_cny"] == "5.000000"
    house.authority.refused(409, "not_applications_voucher", "POST", release, {"report": "R2"})
    (version,) = firm.get(f"/v1/programmes/{programme}/versions")["items"]
    document = firm.get(f"/v1/programmes/{programme}/versions/1")["document"]
    assert (version["version"], document["programme"]) == (1, programme)
    firm.refused(404, "version_not_found", "GET", f"/v1/programmes/{programme}/versions/2")


def test_parts_recall_and_forecast_of_a_voucher(house: House) -> None:
    firm, programme = house.enterprise(), house.programme()
    voucher = house.voucher(firm, programme, requested_cny="100.00")
    path = f"/v1/vouchers/{voucher['id']}"
    part = {"project": "moulds", "amount_cny": "60.00", "reference": "r1"}
    assert firm.post(f"{path}:allot", part)["parts"][0]["remaining_cny"] == "60.000000"
    firm.refused(402, "insufficient_funds", "POST", f"{path}:allot", part | {"reference": "r2"})
    back = firm.post(f"{path}:return-part", part | {"amount_cny": "20.00"})
    assert (back["parts"][0]["remaining_cny"], back["remaining_cny"]) == ("40.000000", "100.000000")
    forecast = firm.get("/v1/vouchers:forecast")
    assert [entry["lapsing_cny"] for entry in forecast["items"]] == ["100.000000"]
    assert [month["lapsing_cny"] for month in forecast["by_month"]] == ["100.000000"]
    recalled = house.authority.post(f"{path}:recall", {"reason": "moved away"})
    assert (recalled["state"], recalled["remaining_cny"]) == ("recalled", "0.000000")
    for state, numbers in (("recalled", [recalled["number"]]), ("active", [])):
        assert [one["number"] for one in firm.get("/v1/vouchers", state=state)["items"]] == numbers
    assert house.auditor.get(f"/v1/programmes/{programme}")["pool_cny"] == "10000000.000000"


def test_credit_lines_budgets_groups_and_the_history_of_a_wallet(house: House) -> None:
    parent, child = house.enterprise("100.00"), house.enterprise()
    path = f"/v1/enterprises/{parent.tenant_id}"
    credit = {"amount_cny": "50.00", "reference": "line"}
    assert house.operator.post(f"{path}/credit:grant", credit)["credit_available_cny"] == "50.000000"
    lower = credit | {"amount_cny": "20.00"}
    assert house.operator.post(f"{path}/credit:withdraw", lower)["credit_available_cny"] == "30.000000"
    much = {"amount_cny": "31.00", "reference": "too much"}
    house.operator.refused(402, "insufficient_funds", "POST", f"{path}/credit:withdraw", much)
    bind = {"affiliate_id": str(child.tenant_id)}
    house.operator.refused(409, "not_related", "POST", f"{path}/affiliates:bind", bind)
    codes = [asker.get("/v1/enterprises")["items"][0]["credit_code"] for asker in (parent, child)]
    control = {"controlled": codes[1], "controller": codes[0], "reason": "extract of the register"}
    recorded = house.authority.post("/v1/controllers", control)
    assert recorded.items() >= control.items()
    round_trip = {"controlled": codes[0], "controller": codes[1], "reason": "a mistake"}
    house.authority.refused(422, "controller_cycle", "POST", "/v1/controllers", round_trip)
    house.authority.post("/v1/related-parties", {"one": codes[0], "other": "person-7", "reason": "owner"})
    before = codes[1][:-1]
    assert recorded in house.auditor.get("/v1/controllers", after=before)["items"]
    assert house.auditor.get("/v1/controllers", after="z")["items"] == []
    for party, reasons in ((codes[0], ["owner"]), ("person-7", ["owner"]), (codes[1], [])):
        found = house.auditor.get("/v1/related-parties", party=party)["items"]
        assert [one["reason"] for one in found] == reasons
    parent.refused(403, "wrong_role", "GET", "/v1/controllers")
    assert house.operator.post(f"{path}/affiliates:bind", bind)["affiliate_ids"] == [str(child.tenant_id)]
    assert child.get("/v1/wallet")["payer_id"] == str(parent.tenant_id)
    assert child.post("/v1/jobs:quote", job())["lines"][0]["payer_id"] == str(parent.tenant_id)
    assert house.operator.post(f"{path}/affiliates:unbind", bind)["affiliate_ids"] == []
    child.refused(402, "no_funding", "POST", "/v1/jobs:quote", job())
    year = {"starts_at": "2026-01-01T00:00:00Z", "ends_at": "2027-01-01T00:00:00Z"}
    budget = {"project": "moulds", "amount_cny": "10.00", "reference": "b1"} | year
    assert parent.post("/v1/budgets:raise", budget)["available_cny"] == "10.000000"
    assert parent.post("/v1/budgets:lower", budget | {"amount_cny": "4.00"})["available_cny"] == "6.000000"
    parent.refused(402, "insufficient_funds", "POST", "/v1/budgets:lower", budget | {"reference": "b2"})
    assert [entry["available_cny"] for entry in parent.get("/v1/budgets")["items"]] == ["6.000000"]
    (entry,) = parent.get("/v1/wallet/history")["items"]
    assert (entry["movement"], entry["amount_cny"], entry["net_cny"]) == ("deposit", "100.000000", "100.000000")
    lent = [
        (one["movement"], one["amount_cny"]) for one in parent.get("/v1/wallet/history", of="credit")["items"]
    ]
    assert lent == [("grant_credit", "50.000000"), ("withdraw_credit", "20.000000")]
    assert house.auditor.get(f"{path}/wallet") == parent.get("/v1/wallet")


def test_dishonesty_fails_an_application_and_is_shown(house: House) -> None:
    firm, programme = house.enterprise(), house.programme()
    path = f"/v1/enterprises/{firm.tenant_id}"
    listed = {"dishonest": True, "reason": "list of the court"}
    assert house.authority.post(f"{path}:change-facts", listed)["dishonest"]
    refused = firm.post("/v1/applications", {"programme": programme, "requested_cny": "1.00"})
    assert [check["rule"] for check in refused["checks"] if check["verdict"] == "fail"] == ["not_dishonest"]
    assert firm.get(path)["dishonest"]


def test_facts_change_with_a_reason_from_now_on_and_the_old_ones_stay_on_record(house: House) -> None:
    firm, stranger = house.enterprise(), house.enterprise()
    path = f"/v1/enterprises/{firm.tenant_id}"
    before = firm.get(path)
    grown = {"size_class": "large", "yearly_contract_cny": "900000.00", "reason": "yearly report"}
    firm.refused(403, "wrong_role", "POST", f"{path}:change-facts", grown)
    house.operator.refused(403, "wrong_role", "POST", f"{path}:change-facts", grown)
    house.authority.refused(422, "malformed_request", "POST", f"{path}:change-facts", {"reason": "nothing"})
    now = house.authority.post(f"{path}:change-facts", grown)
    changed = {"version": 2, "size_class": "large", "yearly_contract_cny": "900000.000000"}
    assert now == before | changed == firm.get(path)
    first, second = firm.get(f"{path}/facts")["items"]
    assert (first["size_class"], second["size_class"], second["reason"]) == ("small", "large", "yearly report")
    assert firm.get(f"{path}/facts", limit=1, after=1)["items"] == [second]
    stranger.refused(404, "enterprise_not_found", "GET", f"{path}/facts")
    again = {
        "credit_code": before["credit_code"],
        "name": before["name"],
        "region": "331003",
        "size_class": "large",
    }
    words = house.operator.refused(409, "enterprise_exists", "POST", "/v1/enterprises", again)
    assert words.startswith(f"size_class: credit code {before['credit_code']} was registered with 'small'")
    for controller in ("person-1", "person-2"):
        edge = {"controlled": before["credit_code"], "controller": controller, "reason": "extract"}
        house.authority.post("/v1/controllers", edge)
    found = house.auditor.get("/v1/controllers/history", party=before["credit_code"])["items"]
    assert [(one["controller"], one["ended_at"] is None) for one in found] == [
        ("person-2", True),
        ("person-1", False),
    ]
    assert firm.get(path)["actual_controller"] == "person-2"


def test_a_quote_says_who_pays_by_which_clause_and_a_charge_says_the_same(house: House) -> None:
    firm, programme = house.enterprise("100.00"), house.programme()
    voucher = house.voucher(firm, programme, requested_cny="50.00")
    with house.untouched():
        quote = firm.post("/v1/jobs:quote", job())
    assert quote["cost_cny"] == "6.250001"  # 600 s + 10 s grace + 15 s margin at ¥36 an hour, rounded up
    assert quote["sentence"].startswith(f"district voucher {voucher['number']} pays ")
    assert quote["sentence"].endswith("(Huangyan §3), ¥1.875000; you pay ¥4.375001.")
    submitted = firm.post("/v1/jobs", job())
    house.use(submitted["id"], 100_000)
    (charge,) = firm.get(f"/v1/jobs/{submitted['id']}/charges")["items"]
    assert (charge["cost_cny"], charge["card_ms"]) == ("1.000000", 100_000)
    assert (charge["voucher_cny"], charge["tenant_cny"]) == ("0.300000", "0.700000")
    assert [line["clause"] for line in charge["lines"]] == [
        "Huangyan §3",
        "what vouchers leave is the tenant's",
    ]
    assert sum(parse_yuan(line["amount_cny"]) for line in charge["lines"]) == parse_yuan(charge["cost_cny"])
    shown = firm.get(f"/v1/jobs/{submitted['id']}")
    assert (shown["charge_cny"], shown["voucher_cny"]) == ("1.000000", "0.300000")
    restored = house.operator.post(f"/v1/charges/{charge['id']}:restore", {"reason": "the node failed"})
    assert restored["amount_cny"] == "1.000000"
    given_back = firm.get("/v1/restorations")["items"]
    assert sorted(entry["amount_cny"] for entry in given_back) == ["0.300000", "0.700000"]
    assert firm.get(f"/v1/vouchers/{voucher['id']}")["captured_cny"] == "0.000000"
    assert house.auditor.get("/v1/ledger/audit")["audit"] == "ok"


def test_a_job_of_a_project_uses_its_part_of_a_voucher_within_its_budget(house: House) -> None:
    """An hour and its end cost 36.25: the voucher's part pays 30 % of it, the budget limits the rest."""
    firm, programme = house.enterprise("1000.00"), house.programme()
    voucher = house.voucher(firm, programme, requested_cny="100.00")
    path = f"/v1/vouchers/{voucher['id']}"
    firm.post(f"{path}:allot", {"project": "moulds", "amount_cny": "80.00", "reference": "1"})
    period = {"starts_at": "2020-01-01T00:00:00Z", "ends_at": "2199-01-01T00:00:00Z"}
    budget = {"project": "moulds", "amount_cny": "30.00", "reference": "1"} | period
    firm.post("/v1/budgets:raise", budget)
    submission = job(time_limit_s=3600, project="moulds")
    estimate = firm.post("/v1/jobs:estimate", submission)["limit"]
    assert (estimate["voucher_cny"], estimate["affordable"]) == ("10.800000", True)
    submitted = firm.post("/v1/jobs", submission)
    assert submitted["project"] == firm.get(f"/v1/jobs/{submitted['id']}")["project"] == "moulds"
    house.use(submitted["id"], 3_600_000)
    (part,) = firm.get(path)["parts"]
    assert part == {"project": "moulds", "remaining_cny": "69.125000", "remaining_card_ms": None}
    (left,) = firm.get("/v1/budgets")["items"]
    assert left["available_cny"] == "4.624999"  # of the hold, a millionth was rounded up
    firm.refused(402, "budget_spent", "POST", "/v1/jobs", submission)
    assert not firm.post("/v1/jobs:estimate", submission)["limit"]["affordable"]
    other = firm.post("/v1/jobs:quote", job(time_limit_s=3600))
    assert parse_yuan(other["voucher_cny"]) > 0
    firm.refused(422, "malformed_request", "POST", "/v1/jobs", job(project="two words"))
