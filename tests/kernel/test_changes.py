"""Changed rows are written in one statement for all alike; what is gone or refused is not passed over."""

from typing import Final

import pytest
from sqlalchemy import Engine, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import DetachedInstanceError, StaleDataError

from kernel.changes import Loose, write_changes
from kernel.clock import utc_now
from kernel.database import transaction
from kernel.ids import new_id
from kernel.prepared import Prepared
from scheduler.tables import JobRow, NodeRow

NODE: Final = Loose(NodeRow, "name", "state", "host_id", "cpu_milli", "drain_by", "admits", "labels")
NODES: Final = Prepared(select(*NODE.columns, func.length(NodeRow.name)).order_by(NodeRow.name))
JOB: Final = Loose(JobRow, "id", "lost_attempts", "argv", "secrets", "ended_at")
JOBS: Final = Prepared(select(*JOB.columns))


def node(name: str) -> NodeRow:
    """A node of which nothing is said that has a default."""
    now = utc_now()
    said = {"state": "up", "labels": {}, "cpu_milli": 1, "memory_mib": 1, "isolation": {}}
    return NodeRow(name=name, host_id=name, joined_at=now, last_seen_at=now, **said)


def nodes(session: Session) -> list[NodeRow]:
    return NODE.rows(NODES(session))


def test_changed_rows_are_written_whatever_their_values(engine: Engine) -> None:
    said = ["", 'a "b" \\ {c,d}', "NULL", "é\n\t'", "plain"]
    now = utc_now()
    with transaction(engine) as session:
        session.add_all([node(str(number)) for number in range(6)])
    with transaction(engine) as session:
        rows = nodes(session)
        for row, sentence in zip(rows, said, strict=False):
            row.host_id, row.cpu_milli, row.drain_by, row.admits = sentence, len(sentence), now, "draining"
        rows[4].drain_by = None
        rows[5].labels = {"rack": '[1] "{x}"'}
        write_changes(session, rows)
    with transaction(engine) as session:
        found = nodes(session)
        assert [row.host_id for row in found] == [*said, "5"]
        assert [row.cpu_milli for row in found] == [*map(len, said), 1]
        assert [row.drain_by for row in found] == [now, now, now, now, None, None]
        assert [row.labels for row in found] == [{}] * 5 + [{"rack": '[1] "{x}"'}]


def test_lists_are_read_and_written_each_as_one(engine: Engine) -> None:
    words = ['a "b" {c,d}', "", "NULL", "\\é\n"]
    with transaction(engine) as session:
        for _ in range(2):
            session.add(_job(words))
    with transaction(engine) as session:
        rows = JOB.rows(JOBS(session))
        assert [(row.argv, row.secrets, row.lost_attempts) for row in rows] == [(words, [], [])] * 2
        rows[0].lost_attempts, rows[1].lost_attempts = [1, 2], []
        write_changes(session, rows)
    with transaction(engine) as session:
        assert sorted(row.lost_attempts for row in JOB.rows(JOBS(session))) == [[], [1, 2]]


def test_what_was_written_and_is_taken_back_is_written_again(engine: Engine) -> None:
    with transaction(engine) as session:
        session.add_all([node("a")])
    with transaction(engine) as session:
        (row,) = rows = nodes(session)
        row.cpu_milli, row.host_id = 2, "other"
        write_changes(session, rows)
        row.cpu_milli = 1
        write_changes(session, rows)
    with transaction(engine) as session:
        assert [(row.cpu_milli, row.host_id) for row in nodes(session)] == [(1, "other")]


def test_what_was_not_read_cannot_be_asked_for_and_no_session_writes_the_rest(engine: Engine) -> None:
    with transaction(engine) as session:
        session.add_all([node("a")])
    with transaction(engine) as session:
        (row,) = nodes(session)
        row.cpu_milli = 2
        session.flush()
        with pytest.raises(DetachedInstanceError):
            assert row.memory_mib
    with transaction(engine) as session:
        assert [row.cpu_milli for row in nodes(session)] == [1]


def test_a_changed_row_that_is_gone_or_refused_is_not_passed_over(engine: Engine) -> None:
    with transaction(engine) as session:
        session.add_all([node("a"), node("b")])
    with pytest.raises(StaleDataError), transaction(engine) as session:
        rows = nodes(session)
        session.execute(update(NodeRow).where(NodeRow.name == "a").values(name="c"))
        rows[0].cpu_milli = 2
        write_changes(session, rows)
    with pytest.raises(IntegrityError), transaction(engine) as session:
        rows = nodes(session)
        rows[0].state, rows[1].state = "down", "nowhere"
        write_changes(session, rows)
    with transaction(engine) as session:
        assert [row.state for row in nodes(session)] == ["up", "up"]


def _job(words: list[str]) -> JobRow:
    numbers = dict.fromkeys(
        ("cpu_milli", "memory_mib", "time_limit_ms", "grace_ms", "priority", "max_retries", "attempt"), 0
    )
    words_of = dict.fromkeys(("name", "reason", "kind", "environment", "network"), "")
    return JobRow(
        id=new_id(), tenant_id=new_id(), submitted_by=new_id(), state="queued", argv=words, env={}, models=[],
        node_count=1, devices_per_node=1, slots_milli=1, queued_at=utc_now(), **numbers, **words_of,
    )  # fmt: skip
