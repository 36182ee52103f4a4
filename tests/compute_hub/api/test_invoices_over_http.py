"""A month through HTTP: drafted, closed, filed, explained down to the devices, and nobody else's business."""

from datetime import datetime, timedelta

from sqlalchemy import text

from kernel.clock import utc_now
from kernel.database import transaction
from tests.compute_hub.api.house import MODEL, Asker, House, job, month_in_china


def last_month() -> datetime:
    """A time in the month before this one, wherever the centre is."""
    return utc_now().replace(day=1, hour=0, minute=0, second=0, microsecond=0) - timedelta(days=2)


def test_a_month_is_drafted_closed_once_filed_and_explained_to_its_records(house: House) -> None:
    firm, stranger = house.enterprise("100.00"), house.enterprise("1.00")
    submitted = firm.post("/v1/jobs", job(time_limit_s=3600))
    house.use(submitted["id"], 600_000, last_month())
    month = f"{last_month():%Y-%m}"
    draft = firm.get("/v1/invoices:draft", month=month)
    assert (draft["state"], draft["payable_cny"], draft["vat_cny"]) == ("draft", "6.000000", "0.340000")
    body = {"month": month, "tenant_id": str(firm.tenant_id)}
    firm.refused(403, "wrong_role", "POST", "/v1/invoices:close", body)
    (invoice,) = house.operator.post("/v1/invoices:close", body)["items"]
    assert (invoice["state"], invoice["payable_cny"], invoice["owed_cny"]) == ("paid", "6.000000", "0.000000")
    with house.untouched():
        house.operator.refused(409, "month_closed", "POST", "/v1/invoices:close", body)
        this_month = {"month": month_in_china(), "tenant_id": str(firm.tenant_id)}
        house.operator.refused(409, "month_not_over", "POST", "/v1/invoices:close", this_month)
        house.operator.refused(422, "malformed_request", "POST", "/v1/invoices:close", {"month": "March"})
    path = f"/v1/invoices/{invoice['id']}"
    assert firm.get(path) == invoice
    stranger.refused(404, "invoice_not_found", "GET", path)
    (charge,) = firm.get(f"{path}/lines/1/charges")["items"]
    assert charge["job_id"] == submitted["id"]
    (record,) = firm.get(f"/v1/charges/{charge['charge_id']}/records")["items"]
    assert (record["node"], record["slot_ms"]) == ("a", charge["slot_ms"])
    stranger.refused(404, "charge_unknown", "GET", f"/v1/charges/{charge['charge_id']}/records")
    for form, magic in (("pdf", b"%PDF-"), ("xlsx", b"PK")):
        answer = firm.ask("GET", f"{path}/document", params={"format": form, "language": "en"})
        assert answer.content.startswith(magic)
        assert invoice["number"] in answer.headers["content-disposition"]
    house.operator.refused(409, "nothing_to_invoice", "POST", f"{path}:credit", {"reason": "none"})


def test_card_time_is_weighed_at_a_stated_precision_and_who_set_which_price_why_is_kept(house: House) -> None:
    firm = house.enterprise("100.00")
    card = {
        "model": MODEL,
        "price_cny_per_card_hour": "30",
        "pflops": {"precision": "fp16", "per_card": "0.256"},
    }
    card |= {"tenant_id": str(firm.tenant_id), "agreement": "KH-9", "reason": "contract KH-9"}
    house.operator.post("/v1/rates", card)
    rates = firm.get("/v1/rates")["items"]
    (kept,) = [one for one in rates if one["agreement"] == "KH-9"]
    public = next(one for one in rates if one["model"] == MODEL and one["agreement"] is None)
    assert (kept["reason"], kept["terms"]["pflops"]["precision"]) == ("contract KH-9", "fp16")
    assert kept["set_by"] == public["set_by"]  # the same operator
    submitted = firm.post("/v1/jobs", job(time_limit_s=3600))
    house.use(submitted["id"], 600_000, last_month())
    body = {"month": f"{last_month():%Y-%m}", "tenant_id": str(firm.tenant_id)}
    (drafted,) = firm.get("/v1/invoices:draft", month=body["month"])["lines"]
    ((line,),) = [one["lines"] for one in house.operator.post("/v1/invoices:close", body)["items"]]
    assert (line["amount_cny"], line["precision"], line["pflops_hours"]) == ("5.000000", "fp16", "0.042666")
    assert drafted == line


def test_what_is_given_back_after_closing_is_credited_in_parts_and_never_twice(house: House) -> None:
    firm = house.enterprise("100.00")
    submitted = firm.post("/v1/jobs", job(time_limit_s=3600))
    house.use(submitted["id"], 600_000, last_month())
    body = {"month": f"{last_month():%Y-%m}", "tenant_id": str(firm.tenant_id)}
    (invoice,) = house.operator.post("/v1/invoices:close", body)["items"]
    (charge,) = firm.get(f"/v1/jobs/{submitted['id']}/charges")["items"]
    for lost_ms, credited in ((200_000, "2.000000"), (300_000, "1.000000")):
        restoration = {"reason": "the node failed", "lost_card_ms": lost_ms}
        house.operator.post(f"/v1/charges/{charge['id']}:restore", restoration)
        note = house.operator.post(f"/v1/invoices/{invoice['id']}:credit", {"reason": "the node failed"})
        assert (note["kind"], note["payable_cny"], note["refers_to"]) == (
            "credit_note",
            credited,
            invoice["id"],
        )
        with house.untouched():
            again = f"/v1/invoices/{invoice['id']}:credit"
            house.operator.refused(409, "nothing_to_invoice", "POST", again, {"reason": "again"})
    assert house.operator.get("/v1/ledger/audit")["audit"] == "ok"


def test_papers_are_found_by_month_and_firm_and_a_corrected_charge_leads_to_its_job(house: House) -> None:
    firm, other = house.enterprise("100.00"), house.enterprise()
    submitted = firm.post("/v1/jobs", job(time_limit_s=3600))
    house.use(submitted["id"], 600_000, last_month())
    month = f"{last_month():%Y-%m}"
    body = {"month": month, "tenant_id": str(firm.tenant_id)}
    (invoice,) = house.operator.post("/v1/invoices:close", body)["items"]

    def found(asker: Asker, **asked: str) -> list[str]:
        return [one["number"] for one in asker.get("/v1/invoices", **asked)["items"]]

    assert found(house.operator, month=month, tenant_id=str(firm.tenant_id)) == [invoice["number"]]
    assert found(firm, month=month) == [invoice["number"]]
    assert found(firm, month="2020-01") == []
    assert found(other, tenant_id=str(firm.tenant_id)) == []
    firm.refused(422, "malformed_request", "GET", "/v1/invoices?month=March")
    own = {"model": MODEL, "price_cny_per_card_hour": "30", "tenant_id": str(firm.tenant_id), "agreement": "K"}
    rate = house.operator.post("/v1/rates", own)["id"]
    (charge,) = firm.get(f"/v1/jobs/{submitted['id']}/charges")["items"]
    corrected = house.operator.post(
        f"/v1/charges/{charge['id']}:correct", {"rate_id": rate, "reason": "signed late"}
    )
    house.operator.post(f"/v1/charges/{corrected['replacement_id']}:restore", {"reason": "the node failed"})
    assert {one["job_id"] for one in firm.get("/v1/restorations")["items"]} == {submitted["id"]}


def test_a_day_and_a_draft_are_a_tenants_own_and_an_officer_names_whose(house: House) -> None:
    firm = house.enterprise("5.00")
    today = (utc_now() + timedelta(hours=8)).date().isoformat()
    day = firm.get(f"/v1/statements/{today}")
    assert [(one["movement"], one["amount_cny"]) for one in day["movements"]] == [("deposit", "5.000000")]
    assert day == house.operator.get(f"/v1/statements/{today}", tenant_id=str(firm.tenant_id))
    house.operator.refused(422, "tenant_needed", "GET", f"/v1/statements/{today}")
    firm.refused(422, "malformed_request", "GET", "/v1/statements/yesterday")


def test_the_meters_gaps_and_alarms_are_for_those_who_keep_the_books(house: House) -> None:
    firm = house.enterprise("100.00")
    submitted = firm.post("/v1/jobs", job(time_limit_s=3600))
    assert firm.get(f"/v1/jobs/{submitted['id']}/held-time") == {"items": []}
    with transaction(house.engine) as session:
        gap = "INSERT INTO gap_cases VALUES (:job, 1, 0, 3, 'missing_record', now())"
        session.execute(text(gap), {"job": submitted["id"]})
    found = [one for one in house.auditor.get("/v1/gap-cases")["items"] if one["job_id"] == submitted["id"]]
    assert [(one["first_missing_k"], one["filled"]) for one in found] == [(3, False)]
    assert house.auditor.get("/v1/meter-alarms")["items"] == []
    firm.refused(403, "wrong_role", "GET", "/v1/gap-cases")
