"""Transactions that end straight through libpq."""

import psycopg
import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError, OperationalError

from kernel.database import transaction
from kernel.postgres import PrivatePostgres


def test_what_is_refused_when_it_is_committed_is_refused_as_ever(engine: Engine) -> None:
    with transaction(engine) as session:
        session.execute(text("CREATE TEMPORARY TABLE once (n bigint UNIQUE DEFERRABLE INITIALLY DEFERRED)"))
    with pytest.raises(IntegrityError) as refused, transaction(engine) as session:
        session.execute(text("INSERT INTO once VALUES (1), (1)"))
    assert isinstance(refused.value.orig, psycopg.errors.UniqueViolation)
    with transaction(engine) as session:
        assert session.scalar(text("SELECT count(*) FROM once")) == 0
        session.execute(text("DROP TABLE once"))


def test_a_connection_that_breaks_before_the_commit_is_the_databases_absence(
    engine: Engine, postgres: PrivatePostgres
) -> None:
    with pytest.raises(OperationalError) as broken, transaction(engine) as session:
        backend = session.scalar(text("SELECT pg_backend_pid()"))
        with postgres.superuser() as root:
            root.execute("SELECT pg_terminate_backend(%s, 60000)", [backend])
    assert broken.value.connection_invalidated
    with transaction(engine) as session:
        assert session.scalar(text("SELECT pg_backend_pid()")) != backend
