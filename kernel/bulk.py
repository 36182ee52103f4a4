"""Many rows in one statement: COPY for new ones, arrays for everything else.

What is written here belongs to the session's transaction, as if the session had written it, and fails as SQLAlchemy's
own statements fail. PostgreSQL's text forms are built here, because adapting each value costs several times more.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from typing import Any, Final, TypeVar, cast
from uuid import UUID

import psycopg
from psycopg.pq import ExecStatus, TransactionStatus
from psycopg.pq.abc import PGconn
from sqlalchemy import BindParameter, ColumnElement, Connection, any_, bindparam, literal
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import InstrumentedAttribute, Session
from sqlalchemy.types import TypeEngine

from kernel.database import Table

_T = TypeVar("_T")
Driver = psycopg.Connection[tuple[Any, ...]]

_PLAIN: Final = re.compile(r"[^\\\t\n\r]*").fullmatch
"""Of texts that COPY takes as they are."""

_ESCAPES: Final = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


def copy_rows(session: Session, into: type[Table], rows: Sequence[Mapping[str, Any]]) -> None:
    """Add rows to a table, whatever their number, in one statement.

    Args:
        session: whose transaction this belongs to; what it has not written yet is written first.
        into: the table.
        rows: by attribute; each names the same ones as the first.

    Raises:
        sqlalchemy.exc.IntegrityError: the database refuses a row, and with it all.
    """
    if not rows:
        return
    session.flush()
    columns = [into.__mapper__.columns[name] for name in rows[0]]
    names = ", ".join(f'"{column.name}"' for column in columns)
    written = [
        _text_forms(column.type, [row[name] for row in rows])
        for name, column in zip(rows[0], columns, strict=True)
    ]
    text = "\n".join(["\t".join(values) for values in zip(*written, strict=True)])
    statement = f"COPY {into.__tablename__} ({names}) FROM STDIN"
    with (
        driver(session, statement) as connection,
        connection.cursor() as cursor,
        cursor.copy(statement.encode()) as copy,
    ):
        copy.write(text)


def run(session: Session, statement: bytes, arguments: Sequence[object]) -> list[tuple[Any, ...]]:
    """Execute a statement whose arguments are mostly arrays; returns its rows, if it has any."""
    session.flush()
    with driver(session, statement.decode()) as connection:
        cursor = connection.execute(statement, arguments, prepare=True)
        return cursor.fetchall() if cursor.description is not None else []


def call(session: Session, statement: bytes, arguments: Sequence[bytes | None]) -> list[tuple[Any, ...]]:
    """Ask a function of the database; arguments ($1, $2, …) and answers are in PostgreSQL's text forms, NULL is None.

    One round trip straight through libpq: adapting values and waiting in Python cost a client more than such a call
    costs the server. A signal is handled after the answer. Nothing is prepared, because psycopg forgets what is
    prepared at every rollback, and parsing a call takes the server microseconds.
    """
    with driver(session, statement.decode()) as connection:
        result = begun(connection).exec_params(statement, arguments)
        if result.status != ExecStatus.TUPLES_OK:
            raise psycopg.errors.error_from_result(result)
        columns = range(result.nfields)
        return [
            tuple([_read(result.get_value(row, column)) for column in columns]) for row in range(result.ntuples)
        ]


def begun(connection: Driver) -> PGconn:
    """A connection as libpq has it, in a transaction that is begun as this connection begins them."""
    wire = connection.pgconn
    if connection.autocommit or wire.transaction_status != TransactionStatus.IDLE:
        return wire
    level = connection.isolation_level
    words = ["BEGIN"] if level is None else ["BEGIN ISOLATION LEVEL", level.name.replace("_", " ")]
    if connection.read_only:
        words.append("READ ONLY")
    result = wire.exec_(" ".join(words).encode())
    if result.status != ExecStatus.COMMAND_OK:
        raise psycopg.errors.error_from_result(result)
    return wire


def _read(value: bytes | None) -> str | None:
    return None if value is None else value.decode()


def among(column: InstrumentedAttribute[_T], values: Iterable[_T] | BindParameter[Any]) -> ColumnElement[bool]:
    """Whether a column's value is one of these, with a statement that does not depend on how many there are.

    A parameter stands for a list that is given when the statement is executed.
    """
    if isinstance(values, BindParameter):
        return column == any_(bindparam(values.key, type_=ARRAY(column.type)))
    return column == any_(literal(list(values), ARRAY(column.type)))


def array(values: Iterable[object]) -> str:
    """An array of ids or numbers in PostgreSQL's text form; None is NULL."""
    return "{" + ",".join(["NULL" if value is None else str(value) for value in values]) + "}"


def array_of_text(values: Iterable[str | None]) -> str:
    """An array of texts, or of what is written as text, in PostgreSQL's text form."""
    return "{" + ",".join(["NULL" if value is None else _quoted(value) for value in values]) + "}"


@contextmanager
def driver(session: Session, statement: str) -> Iterator[Driver]:
    """The session's own connection, past SQLAlchemy's statement machinery; errors are wrapped as it wraps them."""
    with driven(session.connection(), statement) as found:
        yield found


@contextmanager
def driven(connection: Connection, statement: str) -> Iterator[Driver]:
    """The driver's connection below SQLAlchemy's; errors are wrapped as SQLAlchemy wraps them."""
    found = cast("Driver", connection.connection.driver_connection)
    try:
        yield found
    except psycopg.Error as error:
        raise wrapped(connection, statement, error) from error


def wrapped(connection: Connection, statement: str, error: psycopg.Error) -> BaseException:
    """A driver's error as SQLAlchemy would raise it; a connection that broke is given up."""
    broken = cast("Driver", connection.connection.driver_connection).closed
    if broken:
        connection.invalidate(error)
    return DBAPIError.instance(statement, None, error, psycopg.Error, connection_invalidated=broken)


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _text_forms(kind: TypeEngine[Any], values: Sequence[Any]) -> list[str]:
    """A column in COPY's text format; what stands below itself, as an id or an instant often does, is written once."""
    form = _text_form(kind)
    last: object = None
    text = "\\N"
    texts = []
    for value in values:
        if value is not last:
            last, text = value, form(value)
        texts.append(text)
    return texts


@cache
def _text_form(kind: TypeEngine[Any]) -> Callable[[Any], str]:
    """How a value of a column is written in COPY's text format."""
    if isinstance(kind, JSONB):
        return _json_form
    if isinstance(kind, ARRAY):
        return lambda value: "\\N" if value is None else array(value)
    return _plain_form


def _json_form(value: object) -> str:
    return "\\N" if value is None else json.dumps(value).translate(_ESCAPES)


def _plain_form(value: object) -> str:
    if value is None:
        return "\\N"
    if type(value) is str:
        return value if _PLAIN(value) else value.translate(_ESCAPES)
    if type(value) is UUID:
        return value.hex
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value)
