"""A claim's whole way through HTTP, each step by the role whose duty it is."""

from typing import Any

import pytest

from tests.compute_hub.api.house import House, job, month_in_china

CENTRE = {"centre_credit_code": "91331003CENTRE0001"}
BUYER = {"clause": "§7", "direction": "buyer_reimbursed", "cycle": "month", "evidence": ["invoice"]}


def used(house: House, yuan: list[int], **changed: object) -> tuple[str, Any]:
    """A programme and a firm whose voucher has paid 30 % of jobs that cost so many yuan."""
    firm, programme = house.enterprise("1000.00"), house.programme(**changed)
    voucher = house.voucher(firm, programme, requested_cny="500.00")
    for cost in yuan:
        submitted = firm.post("/v1/jobs", job(voucher_ids=[voucher["id"]]))
        house.use(submitted["id"], cost * 100_000)
    return programme, firm


@pytest.mark.slow
def test_a_claim_is_made_checked_sampled_reviewed_disputed_approved_paid_and_reconciled(house: House) -> None:
    reserve = {"reserve": {"clause": "§8", "amount": "1.00"}}
    programme, firm = used(house, [1, 2, 3], **reserve)
    house.authority.post(
        f"/v1/programmes/{programme}:advance-reserve", {"amount_cny": "0.50", "reference": "r"}
    )
    claim = house.operator.post("/v1/claims", {"programme": programme, "period": month_in_china()})
    assert (claim["state"], claim["amount_cny"], claim["line_count"]) == ("submitted", "1.800000", 3)
    path = f"/v1/claims/{claim['id']}"
    house.reviewer.refused(409, "claim_state", "POST", f"{path}:first-review")
    assert house.reviewer.post(f"{path}:check", CENTRE)["state"] == "checked"
    assert house.auditor.post(f"{path}:sample", {"seed": "dice 42", "count": 1})["sample_seed"] == "dice 42"
    lines = house.auditor.get(f"{path}/lines", limit=2)
    rest = house.auditor.get(f"{path}/lines", after=lines["next"])
    everything = [*lines["items"], *rest["items"]]
    assert [line["line"] for line in everything] == [1, 2, 3]
    assert sum(line["sampled"] for line in everything) == 1
    dear = next(line["line"] for line in everything if line["amount_cny"] == "0.900000")
    house.reviewer.post(f"{path}/lines/{dear}:dispute", {"reason": "show the invoice"})
    house.reviewer.post(f"{path}:first-review")
    approved = house.approver.post(f"{path}:final-approval")
    assert (approved["state"], approved["approved_cny"]) == ("approved", "0.900000")
    paid = house.authority.post(f"{path}:disburse", {"bank_reference": f"B {programme}"})
    assert (paid["state"], paid["from_reserve_cny"]) == ("disbursed", "0.500000")
    wrong = {"received_cny": "0.90", "statement": "S1"}
    house.operator.refused(409, "reconciliation_differs", "POST", f"{path}:reconcile", wrong)
    right = {"received_cny": "0.40", "statement": "S1"}
    assert house.operator.post(f"{path}:reconcile", right)["state"] == "reconciled"
    again = house.operator.post(f"{path}:resubmit", {"evidence": {"invoice": "I-3"}})
    assert (again["amount_cny"], again["sequence"]) == ("0.900000", 2)
    cheap = next(line["line"] for line in everything if line["amount_cny"] == "0.300000")
    house.authority.post(f"{path}/lines/{cheap}:claw-back", {"reason": "never ran"})
    states = {line["line"]: line["state"] for line in house.auditor.get(f"{path}/lines")["items"]}
    assert (states[cheap], states[dear]) == ("clawed_back", "disputed")
    second = f"/v1/claims/{again['id']}"
    house.reviewer.post(f"{second}/lines/1:refuse", {"reason": "no invoice"})
    assert house.reviewer.post(f"{second}:reject", {"reason": "nothing is left"})["state"] == "rejected"
    assert house.auditor.get(path)["steps"][0]["step"] == "submitted"
    newest = house.auditor.get("/v1/claims", programme=programme, limit=1)
    assert [entry["id"] for entry in newest["items"]] == [again["id"]]
    oldest = house.auditor.get("/v1/claims", programme=programme, after=newest["next"])
    assert [entry["id"] for entry in oldest["items"]] == [claim["id"]]
    for state, ids in (("rejected", [again["id"]]), ("checked", [])):
        listed = house.auditor.get("/v1/claims", programme=programme, state=state)["items"]
        assert [entry["id"] for entry in listed] == ids
    house.auditor.refused(422, "malformed_request", "GET", "/v1/claims?state=lost")
    house.auditor.refused(422, "malformed_request", "GET", "/v1/applications?state=lost")
    assert house.auditor.get("/v1/ledger/audit")["audit"] == "ok"
    firm.refused(404, "claim_not_found", "GET", path)


def test_a_buyer_claims_what_it_paid_first_with_evidence_and_sees_only_its_own(house: House) -> None:
    programme, firm = used(house, [1], settlement=BUYER)
    _, rival = used(house, [1], settlement=BUYER)
    asked = {"programme": programme, "period": month_in_china()}
    words = firm.refused(422, "missing_evidence", "POST", "/v1/claims", asked)
    assert "asks for invoice" in words
    claim = firm.post("/v1/claims", asked | {"evidence": {"invoice": "I-1"}})
    assert (claim["claimant_id"], claim["amount_cny"]) == (str(firm.tenant_id), "0.300000")
    assert firm.get("/v1/claims")["items"][0]["id"] == claim["id"]
    assert rival.get("/v1/claims")["items"] == []
    for method, way in (("GET", ""), ("GET", "/lines"), ("POST", ":resubmit")):
        body = {} if method == "POST" else None
        rival.refused(404, "claim_not_found", method, f"/v1/claims/{claim['id']}{way}", body)


def test_one_bank_transfer_pays_one_claim(house: House) -> None:
    references = []
    for _ in range(2):
        programme, _ = used(house, [1])
        claim = house.operator.post("/v1/claims", {"programme": programme, "period": month_in_china()})
        path = f"/v1/claims/{claim['id']}"
        house.reviewer.post(f"{path}:check", CENTRE)
        house.reviewer.post(f"{path}:first-review")
        house.approver.post(f"{path}:final-approval")
        references.append(f"{path}:disburse")
    house.authority.post(references[0], {"bank_reference": "one"})
    with house.untouched():
        taken = {"bank_reference": "one"}
        house.authority.refused(409, "bank_reference_used", "POST", references[1], taken)


def test_a_period_that_cannot_be_is_refused(house: House) -> None:
    programme = house.programme()
    with house.untouched():
        for period_ in ("2026-13", "0001-01", "9999-12", "2026-Q9", "٢٠٢٦-03", ""):
            asked = {"programme": programme, "period": period_}
            house.operator.refused(422, "malformed_request", "POST", "/v1/claims", asked)
