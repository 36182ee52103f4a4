"""Transactions that end straight through libpq."""

import socket
import threading

import psycopg
import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError, OperationalError

from kernel.database import open_engine, transaction
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


def _pump(source: socket.socket, target: socket.socket) -> None:
    while data := source.recv(65_536):
        target.sendall(data)
    target.shutdown(socket.SHUT_WR)


def test_a_server_that_falls_silent_over_a_network_is_given_up(engine: Engine) -> None:
    """The kernel is told so: a network that loses everything takes a machine of its own to show."""
    where = f"{engine.url.query['host']}/.s.PGSQL.{engine.url.port or 5432}"
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as there:
        port = server.getsockname()[1]
        remote = open_engine(
            f"postgresql+psycopg://{engine.url.username}@127.0.0.1:{port}/{engine.url.database}"
        )
        there.connect(where)

        def relay() -> None:
            here, _ = server.accept()
            back = threading.Thread(target=_pump, args=(there, here))
            back.start()
            _pump(here, there)
            back.join()
            here.close()

        relaying = threading.Thread(target=relay)
        relaying.start()
        with remote.connect() as connection:
            assert connection.scalar(text("SELECT 1")) == 1
            driver = connection.connection.driver_connection
            assert driver is not None
            with socket.fromfd(driver.fileno(), socket.AF_INET, socket.SOCK_STREAM) as wire:
                assert wire.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 10_000
                assert wire.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
                assert wire.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 5
        remote.dispose()
        relaying.join()
