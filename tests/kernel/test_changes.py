"""Changed rows that are written together."""

import pytest
from sqlalchemy import Engine, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm.exc import StaleDataError

from kernel.changes import write_changes
from kernel.clock import utc_now
from kernel.database import transaction
from scheduler.tables import NodeRow


def node(name: str) -> NodeRow:
    """A node of which nothing is said that has a default."""
    now = utc_now()
    said = {"state": "up", "labels": {}, "cpu_milli": 1, "memory_mib": 1, "isolation": {}}
    return NodeRow(name=name, host_id=name, joined_at=now, last_seen_at=now, **said)


def test_changed_rows_are_written_whatever_their_values_and_the_session_knows_that_they_are(
    engine: Engine,
) -> None:
    said = ["", 'a "b" \\ {c,d}', "NULL", "é\n\t'", "plain"]
    now = utc_now()
    with transaction(engine) as session:
        session.add_all([node(str(number)) for number in range(6)])
    with transaction(engine) as session:
        rows = [session.get_one(NodeRow, str(number)) for number in range(6)]
        for row, sentence in zip(rows, said, strict=False):
            row.host_id, row.cpu_milli, row.drain_by, row.admits = sentence, len(sentence), now, "draining"
        rows[4].drain_by = None
        rows[5].labels = {"rack": "[1]"}
        write_changes(session, rows)
        assert not session.dirty
    with transaction(engine) as session:
        found = [session.get_one(NodeRow, str(number)) for number in range(6)]
        assert [row.host_id for row in found] == [*said, "5"]
        assert [row.cpu_milli for row in found] == [*map(len, said), 1]
        assert [row.drain_by for row in found] == [now, now, now, now, None, None]
        assert found[5].labels == {"rack": "[1]"}


def test_changes_that_are_taken_back_are_forgotten_by_the_session_too(engine: Engine) -> None:
    with transaction(engine) as session:
        session.add_all([node("a")])
    with transaction(engine) as session:
        row = session.get_one(NodeRow, "a")
        step = session.begin_nested()
        row.cpu_milli = 2
        write_changes(session, [row])
        step.rollback()
        assert row.cpu_milli == 1


def test_a_changed_row_that_is_gone_or_refused_is_not_passed_over(engine: Engine) -> None:
    with transaction(engine) as session:
        session.add_all([node("a"), node("b")])
    with pytest.raises(StaleDataError), transaction(engine) as session:
        row = session.get_one(NodeRow, "a")
        gone = update(NodeRow).where(NodeRow.name == "a").values(name="c")
        session.execute(gone.execution_options(synchronize_session=False))
        row.cpu_milli = 2
        write_changes(session, [row])
    with pytest.raises(IntegrityError), transaction(engine) as session:
        rows = [session.get_one(NodeRow, name) for name in ("a", "b")]
        rows[0].state, rows[1].state = "down", "nowhere"
        write_changes(session, rows)
    with transaction(engine) as session:
        assert [session.get_one(NodeRow, name).state for name in ("a", "b")] == ["up", "up"]
