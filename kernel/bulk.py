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
from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Insert,
    Text,
    any_,
    bindparam,
    func,
    insert,
    inspect,
    literal,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import InstrumentedAttribute, Session, attributes, make_transient_to_detached
from sqlalchemy.orm.exc import StaleDataError
from sqlalchemy.sql.dml import ReturningInsert
from sqlalchemy.sql.schema import CallableColumnDefault, ScalarElementColumnDefault
from sqlalchemy.types import TypeEngine

from kernel.database import Table

_T = TypeVar("_T")
_Driver = psycopg.Connection[tuple[Any, ...]]

_PLAIN: Final = re.compile(r"[^\\\t\n\r]*").fullmatch
"""Of texts that COPY takes as they are."""

_COMPOUND: Final = (ARRAY, JSONB, postgresql.ranges.AbstractRange)
"""Of columns that are more than one value each: an array of arrays would be taken apart."""

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


def add_rows(session: Session, rows: Sequence[Table], *, tell: tuple[str, str] | None = None) -> None:
    """Insert new rows of one table now, with a third of what the unit of work costs; they are then the session's own.

    Args:
        session: whose transaction this belongs to; what it has not written yet is written first.
        rows: none of whose attributes is the database's to fill in.
        tell: a notification channel and what is said there when the transaction commits.

    Raises:
        sqlalchemy.exc.IntegrityError: the database refuses a row, and with it all.
    """
    if not rows:
        return
    session.flush()
    session.connection().execute(_insertion(type(rows[0]), tell), [_complete(row) for row in rows])
    for row in rows:
        make_transient_to_detached(row)
    session.add_all(rows)


def write_changes(session: Session, rows: Iterable[Table]) -> None:
    """Write what was changed of rows of one table that are the session's own, in one statement for all alike.

    Rows are alike when the same attributes were changed. Everything else that the session has not written yet is
    written after them, by the unit of work; so are attributes that are lists or documents.

    Raises:
        sqlalchemy.exc.DBAPIError: the database refuses a row, and with it all.
        sqlalchemy.orm.exc.StaleDataError: a row is no longer there.
    """
    groups: dict[tuple[str, ...], list[Table]] = {}
    for row in rows:
        if names := _changed(row):
            groups.setdefault(names, []).append(row)
    for names, some in groups.items():
        kind = type(some[0])
        statement, keys = _update(kind, names)
        columns = kind.__mapper__.columns
        arguments = [_array_form(columns[name].type, [getattr(row, name) for row in some]) for name in keys]
        with driver(session, statement.decode()) as connection:
            written = connection.execute(statement, arguments, prepare=True).rowcount
        if written != len(some):
            message = f"of {len(some)} rows of {kind.__tablename__} {written} are there"
            raise StaleDataError(message)
        for row in some:
            for name in names:
                attributes.set_committed_value(row, name, getattr(row, name))
    session.flush()


def _changed(row: Table) -> tuple[str, ...]:
    """The attributes that are not as they were read; none if one of them is no plain value."""
    before, now, columns = inspect(row).committed_state, row.__dict__, row.__mapper__.columns
    names = sorted(name for name, value in before.items() if now[name] != value)
    return () if any(isinstance(columns[name].type, _COMPOUND) for name in names) else tuple(names)


@cache
def _update(table: type[Table], names: tuple[str, ...]) -> tuple[bytes, tuple[str, ...]]:
    """A statement that sets these attributes of many rows, and the attributes whose arrays it takes."""
    columns, dialect = table.__mapper__.columns, postgresql.dialect()  # type: ignore[no-untyped-call] # of SQLAlchemy
    key = [column.name for column in table.__mapper__.primary_key]
    keys = (*key, *names)
    arrays = ", ".join(f"%s::{columns[name].type.compile(dialect)}[]" for name in keys)
    named = ", ".join(f'"{columns[name].name}"' for name in keys)
    values = ", ".join(f'"{columns[name].name}" = u."{columns[name].name}"' for name in names)
    same = " AND ".join(f't."{name}" = u."{name}"' for name in key)
    statement = (
        f"UPDATE {table.__tablename__} AS t SET {values} FROM unnest({arrays}) AS u({named}) WHERE {same}"  # noqa: S608 - names of our own tables only
    )
    return statement.encode(), keys


def _array_form(kind: TypeEngine[Any], values: Sequence[Any]) -> str:
    """A column of values as one array in PostgreSQL's text form."""
    if isinstance(kind, Text):
        return array_of_text(values)
    return array(value.isoformat() if isinstance(value, datetime) else value for value in values)


def _complete(row: Table) -> dict[str, Any]:
    """All values of a new row by column; what was not said of it becomes its default, or nothing."""
    values: dict[str, Any] = {}
    for name, column in row.__mapper__.columns.items():
        if name not in row.__dict__:
            setattr(row, name, _default(column.default))
        values[column.key] = getattr(row, name)
    return values


def _default(default: object) -> Any:  # noqa: ANN401 - of any column
    if isinstance(default, CallableColumnDefault):
        return default.arg(cast("Any", None))  # made outside of any statement
    return default.arg if isinstance(default, ScalarElementColumnDefault) else None


@cache
def _insertion(into: type[Table], tell: tuple[str, str] | None) -> Insert | ReturningInsert[Any]:
    """Made once per table, so that it need not be made and recognised each time."""
    statement = insert(into.metadata.tables[into.__tablename__])
    return statement if tell is None else statement.returning(func.pg_notify(*tell))


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
        wire = connection.pgconn
        if not connection.autocommit and wire.transaction_status == TransactionStatus.IDLE:
            connection.execute(b"")  # begins the transaction as this connection begins them
        result = wire.exec_params(statement, arguments)
        if result.status != ExecStatus.TUPLES_OK:
            raise psycopg.errors.error_from_result(result)
        columns = range(result.nfields)
        return [
            tuple([_read(result.get_value(row, column)) for column in columns]) for row in range(result.ntuples)
        ]


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
def driver(session: Session, statement: str) -> Iterator[_Driver]:
    """The session's own connection, past SQLAlchemy's statement machinery; errors are wrapped as it wraps them."""
    connection = session.connection()
    driven = cast("_Driver", connection.connection.driver_connection)
    try:
        yield driven
    except psycopg.Error as error:
        broken = driven.closed
        if broken:
            connection.invalidate(error)
        raise DBAPIError.instance(
            statement, None, error, psycopg.Error, connection_invalidated=broken
        ) from error


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
