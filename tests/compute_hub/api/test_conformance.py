"""The API holds to its own description, whatever is sent: a few hundred generated requests as every role."""

import json
from collections.abc import Callable

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from compute_hub.identity.roles import Role
from tests.compute_hub.api.house import House, job

CHECKS: list[Callable[..., object]] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


def test_every_operation_declares_its_refusals_and_roles(house: House) -> None:
    document = house.http.get("/v1/openapi.json").json()
    for methods in document["paths"].values():
        for operation in methods.values():
            assert operation["description"]
            for code in ("401", "403", "404", "422"):
                content = operation["responses"][code]["content"]
                assert list(content) == ["application/problem+json"]


@pytest.mark.slow
@pytest.mark.parametrize("role", list(Role))
def test_generated_requests_get_answers_that_conform(house: House, role: Role) -> None:
    firm = house.enterprise("1000.00")
    programme = house.programme()
    house.voucher(firm, programme, requested_cny="100.00")
    house.use(firm.post("/v1/jobs", job())["id"], 10_000)
    asker = firm if role is Role.TENANT else house.officers[role]
    document = house.http.get("/v1/openapi.json").json()
    for methods in document["paths"].values():
        for name in [name for name, entry in methods.items() if role.value not in entry["x-roles"]]:
            del methods[name]
    document["paths"] = {path: methods for path, methods in document["paths"].items() if methods}
    schema = schemathesis.openapi.from_dict(json.loads(json.dumps(document)))
    strategies = [operation.ok().as_strategy() for operation in schema.get_all_operations()]

    @settings(
        max_examples=120,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=st.one_of(strategies))
    def conforms(case: schemathesis.Case) -> None:
        headers = {"Authorization": f"Bearer {asker.key}"}
        case.call_and_validate(base_url=house.server.url, headers=headers, checks=CHECKS)

    conforms()
    assert house.auditor.get("/v1/ledger/audit")["audit"] == "ok"
