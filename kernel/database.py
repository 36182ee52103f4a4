"""One engine, one Session per use case, one transaction per use case.

The Session is the unit of work. A use case takes it as its first argument and never commits; whoever opened it
with `transaction` does. Nothing talks to the network while one is open.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, DateTime, Engine, MetaData, Text, create_engine
from sqlalchemy.dialects.postgresql import JSONB
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


def open_engine(
    url: str, *, part: str = "", pool_size: int = 8, idle_ms: int = 10_000, ping: bool = True
) -> Engine:
    """An engine on PostgreSQL whose sessions run in UTC at READ COMMITTED.

    Args:
        url: `postgresql+psycopg://…`.
        part: of the hub that asks; what the server calls its sessions.
        pool_size: connections kept; as many again may be opened under load.
        idle_ms: a transaction that does nothing for so long is ended by the server, so that a stopped process
            (SIGSTOP, a lost machine) keeps no lock.
        ping: ask before each transaction whether the connection still stands; false for a worker that repeats
            what failed anyway.
    """
    return create_engine(
        url,
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_pre_ping=ping,
        isolation_level="READ COMMITTED",
        connect_args={
            "options": f"-c timezone=UTC -c idle_in_transaction_session_timeout={idle_ms}",
            "application_name": f"compute-hub {part}".strip(),
        },
    )


@contextmanager
def transaction(engine: Engine) -> Iterator[Session]:
    """A Session that commits when the block ends and rolls everything back when it raises."""
    with Session(engine, expire_on_commit=False) as session, session.begin():
        yield session
