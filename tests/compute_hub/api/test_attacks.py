"""Attempts to cross tenants, roles and repeated requests, and to confuse paths, headers and ids."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid5

import pytest
from sqlalchemy import func, select

from compute_hub.api.app import operations
from compute_hub.identity.duties import DUTIES
from compute_hub.identity.roles import Role
from kernel.database import transaction
from kernel.ids import derived_id
from scheduler.tables import JobRow
from tests.compute_hub.api.house import Asker, House, job, refusal

NOBODY = derived_id("nobody")


def key(name: str) -> dict[str, dict[str, str]]:
    return {"headers": {"Idempotency-Key": name}}


def test_everything_served_has_its_line_of_duties_and_nothing_else_has() -> None:
    assert operations() == DUTIES.keys()


def test_no_role_does_what_is_not_its_duty(house: House) -> None:
    document = house.http.get("/v1/openapi.json").json()
    askers: dict[Role, Asker] = {**house.officers, Role.TENANT: house.enterprise()}
    asked = 0
    with house.untouched():
        for path, methods in document["paths"].items():
            plain = path.replace("{programme}", "x1").replace("{version}", "1").replace("{line}", "1")
            plain = re.sub(r"\{\w+_id\}", str(NOBODY), plain)
            for method, operation in methods.items():
                duty = DUTIES[operation["operationId"]]
                assert operation["x-roles"] == [role.value for role in duty]
                wrong = [role for role in Role if role not in duty]
                for role in wrong[asked % 2 :: 3]:  # each role in its turn; the whole table is compared above
                    body = None if method == "get" else {}
                    askers[role].refused(403, "wrong_role", method.upper(), plain, body)
                    asked += 1
                refusal(house.http.request(method, plain), 401, "missing_key")
    assert asked > len(DUTIES)


def test_what_is_anothers_looks_like_nothing(house: House) -> None:
    owner, thief = house.enterprise("100.00"), house.enterprise("100.00")
    programme = house.programme()
    voucher = house.voucher(owner, programme, requested_cny="50.00")["id"]
    submitted = owner.post("/v1/jobs", job())["id"]
    house.use(submitted, 1000)
    array = owner.post("/v1/job-arrays", {"job": job(), "size": 2})["id"]
    owner.ask("PUT", "/v1/secrets/mine", {"value": "v"})
    owner.ask("PUT", "/v1/job-templates/mine", {"fields": {"nodes": 1}})
    thief.refused(404, "secret_not_found", "DELETE", "/v1/secrets/mine")
    thief.refused(404, "template_not_found", "GET", "/v1/job-templates/mine")
    other = house.programme()
    application = owner.post("/v1/applications:draft", {"programme": other, "requested_cny": "1.00"})["id"]
    part = {"project": "p", "amount_cny": "1.00", "reference": "r"}
    attempts = [
        ("GET", "/v1/jobs/{}", submitted, None),
        ("GET", "/v1/jobs/{}/logs", submitted, None),
        ("GET", "/v1/jobs/{}/charges", submitted, None),
        ("GET", "/v1/jobs/{}/usage", submitted, None),
        ("GET", "/v1/jobs/{}/attempts", submitted, None),
        ("GET", "/v1/jobs/{}/explanation", submitted, None),
        ("GET", "/v1/jobs/{}/artifacts", submitted, None),
        ("GET", "/v1/jobs/{}/artifacts:download?path=x", submitted, None),
        ("GET", "/v1/jobs/{}/logs?follow=true", submitted, None),
        ("POST", "/v1/jobs/{}:cancel", submitted, None),
        ("POST", "/v1/jobs/{}:hold", submitted, None),
        ("POST", "/v1/jobs/{}:release", submitted, None),
        ("POST", "/v1/jobs/{}:depend", submitted, {"depends_on": []}),
        ("GET", "/v1/job-arrays/{}", array, None),
        ("POST", "/v1/job-arrays/{}:cancel", array, None),
        ("GET", "/v1/vouchers/{}", voucher, None),
        ("POST", "/v1/vouchers/{}:allot", voucher, part),
        ("POST", "/v1/vouchers/{}:return-part", voucher, part),
        ("GET", "/v1/applications/{}", application, None),
        ("POST", "/v1/applications/{}:submit", application, None),
        ("POST", "/v1/applications/{}:revise", application, {"requested_cny": "2.00"}),
        ("POST", "/v1/applications/{}:withdraw", application, None),
        ("POST", "/v1/applications/{}:object", application, {"reason": "r"}),
        ("GET", "/v1/enterprises/{}", str(owner.tenant_id), None),
    ]
    with house.untouched():
        for method, path, anothers, body in attempts:
            there, nowhere = (thief.ask(method, path.format(name), body) for name in (anothers, str(NOBODY)))
            assert there.status_code == nowhere.status_code == 404, (path, there.text)
            assert there.text.replace(anothers, "?") == nowhere.text.replace(str(NOBODY), "?")
    for listing in (
        "jobs",
        "vouchers",
        "applications",
        "restorations",
        "claims",
        "budgets",
        "secrets",
        "job-templates",
        "invoices",
        "alerts",
        "alert-rules",
    ):
        assert thief.get(f"/v1/{listing}")["items"] == []
    assert [entry["id"] for entry in thief.get("/v1/enterprises")["items"]] == [str(thief.tenant_id)]
    assert thief.get("/v1/jobs", after=submitted)["items"] == []


def test_the_tenant_comes_from_the_key_never_from_the_body(house: House) -> None:
    owner, thief = house.enterprise("100.00"), house.enterprise()
    for body in (job(tenant_id=str(owner.tenant_id)), job(submitted_by=str(owner.tenant_id))):
        thief.refused(422, "unknown_field", "POST", "/v1/jobs", body)
    headers = {"X-Tenant-Id": str(owner.tenant_id), "X-Forwarded-User": "operator", "Host": "operator"}
    thief.refused(402, "no_funding", "POST", "/v1/jobs", job(), headers=headers)
    thief.refused(403, "wrong_role", "GET", "/v1/api-keys", headers={"X-HTTP-Method-Override": "POST"})


def test_a_repeated_request_has_one_effect_and_one_answer(house: House) -> None:
    firm = house.enterprise("100.00")
    first = firm.post("/v1/jobs", job(), **key("k1"))
    with house.untouched():
        again = firm.ask("POST", "/v1/jobs", job(), **key("k1"))
        assert (again.status_code, again.json()) == (201, first)
        firm.refused(409, "idempotency_key_reused", "POST", "/v1/jobs", job(name="other"), **key("k1"))
        cancel = f"/v1/jobs/{first['id']}:cancel"
        firm.refused(409, "idempotency_key_reused", "POST", cancel, **key("k1"))
        firm.refused(422, "malformed_request", "POST", "/v1/jobs", job(), **key("k" * 201))
    assert firm.post(f"/v1/jobs/{first['id']}:cancel", **key("k2"))["id"] == first["id"]


def test_a_request_with_an_effect_needs_a_key_and_one_without_does_not(house: House) -> None:
    firm = house.enterprise("100.00")
    bare = {"Authorization": f"Bearer {firm.key}"}
    with house.untouched():
        answer = house.http.post("/v1/jobs", json=job(), headers=bare)
        words = refusal(answer, 422, "idempotency_key_missing")
        assert words.startswith("Idempotency-Key: POST /v1/jobs has an effect and needs this header.")
        assert house.http.post("/v1/jobs:quote", json=job(), headers=bare).status_code == 200
    described = house.http.get("/v1/openapi.json").json()["paths"]
    asked = {
        path
        for path, methods in described.items()
        if "post" in methods
        and not any(entry["name"] == "Idempotency-Key" for entry in methods["post"].get("parameters", ()))
    }
    assert asked == {"/v1/jobs:quote", "/v1/uploads", "/v1/api-keys"}


def test_one_principals_key_replays_nothing_of_another(house: House) -> None:
    owner, thief = house.enterprise("100.00"), house.enterprise("100.00")
    first = owner.post("/v1/jobs", job(), **key("shared"))
    second = thief.post("/v1/jobs", job(), **key("shared"))
    assert first["id"] != second["id"]
    assert second["tenant_id"] == str(thief.tenant_id)


def test_a_refused_request_may_be_repeated_under_its_key(house: House) -> None:
    firm = house.enterprise()
    firm.refused(402, "no_funding", "POST", "/v1/jobs", job(), **key("poor"))
    deposit = {"amount_cny": "100.00", "reference": f"late {firm.tenant_id}"}
    house.operator.post(f"/v1/enterprises/{firm.tenant_id}/deposits", deposit)
    assert firm.post("/v1/jobs", job(), **key("poor"))["state"] == "queued"


def test_racing_requests_under_one_key_have_one_effect(house: House) -> None:
    firm = house.enterprise("100.00")
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: firm.post("/v1/jobs", job(), **key("race")), range(16)))
    assert {answer["id"] for answer in answers} == {answers[0]["id"]}
    with transaction(house.engine) as session:
        mine = select(func.count()).select_from(JobRow).where(JobRow.tenant_id == firm.tenant_id)
        assert session.scalar(mine) == 1


def test_racing_requests_without_a_key_still_book_once(house: House) -> None:
    firm = house.enterprise()
    path = f"/v1/enterprises/{firm.tenant_id}/deposits"
    deposit = {"amount_cny": "5.00", "reference": f"once {firm.tenant_id}"}
    code = f"91331003{house.number():09d}X"
    registration = {"credit_code": code, "name": "Twins", "region": "331003"}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: house.operator.post(path, deposit), range(8)))
        ids = set(pool.map(lambda _: house.operator.post("/v1/enterprises", registration)["id"], range(8)))
    assert firm.get("/v1/wallet")["prepaid_available_cny"] == "5.000000"
    assert len(ids) == 1


def test_racing_issues_give_one_voucher(house: House) -> None:
    firm, programme = house.enterprise(), house.programme()
    application = house.application(firm, programme, requested_cny="10.00")
    house.reviewer.post(f"/v1/applications/{application}:first-review", {})
    house.approver.post(f"/v1/applications/{application}:final-approval", {})
    with ThreadPoolExecutor(8) as pool:
        path = f"/v1/applications/{application}:issue"
        issued = list(pool.map(lambda _: house.authority.post(path)["id"], range(8)))
    assert len(set(issued)) == 1
    assert house.auditor.get(f"/v1/programmes/{programme}")["issued_cny"] == "10.000000"


PATHS = [
    "/v1/jobs/' OR 1=1 --",
    "/v1/jobs/%27%20OR%201%3D1",
    "/v1/jobs/1",
    "/v1/jobs/00000000-0000-0000-0000-00000000000g",
    "/v1/jobs/%00",
    "/v1/vouchers/%F0%9F%92%A9",
    "/v1/programmes/..%2F..%2Fetc",
    "/v1/programmes/a'b",
    "/v1/programmes/x1/versions/99999999999999999999",
    "/v1/vouchers?after=x",
    "/v1/vouchers?limit=0",
    "/v1/vouchers?limit=1000000",
    "/v1/applications?programme=%00",
]


@pytest.mark.parametrize("path", PATHS)
def test_a_strange_path_is_a_plain_problem(house: House, path: str) -> None:
    answer = house.auditor.ask("GET", path)
    refusal(answer, answer.status_code, answer.json()["code"])
    assert answer.status_code in {404, 422}, answer.text


@pytest.mark.parametrize("path", ["/v1/nothing", "/", "/v1/jobs/", "//v1/jobs", "/v1/../metrics/x", "/docs"])
def test_what_is_not_there_is_a_problem_too(house: House, path: str) -> None:
    assert house.auditor.ask("GET", path).status_code in {307, 404}


def test_a_wrong_method_names_the_right_one(house: House) -> None:
    answer = house.operator.ask("DELETE", "/v1/jobs")
    refusal(answer, 405, "method_not_allowed")
    assert answer.headers["allow"]


def test_a_state_or_prefix_of_sql_finds_nothing(house: House) -> None:
    for state in ("x' OR '1'='1", "\x00"):
        house.auditor.refused(422, "malformed_request", "GET", "/v1/applications", params={"state": state})
    house.auditor.refused(422, "malformed_request", "GET", "/v1/ledger/accounts", params={"prefix": "%"})
    assert house.auditor.get("/v1/ledger/accounts", prefix="_")["items"] == []


def test_a_log_is_read_only_inside_the_jobs_own_folder(house: House, tmp_path: Path) -> None:
    firm = house.enterprise("100.00")
    submitted = firm.post("/v1/jobs", job(name="../../../../etc/passwd"))
    path = f"/v1/jobs/{submitted['id']}/logs"
    assert firm.ask("GET", path).content == b""
    firm.refused(422, "malformed_request", "GET", path, params={"rank": "../0"})
    folder = house.settings.workspaces / str(firm.tenant_id) / submitted["id"] / "attempt-0"
    folder.mkdir(parents=True)
    secret = tmp_path / "secret"
    secret.write_text("secret", encoding="utf-8")
    (folder / "rank-0.log").write_bytes(b"hello\n")
    (folder / "rank-1.log").symlink_to(secret)
    assert firm.ask("GET", path, params={"offset": "2"}).content == b"llo\n"
    assert firm.ask("GET", path, params={"offset": "99"}).content == b""
    link = firm.ask("GET", path, params={"rank": "1"})
    assert b"secret" not in link.content
    refusal(link, 404, "log_not_readable")


def test_ids_that_others_can_compute_open_nothing(house: House) -> None:
    firm = house.enterprise()
    programme = house.programme()
    application = house.application(firm, programme, requested_cny="1.00")
    guess = derived_id("voucher", application, 1)
    firm.refused(404, "voucher_not_found", "GET", f"/v1/vouchers/{guess}")
    firm.refused(404, "voucher_not_found", "GET", f"/v1/vouchers/{uuid5(guess, 'x')}")
