"""An officer whose key names an authority decides about that authority's programmes and about no others."""

from typing import Any

import pytest

from tests.compute_hub.api.house import Asker, House, job, month_in_china

ROLES = ("authority", "first_reviewer", "approver")


def officers(house: House, authority: str) -> dict[str, Asker]:
    """An officer of each role for that authority."""
    asked = [{"role": role, "person": f"{role} of {authority}", "authority": authority} for role in ROLES]
    made = [house.operator.post("/v1/api-keys", body) for body in asked]
    assert {one["authority"] for one in made} == {authority}
    return {one["role"]: Asker(house.http, one["key"]) for one in made}


def settled(house: House) -> tuple[str, dict[str, Any], str, str]:
    """A programme of Huangyan district, a voucher of it, and the ids of a waiting application and a claim."""
    firm, programme = house.enterprise("100.00"), house.programme()
    voucher = house.voucher(firm, programme, requested_cny="50.00")
    submitted = firm.post("/v1/jobs", job(voucher_ids=[voucher["id"]]))
    house.use(submitted["id"], 100_000)
    asked = {"programme": programme, "period": month_in_china()}
    claim = house.operator.post("/v1/claims", asked)["id"]
    return programme, voucher, house.application(house.enterprise(), programme, requested_cny="1.00"), claim


def test_officers_of_one_authority_decide_nothing_about_anothers_programmes(house: House) -> None:
    programme, voucher, application, claim = settled(house)
    ours, theirs = officers(house, "huangyan-district"), officers(house, "hangzhou-city")
    applied, claimed, why = f"/v1/applications/{application}", f"/v1/claims/{claim}", {"reason": "r"}
    again = {"name": "spring", "opens_at": "2026-01-01T00:00:00Z", "cut_off_at": "2027-01-01T00:00:00Z"}
    asks: tuple[tuple[str, str, object], ...] = (
        ("authority", f"/v1/programmes/{programme}/rounds", again),
        ("authority", f"/v1/programmes/{programme}:appropriate", None),
        ("first_reviewer", f"{applied}:request-revision", why),
        ("first_reviewer", f"{applied}:first-review", why),
        ("approver", f"{applied}:final-approval", why),
        ("approver", f"{applied}:reject", why),
        ("authority", f"{applied}:issue", None),
        ("authority", f"/v1/vouchers/{voucher['id']}:recall", why),
        ("first_reviewer", f"{claimed}:check", {"centre_credit_code": "91331003CENTRE0001"}),
        ("first_reviewer", f"{claimed}/lines/1:dispute", why),
        ("approver", f"{claimed}:final-approval", None),
        ("authority", f"{claimed}:disburse", {"bank_reference": "b"}),
    )
    with house.untouched():
        for role, path, body in asks:
            words = theirs[role].refused(403, "wrong_authority", "POST", path, body)
            assert words == (
                f"programme: {programme} is a programme of 'huangyan-district'; "
                "this key works on those of 'hangzhou-city'."
            )
    ours["first_reviewer"].post(f"{applied}:first-review", why)
    ours["approver"].post(f"{applied}:final-approval", why)
    assert theirs["authority"].get(applied)["state"] == "approved"
    assert ours["authority"].post(f"{applied}:issue")["state"] == "active"
    assert ours["first_reviewer"].post(f"{claimed}:check", {"centre_credit_code": "9133"})["state"] == "checked"


def test_rules_are_published_by_their_own_authority(house: House) -> None:
    ours, theirs = (officers(house, name)["authority"] for name in ("huangyan-district", "hangzhou-city"))
    programme = house.programme()
    document = house.authority.get(f"/v1/programmes/{programme}/versions/1")["document"]
    other = document | {"programme": f"other-{house.number()}"}
    with house.untouched():
        theirs.refused(403, "wrong_authority", "POST", "/v1/programmes", {"document": other})
        taken = document | {"authority": "hangzhou-city", "version": 2, "supersedes": 1}
        theirs.refused(403, "wrong_authority", "POST", "/v1/programmes", {"document": taken})
        ours.refused(403, "wrong_authority", "POST", "/v1/programmes", {"document": taken})
    assert ours.post("/v1/programmes", {"document": other})["programme"] == other["programme"]


@pytest.mark.parametrize("path", ["applications/{}:issue", "vouchers/{}:recall", "objections/{}:resolve"])
def test_what_is_not_there_is_not_found_for_an_officer_of_any_authority(house: House, path: str) -> None:
    officer = officers(house, "hangzhou-city")["authority"]
    body = {"upheld": True, "resolution": "r"} if "objections" in path else {"reason": "r"}
    code = f"{path.split('s/', maxsplit=1)[0]}_not_found"
    asked = None if path.endswith("issue") else body
    officer.refused(404, code, "POST", "/v1/" + path.format("0" * 32), asked)
    officer.refused(422, "malformed_request", "POST", "/v1/" + path.format("x"), asked)


@pytest.mark.parametrize("role", ["operator", "auditor", "tenant"])
def test_only_who_decides_about_programmes_has_an_authority(house: House, role: str) -> None:
    tenant = str(house.enterprise().tenant_id) if role == "tenant" else None
    asked = {"role": role, "person": "P", "authority": "hangzhou-city", "tenant_id": tenant}
    words = house.operator.refused(422, "no_authority", "POST", "/v1/api-keys", asked)
    assert words == (
        f"authority: only keys of authority officers, first reviewers and approvers name one, not of {role!r}."
    )
