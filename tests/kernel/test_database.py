"""Transactions that end straight through libpq."""

import subprocess
import sys
from pathlib import Path
from typing import Final

import psycopg
import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError, OperationalError

from kernel.database import transaction
from kernel.postgres import PrivatePostgres

ROOT: Final = Path(__file__).parents[2]


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


SILENCE = """
import fcntl, socket, struct, sys, threading
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from kernel.database import open_engine

UP, DOWN = 1, 0

def loopback(flags):
    with socket.socket() as interfaces:
        fcntl.ioctl(interfaces, 0x8914, struct.pack("16sh14x", b"lo", flags))

def pump(source, target):
    while data := source.recv(65536):
        target.sendall(data)

loopback(UP)
server, there = socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX)
there.connect(sys.argv[1])
remote = open_engine(sys.argv[2].replace("PORT", str(server.getsockname()[1])))
def relay():
    here, _ = server.accept()
    threading.Thread(target=pump, args=(there, here), daemon=True).start()
    pump(here, there)
threading.Thread(target=relay, daemon=True).start()
with remote.connect() as connection:
    assert connection.scalar(text("SELECT 1")) == 1
    loopback(DOWN)
    try:
        connection.scalar(text("SELECT 2"))
    except OperationalError as error:
        print("given up:", error.connection_invalidated)
"""


@pytest.mark.slow
def test_a_server_that_falls_silent_over_a_network_is_given_up(engine: Engine) -> None:
    """In a network of its own, which then loses everything; TCP by itself would go on trying for many minutes."""
    there = f"{engine.url.query['host']}/.s.PGSQL.{engine.url.port or 5432}"
    url = f"postgresql+psycopg://{engine.url.username}@127.0.0.1:PORT/{engine.url.database}"
    command = ["unshare", "--map-root-user", "--net", sys.executable, "-c", SILENCE, there, url]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (said.stdout, said.stderr) == ("given up: True\n", "")
