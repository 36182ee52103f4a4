"""Bad input: each a problem with a stable code and a sentence that says what to change; nothing half-written."""

import gzip

import pytest

from tests.compute_hub.api.house import MODEL, House, job, refusal

JOBS = [
    ({"colour": "red"}, 422, "unknown_field", "Unknown field: colour. Remove it"),
    ({"accelerator": "H9000"}, 422, "unknown_accelerator", f"it has {MODEL}. Choose one of these."),
    ({"devices_per_node": 3}, 422, "too_many_devices_per_node", "Ask for at most 2 per node"),
    ({"nodes": 3}, 422, "too_many_nodes", "Ask for fewer nodes."),
    ({"slots_milli": 500, "devices_per_node": 2}, 422, "fraction_of_gang", "Ask for whole devices"),
    ({"accelerator": None}, 422, "malformed_request", "name a model, or say with min_pflops how fast"),
    ({"accelerator": None, "min_pflops": 5}, 422, "too_slow_accelerators", "the fastest it accepts has 0"),
    ({"min_pflops": 0}, 422, "malformed_request", "min_pflops"),
    ({"cpu_milli": 16_001}, 422, "nodes_too_small", "Ask for at most 16000."),
    ({"memory_mib": 32_769}, 422, "nodes_too_small", "32768. Ask for at most"),
    ({"topology": "ring"}, 422, "malformed_request", "topology"),
    ({"priority": "urgent"}, 422, "malformed_request", "priority"),
    ({"not_before": "tomorrow"}, 422, "malformed_request", "not_before"),
    ({"not_before": "2026-01-01T00:00:00"}, 422, "malformed_request", "not_before"),
    (
        {"depends_on": ["00000000-0000-0000-0000-000000000000"]},
        404,
        "dependency_not_found",
        "depends_on: there",
    ),
    ({"depends_on": ["first"]}, 422, "malformed_request", "depends_on"),
    ({"max_retries": 101}, 422, "malformed_request", "max_retries"),
    ({"retry_on": "always"}, 422, "malformed_request", "retry_on"),
    ({"env": {f"V{n}": "x" * 8000 for n in range(9)}}, 422, "malformed_request", "at most 65536 are allowed"),
    ({"environment": "windows"}, 422, "unknown_environment", "there are digits, llm, ray. Choose one"),
    ({"argv": ["x" * 4000] * 17}, 422, "malformed_request", "at most 65536 are allowed"),
    ({"slots_milli": 19}, 422, "malformed_request", "slots_milli"),
    ({"time_limit_s": 0}, 422, "malformed_request", "time_limit_s"),
    ({"time_limit_s": "600"}, 422, "malformed_request", "time_limit_s"),
    ({"argv": []}, 422, "malformed_request", "argv"),
    ({"env": {"1X": "y"}}, 422, "malformed_request", "env"),
    ({"env": {"X": "a\x00b"}}, 422, "malformed_request", "NUL"),
    ({"name": "\ud800"}, 422, "malformed_request", "surrogate"),
    ({"memory_mib": 2**70}, 422, "malformed_request", "9007199254740992"),
    ({"upload_sha256": "0" * 64}, 404, "upload_not_found", "Upload the working directory first."),
    ({"upload_sha256": "../../etc/passwd"}, 404, "upload_not_found", "Upload the working directory first."),
    ({"voucher_ids": ["00000000-0000-0000-0000-000000000000"]}, 404, "voucher_not_found", "no voucher"),
    ({"voucher_ids": ["V1"]}, 422, "malformed_request", "voucher_ids"),
]


@pytest.mark.parametrize(("changed", "status", "code", "words"), JOBS, ids=lambda value: str(value)[:40])
@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/jobs:quote"])
def test_a_job_that_cannot_be_is_refused_by_name(
    house: House, path: str, changed: dict[str, object], status: int, code: str, words: str
) -> None:
    firm = house.enterprise("1000.00")
    with house.untouched():
        assert words in firm.refused(status, code, "POST", path, job(**changed))


def test_a_job_without_money_is_refused(house: House) -> None:
    firm = house.enterprise()
    with house.untouched():
        assert "missing" in firm.refused(402, "no_funding", "POST", "/v1/jobs", job())


def test_a_spent_voucher_is_refused(house: House) -> None:
    firm = house.enterprise("1000.00")
    voucher = house.voucher(firm, house.programme(), requested_cny="0.000001")
    running = firm.post("/v1/jobs", job(voucher_ids=[voucher["id"]]))
    house.use(running["id"], 60_000)
    assert firm.get(f"/v1/vouchers/{voucher['id']}")["remaining_cny"] == "0.000000"
    with house.untouched():
        words = firm.refused(402, "voucher_spent", "POST", "/v1/jobs", job(voucher_ids=[voucher["id"]]))
        assert words == f"Nothing remains on voucher {voucher['number']}."


def test_another_tenants_voucher_looks_like_none(house: House) -> None:
    owner, other = house.enterprise("1000.00"), house.enterprise("1000.00")
    voucher = house.voucher(owner, house.programme(), requested_cny="100.00")
    with house.untouched():
        code = (404, "voucher_not_found", "POST", "/v1/jobs")
        words = other.refused(*code, job(voucher_ids=[voucher["id"]]))
        unknown = "00000000-0000-0000-0000-000000000001"
        assert words.replace(voucher["id"], "?") == other.refused(*code, job(voucher_ids=[unknown])).replace(
            unknown, "?"
        )


KEYS = [
    (None, "missing_key"),
    ("", "malformed_key"),
    ("Bearer", "malformed_key"),
    ("Bearer hub_tenant_123", "malformed_key"),
    ("Basic aHViOmh1Yg==", "malformed_key"),
    ("Bearer hub_tenant_" + "0" * 48 + "g", "malformed_key"),
    ("Bearer hub_tenant_" + "0" * 48, "unknown_key"),
    ("Bearer hub_operator_" + "f" * 48, "unknown_key"),
]


@pytest.mark.parametrize(("header", "code"), KEYS)
def test_a_key_that_opens_nothing_is_refused(house: House, header: str | None, code: str) -> None:
    with house.untouched():
        headers = {} if header is None else {"Authorization": header}
        answer = house.http.post("/v1/jobs", json=job(), headers=headers)
        refusal(answer, 401, code)
        assert answer.headers["www-authenticate"] == "Bearer"


def test_a_revoked_key_opens_nothing(house: House) -> None:
    firm = house.enterprise()
    newest = house.operator.get("/v1/api-keys", limit=1)["items"][0]
    assert newest["tenant_id"] == str(firm.tenant_id)
    house.operator.post(f"/v1/api-keys/{newest['id']}:revoke")
    with house.untouched():
        firm.refused(401, "unknown_key", "GET", "/v1/wallet")


AMOUNTS = ["", "-1", "+1", "1.0000001", "1e3", "01", "9007199255", " 1", "1,000", "¥1", "١", "NaN", "0x10"]


@pytest.mark.parametrize("amount", AMOUNTS)
def test_a_malformed_amount_is_refused(house: House, amount: str) -> None:
    firm = house.enterprise()
    with house.untouched():
        path = f"/v1/enterprises/{firm.tenant_id}/deposits"
        body = {"amount_cny": amount, "reference": "r"}
        words = house.operator.refused(422, "malformed_amount", "POST", path, body)
        assert words.startswith("amount_cny: ")
        assert "such as '1250.00'" in words


@pytest.mark.parametrize("amount", ["0", "0.000000"])
def test_nothing_is_not_an_amount_to_book(house: House, amount: str) -> None:
    firm = house.enterprise()
    with house.untouched():
        body = {"amount_cny": amount, "reference": "r"}
        house.operator.refused(
            422, "amount_refused", "POST", f"/v1/enterprises/{firm.tenant_id}/deposits", body
        )


def test_an_upload_that_is_too_large_or_no_archive_leaves_no_file(house: House) -> None:
    firm = house.enterprise()
    with house.untouched():
        large = firm.ask("POST", "/v1/uploads", content=b"\x1f\x8b" + bytes(190_000))
        assert "larger than 100000 bytes" in refusal(large, 422, "upload_too_large")
        for content in (b"PK\x03\x04 a zip", b""):
            words = refusal(firm.ask("POST", "/v1/uploads", content=content), 422, "upload_is_not_an_archive")
            assert "tar czf" in words
        stored = house.settings.uploads / str(firm.tenant_id)
        assert list(stored.iterdir()) == []
        kept = firm.ask("POST", "/v1/uploads", content=gzip.compress(b"tar")).json()
        assert [path.name for path in stored.iterdir()] == [f"{kept['sha256']}.tar.gz"]


def test_a_body_that_is_too_large_is_refused_before_it_is_read(house: House) -> None:
    with house.untouched():
        said = house.authority.ask("POST", "/v1/programmes", {"document": {"name": "x" * 2**22}})
        refusal(said, 413, "body_too_large")
        chunks = (b"x" * 65_536 for _ in range(60))
        headers = {"Content-Type": "application/json"}
        shown = house.authority.ask("POST", "/v1/programmes", headers=headers, content=chunks)
        refusal(shown, 413, "body_too_large")


DOCUMENTS = [
    ({}, 422, "programme_invalid"),
    (
        {"programme": "x", "depth": [[[[[[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]]]]]},
        422,
        "malformed_request",
    ),
    ({"version": 10**40}, 422, "malformed_request"),
    ([], 422, "malformed_request"),
    (None, 422, "malformed_request"),
]


@pytest.mark.parametrize(("document", "status", "code"), DOCUMENTS)
def test_a_document_that_is_no_programme_is_refused(
    house: House, document: object, status: int, code: str
) -> None:
    with house.untouched():
        house.authority.refused(status, code, "POST", "/v1/programmes", {"document": document})


@pytest.mark.parametrize("content", [b"{", b"[]", b'"x"', b'{"a":NaN}', b"\xff", b"[" * 100_000, b""])
def test_what_is_no_json_object_is_refused(house: House, content: bytes) -> None:
    with house.untouched():
        headers = {"Content-Type": "application/json"}
        answer = house.operator.ask("POST", "/v1/rates", headers=headers, content=content)
        refusal(answer, answer.status_code, "malformed_request")
        assert answer.status_code in {400, 422}


RATES = [
    ({"price_cny_per_card_hour": "0"}, "rate_card_refused"),
    ({"price_cny_per_card_hour": "-1"}, "malformed_amount"),
    ({"kinds": {"batch": "-1"}}, "rate_card_refused"),
    ({"time_of_day": [{"from": "00:00", "until": "08:00", "factor": "1"}]}, "rate_card_refused"),
    ({"agreement": "KH-7"}, "rate_card_refused"),
    ({"effective_from": "2027-01-01T00:00:00"}, "malformed_request"),
    ({"effective_from": "0001-01-01T00:00:00+14:00"}, "malformed_request"),
    ({"effective_from": "2400-01-01T00:00:00Z"}, "malformed_request"),
    ({"model": "'; DROP TABLE rates; --"}, "malformed_request"),
]


@pytest.mark.parametrize(("changed", "code"), RATES)
def test_a_price_that_cannot_be_is_refused(house: House, changed: dict[str, object], code: str) -> None:
    with house.untouched():
        body = {"model": "X", "price_cny_per_card_hour": "1"} | changed
        house.operator.refused(422, code, "POST", "/v1/rates", body)


def test_a_price_in_the_past_or_at_a_taken_instant_is_refused(house: House) -> None:
    later = {"model": "Y", "price_cny_per_card_hour": "1", "effective_from": "2100-01-01T00:00:00Z"}
    house.operator.post("/v1/rates", later)
    with house.untouched():
        house.operator.refused(409, "rate_exists", "POST", "/v1/rates", later)
        past = later | {"effective_from": "2020-01-01T00:00:00Z"}
        house.operator.refused(409, "rate_in_the_past", "POST", "/v1/rates", past)


def test_a_tenants_key_names_its_enterprise_and_an_officers_none(house: House) -> None:
    firm = house.enterprise()
    with house.untouched():
        keys = (422, "key_needs_tenant", "POST", "/v1/api-keys")
        house.operator.refused(*keys, {"role": "tenant", "person": "p"})
        house.operator.refused(*keys, {"role": "auditor", "person": "p", "tenant_id": str(firm.tenant_id)})
        nobody = {"role": "tenant", "person": "p", "tenant_id": "00000000-0000-0000-0000-000000000000"}
        house.operator.refused(404, "enterprise_not_found", "POST", "/v1/api-keys", nobody)
