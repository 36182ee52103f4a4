"""Secrets that nobody can read back, templates of submissions, and why a job waits."""

from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import text

from compute_hub.vault import MalformedVaultKey, VaultKeyExposed, open_vault
from kernel.database import transaction
from scheduler.secrets import SealBroken, new_vault_key
from scheduler.tables import SecretRow
from tests.compute_hub.api.house import MODEL, House, job

VALUE = "correct horse battery staple"
NOBODY = "00000000-0000-0000-0000-000000000000"


def _everything_stored(house: House) -> str:
    with transaction(house.engine) as session:
        tables = session.scalars(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")).all()
        rows = [
            str(row)
            for table in tables
            if table != "alembic_version"
            for row in session.execute(text(f"SELECT t::text FROM {table} t")).scalars()
        ]
    return "\n".join(rows)


def test_a_secret_is_stored_sealed_and_never_shown(house: House) -> None:
    firm = house.enterprise("1000.00")
    made = firm.ask("PUT", "/v1/secrets/db-password", {"value": VALUE}, headers={"Idempotency-Key": "s"})
    assert (made.status_code, made.json()["size_bytes"]) == (200, len(VALUE))
    taken = firm.post("/v1/jobs", job(secrets=["db-password", "db-password"]))
    assert taken["secrets"] == ["db-password"]
    shown = [made.text, firm.ask("GET", "/v1/secrets").text, firm.ask("GET", f"/v1/jobs/{taken['id']}").text]
    assert not any(VALUE in answer for answer in shown)
    everything = _everything_stored(house)
    assert "db-password" in everything
    assert VALUE not in everything
    assert VALUE.encode().hex() not in everything
    with transaction(house.engine) as session:
        row = session.get_one(SecretRow, (firm.tenant_id, "db-password"))
        vault = open_vault(house.settings.secrets_key)
        assert vault.open(row) == VALUE
        assert VALUE not in repr(row.sealed)
        row.name = "another"
        with pytest.raises(SealBroken, match="must be stored anew"):
            vault.open(row)
        session.rollback()


def test_secrets_that_cannot_be_are_refused_without_being_repeated(house: House) -> None:
    firm, other = house.enterprise("1000.00"), house.enterprise("1000.00")
    firm.ask("PUT", "/v1/secrets/token", {"value": VALUE})
    with house.untouched():
        path = "/v1/secrets/token"
        for body in ({"value": VALUE * 2000}, {"value": ""}, {"value": [VALUE]}, {"value": VALUE, "x": 1}, {}):
            answer = firm.ask("PUT", path, body)
            assert answer.status_code == 422
            assert VALUE not in answer.text
        firm.refused(422, "malformed_request", "PUT", "/v1/secrets/.hidden", {"value": "v"})
        firm.refused(422, "malformed_request", "PUT", "/v1/secrets/a%20b", {"value": "v"})
        words = firm.refused(422, "unknown_secret", "POST", "/v1/jobs", job(secrets=["tokens"]))
        assert words == (
            "secrets: there is no secret 'tokens' of yours. Store it with `hub secret put`, or leave it out."
        )
        other.refused(422, "unknown_secret", "POST", "/v1/jobs", job(secrets=["token"]))
        other.refused(404, "secret_not_found", "DELETE", path)
        firm.refused(422, "malformed_request", "POST", "/v1/jobs", job(secrets=["../token"]))
    for name in ("a", "b", "c"):
        firm.ask("PUT", f"/v1/secrets/{name}", {"value": "x" * 32_000})
    with house.untouched():
        firm.refused(422, "secrets_too_large", "POST", "/v1/jobs", job(secrets=["a", "b", "c"]))


def test_a_secret_that_a_job_still_needs_is_kept(house: House) -> None:
    firm = house.enterprise("1000.00")
    firm.ask("PUT", "/v1/secrets/token", {"value": VALUE})
    taken = firm.post("/v1/jobs", job(secrets=["token"]))
    firm.refused(409, "secret_in_use", "DELETE", "/v1/secrets/token")
    with transaction(house.engine) as session:
        session.execute(
            text("UPDATE jobs SET state = 'failed', ended_at = now() WHERE id = :id"), {"id": UUID(taken["id"])}
        )
    assert firm.ask("DELETE", "/v1/secrets/token").json()["name"] == "token"
    assert firm.get("/v1/secrets")["items"] == []


def test_a_vaults_key_file_is_made_once_kept_closed_and_can_be_changed(tmp_path: Path) -> None:
    file = tmp_path / "new" / "secrets.key"
    first = open_vault(file)
    assert file.stat().st_mode & 0o777 == 0o600
    assert list(file.parent.iterdir()) == [file]
    sealed = first.seal(UUID(NOBODY), "n", VALUE)
    file.write_bytes(new_vault_key() + b"\n" + file.read_bytes())
    row = SecretRow(tenant_id=UUID(NOBODY), name="n", sealed=sealed)
    assert open_vault(file).open(row) == VALUE
    file.write_bytes(b"not a key\n")
    with pytest.raises(MalformedVaultKey):
        open_vault(file)
    file.chmod(0o644)
    with pytest.raises(VaultKeyExposed):
        open_vault(file)


def test_templates_are_a_tenants_own_or_the_operators_for_everybody(house: House) -> None:
    firm, other = house.enterprise("1000.00"), house.enterprise("1000.00")
    fields = {"accelerator": MODEL, "environment": "digits", "time_limit_s": 60, "priority": "low"}
    name = f"small-{house.number()}"
    path = f"/v1/job-templates/{name}"
    shared = house.operator.ask("PUT", path, {"fields": fields, "description": "for a first try"}).json()
    assert (shared["shared"], shared["description"]) == (True, "for a first try")
    assert other.get(path)["fields"] == fields
    firm.ask("PUT", path, {"fields": fields | {"time_limit_s": 120}})
    assert (firm.get(path)["fields"]["time_limit_s"], other.get(path)["fields"]["time_limit_s"]) == (120, 60)
    assert [entry["shared"] for entry in firm.get("/v1/job-templates")["items"] if entry["name"] == name] == [
        False,
        True,
    ]
    asked = firm.get(path)["fields"] | {"name": "n", "argv": ["true"]}
    assert firm.post("/v1/jobs", asked)["priority"] == "low"
    with house.untouched():
        other.refused(404, "template_not_found", "DELETE", path)
        words = firm.refused(422, "unknown_field", "PUT", path, {"fields": {"colour": "red"}})
        assert words.startswith("Unknown field: fields.colour.")
        firm.refused(422, "malformed_request", "PUT", path, {"fields": {"time_limit_s": "long"}})
        firm.refused(422, "malformed_request", "PUT", path, {"fields": {"argv": []}})
        firm.refused(422, "malformed_request", "PUT", "/v1/job-templates/A", {"fields": {}})
    assert not firm.ask("DELETE", path).json()["shared"]
    assert firm.get(path)["shared"]


def test_a_job_is_explained_with_its_rule_and_a_start_estimate(house: House) -> None:
    firm, other = house.enterprise("1000.00"), house.enterprise("1.00")
    held = firm.post("/v1/jobs", job(held=True))["id"]
    why = firm.get(f"/v1/jobs/{held}/explanation")
    assert (why["code"], why["start_estimate_at"]) == ("held", None)
    follower = firm.post("/v1/jobs", job(depends_on=[held]))["id"]
    why = firm.get(f"/v1/jobs/{follower}/explanation")
    assert (why["code"], why["sentence"]) == ("dependency", f"waiting for job {held} to succeed")
    soon = firm.post("/v1/jobs", job())["id"]
    why = firm.get(f"/v1/jobs/{soon}/explanation")
    assert why["code"] == "order"
    assert why["start_estimate_at"] is not None
    other.refused(404, "job_not_found", "GET", f"/v1/jobs/{soon}/explanation")


def test_what_is_explained_follows_what_happens_to_a_job(house: House) -> None:
    firm = house.enterprise("1000.00")
    job_id = firm.post("/v1/jobs", job())["id"]
    path = f"/v1/jobs/{job_id}"
    assert firm.get(f"{path}/explanation")["code"] == "order"
    firm.post(f"{path}:hold")
    assert firm.get(f"{path}/explanation")["code"] == "held"
    firm.post(f"{path}:release")
    assert firm.get(f"{path}/explanation")["code"] == "order"
    firm.post(f"{path}:cancel")
    assert firm.get(f"{path}/explanation")["code"] is None


def test_jobs_are_explained_however_many_wait(house: House) -> None:
    firm = house.enterprise("1000000.00")
    array = firm.post("/v1/job-arrays", {"job": job(), "size": 1000})
    held = firm.post("/v1/jobs", job(held=True))["id"]
    why = firm.get(f"/v1/jobs/{held}/explanation")
    assert (why["code"], why["start_estimate_at"]) == ("held", None)
    firm.post(f"/v1/job-arrays/{array['id']}:cancel")


def test_a_template_is_small_because_all_are_listed_at_once(house: House) -> None:
    firm = house.enterprise()
    large = {"fields": {"argv": ["x" * 4000] * 9}}
    assert "32768" in firm.refused(422, "malformed_request", "PUT", "/v1/job-templates/large", large)
