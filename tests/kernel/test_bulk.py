"""Rows that are written without the unit of work."""

import psycopg
import pytest
from sqlalchemy import Engine
from sqlalchemy.exc import IntegrityError

from kernel.bulk import add_rows
from kernel.clock import utc_now
from kernel.database import transaction
from scheduler.tables import NodeRow


def node(name: str) -> NodeRow:
    """A node of which nothing is said that has a default."""
    now = utc_now()
    said = {"state": "up", "labels": {}, "cpu_milli": 1, "memory_mib": 1, "isolation": {}}
    return NodeRow(name=name, host_id=name, joined_at=now, last_seen_at=now, **said)


def test_new_rows_are_there_at_once_with_their_defaults_and_are_the_sessions_own(engine: Engine) -> None:
    with transaction(engine) as session:
        first, second = node("a"), node("b")
        add_rows(session, [first, second])
        assert session.get(NodeRow, "a", populate_existing=True) is first
        assert (first.own_labels, second.own_labels) == ({}, {})
        assert first.own_labels is not second.own_labels
        second.cpu_milli = 2
    with transaction(engine) as session:
        assert [session.get_one(NodeRow, name).cpu_milli for name in ("a", "b")] == [1, 2]


def test_who_listens_hears_of_new_rows_once_when_they_are_committed(engine: Engine) -> None:
    url = engine.url
    with psycopg.connect(
        host=str(url.query["host"]), user=url.username, dbname=url.database, autocommit=True
    ) as ear:
        ear.execute("LISTEN rows")
        with transaction(engine) as session:
            add_rows(session, [node("a"), node("b")], tell=("rows", "new"))
            assert list(ear.notifies(timeout=0)) == []
        assert [heard.payload for heard in ear.notifies(timeout=10, stop_after=1)] == ["new"]
        assert list(ear.notifies(timeout=0)) == []


def test_a_row_that_the_database_refuses_is_refused_as_ever(engine: Engine) -> None:
    with transaction(engine) as session:
        add_rows(session, [node("a")])
    with pytest.raises(IntegrityError), transaction(engine) as session:
        add_rows(session, [node("b"), node("a")])
    with transaction(engine) as session:
        assert session.get(NodeRow, "b") is None
