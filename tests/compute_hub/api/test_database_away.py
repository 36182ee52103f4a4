"""What callers hear while the database is away: that it is, and that asking again under the same key is safe."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import Engine, text

from compute_hub.api.app import create_app
from compute_hub.settings import Settings
from kernel.database import open_engine, transaction
from kernel.ids import new_secret
from kernel.postgres import PrivatePostgres
from tests.compute_hub.api.house import Server


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """Of a server that nobody has started."""
    engine = open_engine(PrivatePostgres(tmp_path / "nobody").url("hub"))
    yield engine
    engine.dispose()


@pytest.fixture
def app(tmp_path: Path, engine: Engine) -> FastAPI:
    return create_app(Settings(state_directory=tmp_path), engine)


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/jobs"), ("POST", "/v1/jobs"), ("GET", "/readyz")])
def test_a_database_that_does_not_answer_is_named_and_asking_again_is_said_to_be_safe(
    app: FastAPI, method: str, path: str
) -> None:
    with closing(Server(app)) as server:
        headers = {"Authorization": f"Bearer hub_tenant_{new_secret()}"}
        answer = httpx.request(method, f"{server.url}{path}", headers=headers, timeout=60)
    assert (answer.status_code, answer.json()["code"]) == (503, "database_unreachable")
    assert answer.headers["Retry-After"] == "1"
    assert "same Idempotency-Key" in answer.json()["detail"]


def test_a_connection_that_breaks_in_the_middle_is_the_database_and_a_wrong_statement_is_a_defect(
    app: FastAPI, postgres: PrivatePostgres
) -> None:
    postgres.create_database("away")
    there = open_engine(postgres.url("away"))

    def broken() -> None:
        with transaction(there) as session, postgres.superuser() as root:
            root.execute(
                "SELECT pg_terminate_backend(%s, 60000)", [session.scalar(text("SELECT pg_backend_pid()"))]
            )
            session.execute(text("SELECT 1"))

    def wrong() -> None:
        with transaction(there) as session:
            session.execute(text("SELECT nothing"))

    app.add_api_route("/broken", broken)
    app.add_api_route("/wrong", wrong)
    with closing(Server(app)) as server:
        assert httpx.get(f"{server.url}/broken", timeout=60).json()["code"] == "database_unreachable"
        assert httpx.get(f"{server.url}/wrong", timeout=60).json()["code"] == "internal_error"
    there.dispose()
    postgres.drop_database("away")
