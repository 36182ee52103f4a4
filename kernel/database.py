"""One engine, one Session per use case, one transaction per use case.

The Session is the unit of work. A use case takes it as its first argument and never commits; whoever opened it
with `transaction` does. Nothing talks to the network while one is open.
"""

import select
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final

import psycopg
from psycopg.pq import ExecStatus, TransactionStatus
from sqlalchemy import BigInteger, DateTime, Engine, MetaData, Text, create_engine, event
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.orm import DeclarativeBase, Session


class Table(DeclarativeBase):
    """What every context's tables derive from; integers are 64 bit and times carry their zone."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy reads this class attribute
        int: BigInteger,
        str: Text,
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB,
        list[Any]: JSONB,
    }


_SILENCE: Final = {
    "connect_timeout": 10,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
"""A server whose machine or network is gone without a word is given up after ten seconds; one at work is waited for."""


def open_engine(
    url: str, *, part: str = "", pool_size: int = 8, idle_ms: int = 10_000, look: bool = True
) -> Engine:
    """An engine on PostgreSQL whose sessions run in UTC at READ COMMITTED.

    Args:
        url: `postgresql+psycopg://…`.
        part: of the hub that asks; what the server calls its sessions.
        pool_size: connections kept; as many again may be opened under load.
        idle_ms: a transaction that does nothing for so long is ended by the server, so that a stopped process
            (SIGSTOP, a lost machine) keeps no lock.
        look: before each transaction, whether the server has hung up; false for a worker that repeats what failed
            anyway.
    """
    engine = create_engine(
        url,
        pool_size=pool_size,
        max_overflow=pool_size,
        isolation_level="READ COMMITTED",
        connect_args={
            "options": f"-c timezone=UTC -c idle_in_transaction_session_timeout={idle_ms}",
            "application_name": f"compute-hub {part}".strip(),
            **_SILENCE,
        },
    )
    event.listen(engine, "do_connect", _connect)
    if look:
        event.listen(engine, "checkout", _refuse_if_hung_up)
    return engine


class _Connection(psycopg.Connection[tuple[Any, ...]]):
    """Ends transactions as `kernel.prepared` asks: straight through libpq, for a fraction of psycopg's own way."""

    def commit(self) -> None:
        """As psycopg's; a signal is handled after the answer."""
        if self.pgconn.transaction_status == TransactionStatus.IDLE:
            return
        result = self.pgconn.exec_(b"COMMIT")
        if result.status != ExecStatus.COMMAND_OK:
            refusal = psycopg.errors.error_from_result(result)
            raise psycopg.OperationalError(str(refusal)) if self.closed else refusal

    def rollback(self) -> None:
        """As psycopg's, which a pool asks for when there is nothing to roll back, too."""
        if self.pgconn.transaction_status != TransactionStatus.IDLE:
            super().rollback()


def _connect(_dialect: object, _record: object, where: list[Any], how: dict[str, Any]) -> _Connection:
    return _Connection.connect(*where, **how)


def _refuse_if_hung_up(connection: psycopg.Connection, *_: object) -> None:
    """A server says nothing on an idle connection but its farewell, so whether there is something to read tells all.

    It costs no round trip, and a pool whose server was started anew is replaced as a whole.
    """
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    if poll.poll(0):
        raise InvalidatePoolError


@contextmanager
def glance(engine: Engine) -> Iterator[Session]:
    """A Session that only reads, each statement as its own transaction, which spares two round trips."""
    with Session(engine.execution_options(isolation_level="AUTOCOMMIT"), expire_on_commit=False) as session:
        yield session


@contextmanager
def picture(engine: Engine) -> Iterator[Session]:
    """A Session that sees one moment of the database and can change nothing; begun so, which spares a round trip."""
    still = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    with Session(still, expire_on_commit=False) as session, session.begin():
        yield session


@contextmanager
def transaction(engine: Engine) -> Iterator[Session]:
    """A Session that commits when the block ends and rolls everything back when it raises."""
    with Session(engine, expire_on_commit=False) as session, session.begin():
        yield session
