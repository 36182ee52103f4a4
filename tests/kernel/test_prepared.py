"""Statements that are prepared once in a connection, and rows that are written with them."""

from decimal import Decimal
from uuid import UUID

import psycopg
import pytest
from sqlalchemy import (
    BigInteger,
    Boolean,
    DateTime,
    Engine,
    Integer,
    LargeBinary,
    Numeric,
    Text,
    Uuid,
    bindparam,
    func,
    literal,
    select,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.exc import DBAPIError, IntegrityError, PendingRollbackError
from sqlalchemy.orm import Session

from kernel.clock import utc_now
from kernel.database import glance, picture, transaction
from kernel.ids import new_id
from kernel.prepared import Prepared, add_rows, asked_once, new_row
from scheduler.tables import NodeRow

_NODES = Prepared(select(NodeRow.name).where(NodeRow.cpu_milli >= bindparam("least")).order_by(NodeRow.name))


def node(name: str) -> NodeRow:
    """A node of which nothing is said that has a default."""
    now = utc_now()
    said = {"state": "up", "labels": {}, "cpu_milli": 1, "memory_mib": 1, "isolation": {}}
    return NodeRow(name=name, host_id=name, joined_at=now, last_seen_at=now, **said)


def test_new_rows_are_there_at_once_with_their_defaults(engine: Engine) -> None:
    with transaction(engine) as session:
        first, second = node("a"), node("b")
        add_rows(session, [first, second])
        assert session.get_one(NodeRow, "a").admits == first.admits == "open"
        assert (first.own_labels, second.own_labels) == ({}, {})
        assert first.own_labels is not second.own_labels
    with transaction(engine) as session:
        assert [session.get_one(NodeRow, name).cpu_milli for name in ("a", "b")] == [1, 1]


def test_a_row_is_made_of_known_attributes_only(engine: Engine) -> None:
    row, now = node("a"), utc_now()
    facts = {name: getattr(row, name) for name in ("host_id", "state", "labels", "cpu_milli", "isolation")}
    with transaction(engine) as session:
        made = new_row(NodeRow, name="a", memory_mib=1, joined_at=now, last_seen_at=now, **facts)
        assert (made.admits, made.host_id) == ("open", "a")
        add_rows(session, [made])
        found = session.get_one(NodeRow, "a")
        assert (found.admits, found.last_seen_at, found.own_labels) == (made.admits, now, made.own_labels)
        with pytest.raises(TypeError, match="memory_mb"):
            new_row(NodeRow, name="b", memory_mb=1)


def test_a_session_is_asked_for_its_connection_in_every_transaction_and_after_what_failed(
    engine: Engine,
) -> None:
    with Session(engine) as session:
        add_rows(session, [node("a")])
        session.commit()
        with transaction(engine) as other:  # has the connection that the session gave back
            assert _NODES(session, least=1) == _NODES(other, least=1) == [("a",)]
        session.add(node("a"))
        with pytest.raises(IntegrityError):
            session.flush()
        with pytest.raises(PendingRollbackError):
            _NODES(session, least=1)
        session.rollback()
        assert _NODES(session, least=1) == [("a",)]


def test_for_a_while_what_was_asked_is_not_asked_again(engine: Engine) -> None:
    with transaction(engine) as session:
        add_rows(session, [node("a")])
    with transaction(engine) as session:
        with asked_once(session):
            assert _NODES(session, least=1) == [("a",)]
            with transaction(engine) as other:
                add_rows(other, [node("b")])
            assert _NODES(session, least=1) == [("a",)]
            assert _NODES(session, least=0) == [("a",), ("b",)]
            _NODES(session, least=1).clear()
            assert _NODES(session, least=1) == [("a",)]
        assert _NODES(session, least=1) == [("a",), ("b",)]
        with pytest.raises(ZeroDivisionError), asked_once(session):
            _ = _NODES(session, least=1), 1 // 0
        add_rows(session, [node("c")])
        assert _NODES(session, least=1) == [("a",), ("b",), ("c",)]


def test_what_fails_in_a_nested_transaction_that_asks_nothing_else_takes_nothing_else_with_it(
    engine: Engine,
) -> None:
    with transaction(engine) as session:
        add_rows(session, [node("a")])
        for name in ("b", "c"):
            with pytest.raises(IntegrityError), session.begin_nested():
                add_rows(session, [node(name), node("a")])
        with session.begin_nested():
            add_rows(session, [node("d")])
            with pytest.raises(IntegrityError), session.begin_nested():
                add_rows(session, [node("e"), node("d")])
            assert _NODES(session, least=1) == [("a",), ("d",)]
        assert _NODES(session, least=1) == [("a",), ("d",)]
    with transaction(engine) as session:
        assert _NODES(session, least=1) == [("a",), ("d",)]


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


def test_values_of_every_kind_come_back_as_they_were_given(engine: Engine) -> None:
    now, some = utc_now(), new_id()
    given = {
        "uuid": (Uuid(), some),
        "big": (BigInteger(), -(2**60)),
        "small": (Integer(), 7),
        "text": (Text(), "a \"b\" \\ \t é 'c' $1 %s {}"),
        "json": (JSONB(), {"a": [1, None, "ü\n"], "b": {"c": False}}),
        "at": (DateTime(timezone=True), now),
        "yes": (Boolean(), True),
        "no": (Boolean(), False),
        "number": (Numeric(), Decimal("12.340")),
        "empty": (Text(), ""),
    }
    asked = Prepared(select(*(literal(value, kind).label(name) for name, (kind, value) in given.items())))
    named = Prepared(select(*(bindparam(name, type_=kind).label(name) for name, (kind, _) in given.items())))
    with transaction(engine) as session:
        (said,) = asked(session)
        (answered,) = named(session, **{name: value for name, (_, value) in given.items()})
        (nothing,) = named(session, **dict.fromkeys(given))
    assert said == answered == tuple(value for _, value in given.values())
    assert [type(value) for value in answered] == [type(value) for _, value in given.values()]
    assert nothing == (None,) * len(given)


def test_lists_and_bytes_arrive_whole(engine: Engine) -> None:
    texts, ids = ["a,b", 'say "x"', "\\", "NULL", ""], [new_id(), new_id()]
    asked = Prepared(
        select(
            func.to_jsonb(bindparam("texts", type_=ARRAY(Text)), type_=JSONB),
            func.to_jsonb(bindparam("ids", type_=ARRAY(Uuid)), type_=JSONB),
            func.to_jsonb(bindparam("none", type_=ARRAY(Uuid)), type_=JSONB),
            bindparam("ids", type_=ARRAY(Uuid)),
            bindparam("none", type_=ARRAY(Uuid)),
            func.encode(bindparam("bytes", type_=LargeBinary), "hex", type_=Text),
        )
    )
    with transaction(engine) as session:
        ((found_texts, found_ids, none, *lists, found_bytes),) = asked(
            session, texts=texts, ids=ids, none=[], bytes=b"\x00\xff'"
        )
    assert (found_texts, list(map(UUID, found_ids)), none, found_bytes) == (texts, ids, [], "00ff27")
    assert lists == [ids, []]


def test_what_libpq_would_cut_short_or_nobody_said_is_refused(engine: Engine) -> None:
    echo = Prepared(select(bindparam("said", type_=Text)))
    several = Prepared(select(func.cardinality(bindparam("said", type_=ARRAY(Text)))))
    with transaction(engine) as session:
        assert echo(session, said="whole") == [("whole",)]
        with pytest.raises(DBAPIError, match="NUL"):
            echo(session, said="who\x00le")
        with pytest.raises(DBAPIError, match="NUL"):
            several(session, said=["whole", "who\x00le"])
        with pytest.raises(KeyError, match="said"):
            echo(session, sayd="whole")


def test_a_statement_is_asked_for_again_after_every_way_in_which_a_connection_may_have_forgotten_it(
    engine: Engine,
) -> None:
    def ask(session: Session) -> None:
        for _ in range(7):  # psycopg has prepared it, too, by then, and so has something to forget
            session.scalars(select(NodeRow.name)).all()
        assert _NODES(session, least=1) == [("a",)]

    with transaction(engine) as session:
        add_rows(session, [node("a")])
    with Session(engine) as session:
        ask(session)
        session.rollback()
        ask(session)
        nested = session.begin_nested()
        ask(session)
        nested.rollback()
        ask(session)
    with pytest.raises(DBAPIError), transaction(engine) as session:
        ask(session)
        _NODES(session, least=10**30)
    with picture(engine) as session:
        ask(session)
    with glance(engine) as session:
        ask(session)
        with pytest.raises(DBAPIError):
            _NODES(session, least=10**30)
        ask(session)
    engine.dispose()
    with transaction(engine) as session:
        ask(session)


def test_what_is_asked_first_begins_the_transaction_as_its_session_would(engine: Engine) -> None:
    level = Prepared(select(func.current_setting("transaction_isolation", type_=Text)))
    with Session(engine) as session:
        session.add(node("a"))
        assert _NODES(session, least=1) == [("a",)]
        assert level(session) == [("read committed",)]
        session.rollback()
        assert _NODES(session, least=1) == []
    with picture(engine) as session:
        assert level(session) == [("repeatable read",)]
        with pytest.raises(DBAPIError, match="read-only"):
            add_rows(session, [node("b")])
    with glance(engine) as session:
        assert _NODES(session, least=1) == []
        add_rows(session, [node("c")])
    with transaction(engine) as session:
        assert _NODES(session, least=1) == [("c",)]


def test_a_connection_that_the_server_ended_is_given_up_and_the_next_one_asked(engine: Engine) -> None:
    with pytest.raises(DBAPIError) as caught, transaction(engine) as session:
        own = session.scalar(select(func.pg_backend_pid()))
        with engine.connect() as other:
            other.execute(select(func.pg_terminate_backend(own)))
        _NODES(session, least=1)
    assert caught.value.connection_invalidated
    with transaction(engine) as session:
        assert _NODES(session, least=1) == []


def test_what_is_asked_alone_is_a_transaction_of_its_own_and_leaves_none_behind(engine: Engine) -> None:
    which = Prepared(select(func.pg_current_xact_id(type_=Text)))
    with transaction(engine) as session:
        add_rows(session, [node("a")])
        assert _NODES.alone(engine, least=1) == []
    assert _NODES.alone(engine, least=1) == [("a",)]
    assert which.alone(engine) != which.alone(engine)
    with transaction(engine) as session:
        assert which(session) == which(session)
    with pytest.raises(DBAPIError):
        _NODES.alone(engine, least=10**30)
    assert _NODES.alone(engine, least=1) == [("a",)]
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined] # of this pool
