"""Changed rows written in one statement for all alike, where the unit of work sends one for each row.

Invariant: the session knows what was written as if it had written it, so that taking it back is noticed, too.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import cache
from typing import Any, Final

from sqlalchemy import Text, inspect
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import Session, attributes
from sqlalchemy.orm.exc import StaleDataError
from sqlalchemy.types import TypeEngine

from kernel.bulk import array, array_of_text, driver
from kernel.database import Table

_COMPOUND: Final = (ARRAY, JSONB, postgresql.ranges.AbstractRange)
"""Of columns that are more than one value each: an array of arrays would be taken apart."""


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
