import os
import signal
import threading
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text

from kernel.database import glance, open_engine, picture, transaction
from kernel.postgres import PostgresDidNotStart, PrivatePostgres


@pytest.mark.slow
def test_what_was_committed_is_there_after_a_restart_in_a_very_long_path(tmp_path: Path) -> None:
    server = PrivatePostgres(tmp_path / ("long" * 30), durable=False)
    server.start()
    server.create_database("hub")
    with server.superuser("hub") as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    server.stop()
    server.start()
    with server.superuser("hub") as connection:
        assert connection.execute("SELECT answer FROM kept").fetchone() == (42,)
    server.stop()
    with pytest.raises(psycopg.OperationalError):
        server.superuser()


@pytest.mark.slow
def test_a_server_that_was_killed_is_started_again_with_all_that_was_committed(tmp_path: Path) -> None:
    server = PrivatePostgres(tmp_path / "pg")
    server.start()
    with server.superuser() as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        assert not server.has_ended()
        os.kill(server.server_pid(), signal.SIGKILL)
        with pytest.raises(psycopg.OperationalError):
            while True:
                connection.execute("SELECT pg_sleep(0.01)")
    while not server.has_ended():
        threading.Event().wait(0.02)
    started(server)
    assert not server.has_ended()
    with server.superuser() as connection:
        assert connection.execute("SELECT answer FROM kept").fetchone() == (42,)
    server.stop()


def started(server: PrivatePostgres) -> None:
    """Begun again until it can be: what is left of the one before ends by itself, and keeps the place until then."""
    while True:
        try:
            server.start()
        except PostgresDidNotStart:
            assert server.has_ended()
        else:
            return


def test_a_broken_data_directory_is_named_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "pg" / "data").mkdir(parents=True)
    (tmp_path / "pg" / "data" / "PG_VERSION").write_text("9\n")
    with pytest.raises(PostgresDidNotStart, match=r"did not start: exit status \d+"):
        PrivatePostgres(tmp_path / "pg").start()


def test_a_failed_block_leaves_nothing_behind(postgres: PrivatePostgres) -> None:
    postgres.create_database("scratch")
    with postgres.superuser("scratch") as connection:
        connection.execute("CREATE TABLE notes (line text); GRANT ALL ON notes TO hub_app")
    engine = open_engine(postgres.url("scratch"))
    with pytest.raises(ZeroDivisionError), transaction(engine) as session:
        session.execute(text("INSERT INTO notes VALUES ('half-written')"))
        raise ZeroDivisionError
    with transaction(engine) as session:
        assert session.execute(text("SELECT count(*) FROM notes")).scalar_one() == 0
    engine.dispose()
    postgres.drop_database("scratch")


def test_connections_the_server_has_closed_are_not_used_again_and_neither_glance_nor_picture_leaves_one_changed(
    postgres: PrivatePostgres,
) -> None:
    postgres.create_database("glances")
    engine = open_engine(postgres.url("glances"), pool_size=3)
    with transaction(engine) as one, transaction(engine) as two, transaction(engine) as three:
        pids = [session.scalar(text("SELECT pg_backend_pid()")) for session in (one, two, three)]
    with postgres.superuser() as root:
        for pid in pids:
            root.execute("SELECT pg_terminate_backend(%s, 60000)", [pid])
    with glance(engine) as session:
        assert session.scalar(text("SELECT 42")) == 42
    with picture(engine) as session:
        assert session.scalar(text("SHOW transaction_isolation")) == "repeatable read"
        assert session.scalar(text("SHOW transaction_read_only")) == "on"
    with transaction(engine) as session:
        first = session.scalar(text("SELECT pg_current_xact_id()"))
        assert session.scalar(text("SELECT pg_current_xact_id()")) == first
        assert session.scalar(text("SHOW transaction_isolation")) == "read committed"
    engine.dispose()
