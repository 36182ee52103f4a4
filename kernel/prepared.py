"""Statements that are asked with every request or job: written once, prepared once in each connection.

They go straight through libpq. SQLAlchemy's and psycopg's way with a statement costs a client ten times more than that,
and a server that is asked before its caches are cold again takes less, too. What is asked belongs to the session's
transaction, as if the session had asked, and fails as SQLAlchemy's own statements fail. A signal is handled after
the answer.

Invariant: a connection is asked only for what it still has prepared. psycopg forgets all that a connection has prepared
after every rollback of something, to a savepoint too, so a connection that was rolled back prepares anew.
"""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from functools import cache, cached_property
from typing import Any, Final, TypeVar, cast
from uuid import UUID

import psycopg
from psycopg.pq import ExecStatus, TransactionStatus
from psycopg.pq.abc import PGconn, PGresult
from sqlalchemy import (
    Boolean,
    Connection,
    DateTime,
    Engine,
    Integer,
    LargeBinary,
    Numeric,
    Text,
    Uuid,
    event,
    func,
    insert,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.expression import ClauseElement
from sqlalchemy.sql.schema import CallableColumnDefault, ScalarElementColumnDefault
from sqlalchemy.types import NullType, TypeEngine

from kernel.bulk import Driver, array, array_of_text, begun, driven, wrapped
from kernel.database import Table

_Row = TypeVar("_Row", bound=Table)
Row = tuple[Any, ...]
"""Of plain values."""

_DIALECT: Final = PGDialect_psycopg(paramstyle="numeric_dollar")  # type: ignore[no-untyped-call] # SQLAlchemy's
_NUMBERS: Final = itertools.count(1)
_KNOWN: Final = "hub_prepared"
_CONNECTION: Final = "hub_connection"
_ANSWERS: Final = "hub_answers"
_GOOD: Final = frozenset({ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK})

_READ: Final[tuple[tuple[type[TypeEngine[Any]], Callable[[str], Any]], ...]] = (
    (Uuid, UUID),
    (Integer, int),
    (Text, str),
    (JSONB, json.loads),
    (DateTime, datetime.fromisoformat),
    (Boolean, "t".__eq__),
    (Numeric, Decimal),
    (NullType, str),
)
"""How answers of a type are read; what is neither here nor a list of ids or numbers cannot be asked for."""

_WRITTEN: Final[tuple[tuple[type[TypeEngine[Any]], Callable[[Any], str]], ...]] = (
    (Uuid, UUID.__str__),
    (Integer, int.__repr__),
    (Boolean, lambda value: "t" if value else "f"),
    (DateTime, datetime.isoformat),
)
"""How values of a type are written that can be nothing else; all others are looked through."""


_Asked = tuple[bytes | None, ...]
"""A statement's name and the values it was asked with, as they are sent."""


class Prepared:
    """One statement, which names what it is asked with (`bindparam`).

    Args:
        statement: a query, or an insertion of one row whose values are named as its columns.
    """

    def __init__(self, statement: ClauseElement) -> None:
        self._statement = statement
        self._name = f"hub_{next(_NUMBERS)}".encode()

    def __call__(self, session: Session, **values: Any) -> list[Row]:  # noqa: ANN401 - of any type
        """Ask once; the rows, of plain values. Raises sqlalchemy.exc.DBAPIError."""
        known: dict[_Asked, list[Row]] | None = session.info.get(_ANSWERS)
        if known is None:
            return self.many(session, [values])
        asked = (self._name, *self._sent(values))
        if asked not in known:
            known[asked] = self.many(session, [values])
        return list(known[asked])

    def alone(self, engine: Engine, **values: Any) -> list[Row]:  # noqa: ANN401 - of any type
        """Ask once, as a transaction of its own: that spares a session, its begin and its end."""
        with engine.connect() as connection, driven(connection, self._compiled.string) as found:
            return self._ask(found.pgconn, connection.info, [values])

    def many(self, session: Session, asked: Sequence[Mapping[str, Any]]) -> list[Row]:
        """Ask once with each of these; all rows. Raises sqlalchemy.exc.DBAPIError."""
        session.flush()
        connection = _connection(session)
        try:
            found = cast("Driver", connection.connection.driver_connection)
            return self._ask(begun(found), connection.info, asked)
        except psycopg.Error as error:
            raise wrapped(connection, self._compiled.string, error) from error

    def _ask(self, wire: PGconn, info: dict[Any, Any], asked: Sequence[Mapping[str, Any]]) -> list[Row]:
        known: set[bytes] = info.setdefault(_KNOWN, set())
        if self._name not in known:
            self._prepare(wire, known)
        rows: list[Row] = []
        for values in asked:
            sent: Any = self._sent(values)  # the driver's types know of no NULL here
            result = wire.exec_prepared(self._name, sent)
            if result.status not in _GOOD:
                raise psycopg.errors.error_from_result(result)
            rows += self._rows(result)
        return rows

    def _prepare(self, wire: PGconn, known: set[bytes]) -> None:
        """Have it prepared in this connection, in place of one that may or may not have been forgotten."""
        closed = wire.close_prepared(self._name)
        made = wire.prepare(self._name, self._compiled.string.encode())
        for result in (closed, made):
            if result.status not in _GOOD:
                raise psycopg.errors.error_from_result(result)
        known.add(self._name)

    def _sent(self, values: Mapping[str, Any]) -> list[bytes | None]:
        return [
            None if (value := values[name] if needed else default) is None else write(value).encode()
            for name, needed, default, write in self._parameters
        ]

    def _rows(self, result: PGresult) -> list[Row]:
        if not result.ntuples:
            return []
        get, columns = result.get_value, self._columns
        return [
            tuple(
                [
                    None if (value := get(row, column)) is None else read(value.decode())
                    for column, read in columns
                ]
            )
            for row in range(result.ntuples)
        ]

    @cached_property
    def _compiled(self) -> SQLCompiler:
        return cast("SQLCompiler", self._statement.compile(dialect=_DIALECT))

    @cached_property
    def _parameters(self) -> list[tuple[str, bool, Any, Callable[[Any], str]]]:
        """By place a parameter's name, whether it is asked with, what it is otherwise, and how it is written."""
        compiled = self._compiled
        found = [(name, compiled.binds[name]) for name in compiled.positiontup or ()]
        return [(name, bind.required, compiled.params[name], _written(bind.type)) for name, bind in found]

    @cached_property
    def _columns(self) -> list[tuple[int, Callable[[str], Any]]]:
        columns = getattr(self._statement, "exported_columns", ())
        return [(place, _reading(column.type)) for place, column in enumerate(columns)]


@contextmanager
def asked_once(session: Session) -> Iterator[None]:
    """While it lasts nothing is written in this session, and what was asked is not asked again: the answer holds."""
    session.info[_ANSWERS] = {}
    try:
        yield
    finally:
        del session.info[_ANSWERS]


def _connection(session: Session) -> Connection:
    """The session's, asked for once in a transaction: to hear it again takes half as long as a statement.

    And once in each nested one: who is not asked there has set no savepoint.

    Raises:
        sqlalchemy.exc.PendingRollbackError: something failed, and the session is yet to be rolled back.
    """
    known: tuple[object, Connection] | None = session.info.get(_CONNECTION)
    if known is None or known[0] is not _innermost(session) or not session.is_active:
        connection = session.connection()
        session.info[_CONNECTION] = known = _innermost(session), connection
    return known[1]


def _innermost(session: Session) -> SessionTransaction | None:
    return session.get_nested_transaction() or session.get_transaction()


def add_rows(session: Session, rows: Sequence[Table], *, tell: tuple[str, str] | None = None) -> None:
    """Insert new rows of one table now, for a fraction of what the unit of work costs; the session does not know them.

    Args:
        session: whose transaction this belongs to; what it has not written yet is written first.
        rows: none of whose attributes is the database's to fill in.
        tell: a notification channel and what is said there when the transaction commits.

    Raises:
        sqlalchemy.exc.IntegrityError: the database refuses a row, and with it all.
    """
    if not rows:
        return
    _insertion(type(rows[0]), tell).many(session, [_complete(row) for row in rows])


def new_row(table: type[_Row], **values: Any) -> _Row:  # noqa: ANN401 - of any column
    """A row to be added by `add_rows`, made past the watch over attributes, which takes longer than to send it.

    What is not said of it is its default or nothing already, but for defaults that are made for each row.

    Raises:
        TypeError: the table has no such attribute.
    """
    if not values.keys() <= _names(table):
        raise TypeError(sorted(values.keys() - _names(table)))
    row = cast("_Row", table.__mapper__.class_manager.new_instance())
    row.__dict__.update(_defaults(table))
    row.__dict__.update(values)
    return row


def _complete(row: Table) -> dict[str, Any]:
    """All values of a new row by column; what was not said of it becomes its default, or nothing."""
    said = row.__dict__  # as `new_row`
    values: dict[str, Any] = {}
    for name, key, default in _columns(type(row)):
        if name not in said:
            said[name] = _default(default)
        values[key] = said[name]
    return values


@cache
def _names(table: type[Table]) -> frozenset[str]:
    return frozenset(name for name, *_ in _columns(table))


@cache
def _defaults(table: type[Table]) -> dict[str, Any]:
    return {
        name: _default(default)
        for name, _, default in _columns(table)
        if not isinstance(default, CallableColumnDefault)
    }


@cache
def _columns(table: type[Table]) -> list[tuple[str, str, object]]:
    """Of each column the attribute, the name and the default."""
    return [(name, column.key, column.default) for name, column in table.__mapper__.columns.items()]


def _default(default: object) -> Any:  # noqa: ANN401 - of any column
    if isinstance(default, CallableColumnDefault):
        return default.arg(cast("Any", None))  # made outside of any statement
    return default.arg if isinstance(default, ScalarElementColumnDefault) else None


@cache
def _insertion(into: type[Table], tell: tuple[str, str] | None) -> Prepared:
    """Of all columns of a table but those that count by themselves."""
    statement = insert(into.metadata.tables[into.__tablename__])
    return Prepared(statement if tell is None else statement.returning(func.pg_notify(*tell)))


def _written(kind: TypeEngine[Any]) -> Callable[[Any], str]:
    """How a value of a type is written in PostgreSQL's text form; none of these writes NUL."""
    if isinstance(kind, JSONB):
        return json.dumps
    if isinstance(kind, ARRAY):
        return (lambda value: _text(array_of_text(value))) if isinstance(kind.item_type, Text) else array
    if isinstance(kind, LargeBinary):
        return lambda value: f"\\x{value.hex()}"
    return next((write for known, write in _WRITTEN if isinstance(kind, known)), _text)


def _text(value: object) -> str:
    text = str(value)
    if "\0" in text:
        raise psycopg.DataError("PostgreSQL's text cannot hold NUL")  # libpq would send what stands before it
    return text


def _reading(kind: TypeEngine[Any]) -> Callable[[str], Any]:
    if isinstance(kind, ARRAY) and isinstance(kind.item_type, Uuid | Integer):
        read = _reading(kind.item_type)
        return lambda text: [read(part) for part in text[1:-1].split(",") if part]
    return next(read for known, read in _READ if isinstance(kind, known))


def _forget(connection: Connection, *_: object) -> None:
    """A rollback is coming, after which psycopg has nothing prepared there any more; it leaves out an empty one."""
    if connection.invalidated:
        return
    found = cast("Driver", connection.connection.driver_connection)
    if found.closed or found.pgconn.transaction_status != TransactionStatus.IDLE:
        connection.info.pop(_KNOWN, None)


event.listen(Engine, "rollback", _forget)
event.listen(Engine, "rollback_savepoint", _forget)
