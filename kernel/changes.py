"""Rows that are read, changed and written back many at a time, past the unit of work: a statement for all alike.

Such a row is an object of its table that no session knows: nothing is written of it but by `write_changes`, and what
was not read of it cannot be asked for.
"""

import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import cache, cached_property
from typing import Any, Final, Generic, TypeVar

from sqlalchemy import Text, func, inspect, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import Session, configure_mappers
from sqlalchemy.orm.exc import StaleDataError
from sqlalchemy.types import TypeEngine

from kernel.bulk import array, array_of_text
from kernel.database import Table
from kernel.prepared import Prepared

_T = TypeVar("_T", bound=Table)
_COMPOUND: Final = (ARRAY, JSONB)
"""Of columns that are more than one value each: an array of arrays would be taken apart, so each is sent as a text."""


class Loose(Generic[_T]):
    """Some columns of a table, whose rows are read as objects of it that no session knows.

    Args:
        table: the table.
        names: of the attributes to be read, the key's among them; asking a row for another one raises
            sqlalchemy.orm.exc.DetachedInstanceError.
    """

    def __init__(self, table: type[_T], *names: str) -> None:
        self._table, self._names = table, names

    @cached_property
    def columns(self) -> list[Any]:
        """What to select, in the form in which a prepared statement can answer it."""
        found = [getattr(self._table, name) for name in self._names]
        return [func.to_jsonb(column, type_=JSONB) if _of_texts(column.type) else column for column in found]

    def rows(self, found: Iterable[Sequence[Any]]) -> list[_T]:
        """What was found of these columns, row by row; values after them are left."""
        new, names, absent = self._table.__mapper__.class_manager.new_instance, self._names, self._absent
        rows = []
        for values in found:
            row: _T = new()
            row.__dict__.update(zip(names, values, strict=False))
            state = inspect(row)
            state.key = (self._table, tuple(row.__dict__[name] for name in self._key), None)
            state.expired_attributes.update(absent)
            rows.append(row)
        return rows

    @cached_property
    def _absent(self) -> frozenset[str]:
        configure_mappers()
        return frozenset(self._table.__mapper__.columns.keys()) - set(self._names)

    @cached_property
    def _key(self) -> tuple[str, ...]:
        return tuple(column.name for column in self._table.__mapper__.primary_key)


def write_changes(session: Session, rows: Iterable[Table]) -> None:
    """Write what changed of loose rows of one table since they were read or written, in one statement for all alike.

    Rows are alike when the same attributes were changed.

    Raises:
        sqlalchemy.exc.DBAPIError: the database refuses a row, and with it all.
        sqlalchemy.orm.exc.StaleDataError: a row is no longer there.
    """
    groups: dict[tuple[str, ...], list[Table]] = {}
    for row in rows:
        if names := _changed(row):
            groups.setdefault(names, []).append(row)
    for names, some in groups.items():
        table = type(some[0])
        statement, keys = _update(table, names)
        columns = table.__mapper__.columns
        values = {name: _form(columns[name].type, [getattr(row, name) for row in some]) for name in keys}
        written = len(statement(session, **values))
        if written != len(some):
            message = f"of {len(some)} rows of {table.__tablename__} {written} are there"
            raise StaleDataError(message)
        for row in some:
            inspect(row).committed_state.clear()


def _changed(row: Table) -> tuple[str, ...]:
    """The attributes that are not as they were read or written."""
    now = row.__dict__
    return tuple(sorted(name for name, value in inspect(row).committed_state.items() if now[name] != value))


@cache
def _update(table: type[Table], names: tuple[str, ...]) -> tuple[Prepared, tuple[str, ...]]:
    """A statement that sets these attributes of many rows, and the attributes whose arrays it takes."""
    columns, dialect = table.__mapper__.columns, postgresql.dialect()  # type: ignore[no-untyped-call] # of SQLAlchemy
    key = [column.name for column in table.__mapper__.primary_key]
    keys = (*key, *names)
    kinds = {name: columns[name].type.compile(dialect) for name in keys}
    whole = {name for name in keys if isinstance(columns[name].type, _COMPOUND)}
    arrays = ", ".join(f"CAST(:{name} AS {'TEXT' if name in whole else kinds[name]}[])" for name in keys)
    named = ", ".join(f'"{columns[name].name}"' for name in keys)
    values = ", ".join(
        f'"{columns[name].name}" = CAST(u."{columns[name].name}" AS {kinds[name]})' for name in names
    )
    same = " AND ".join(f't."{name}" = u."{name}"' for name in key)
    return Prepared(
        text(
            f"UPDATE {table.__tablename__} AS t SET {values} FROM unnest({arrays}) AS u({named}) WHERE {same} "  # noqa: S608 - names of our own tables only
            "RETURNING 1"
        )
    ), keys


def _form(kind: TypeEngine[Any], values: Sequence[Any]) -> str:
    """A column of values as one array in PostgreSQL's text form."""
    if isinstance(kind, Text):
        return array_of_text(values)
    if isinstance(kind, ARRAY):
        return array_of_text(None if value is None else array(value) for value in values)
    if isinstance(kind, JSONB):
        return array_of_text(None if value is None else json.dumps(value) for value in values)
    return array(value.isoformat() if isinstance(value, datetime) else value for value in values)


def _of_texts(kind: TypeEngine[Any]) -> bool:
    return isinstance(kind, ARRAY) and isinstance(kind.item_type, Text)
