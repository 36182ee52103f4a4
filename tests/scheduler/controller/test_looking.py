"""What is asked of all jobs again and again finds the live ones without passing those that have ended."""

import pytest
from sqlalchemy import ColumnElement, select, text
from sqlalchemy.dialects import postgresql

from kernel.database import transaction
from scheduler.tables import JobRow
from tests.scheduler.controller.counted import Centre


@pytest.mark.parametrize(
    ("which", "index"),
    [
        (JobRow.state.in_(("starting", "running", "stopping")), "ix_jobs_live"),
        (JobRow.state == "queued", "ix_jobs_live"),
        (JobRow.ended_at.is_(None), "ix_jobs_live_tenant_id"),
    ],
)
def test_live_jobs_are_found_by_an_index_of_their_own(
    centre: Centre, which: ColumnElement[bool], index: str
) -> None:
    asked = select(JobRow.id).where(which)
    spelled = asked.compile(dialect=postgresql.dialect(), compile_kwargs={"literal_binds": True})
    with transaction(centre.engine) as session:
        session.execute(text("SET LOCAL enable_seqscan = off"))
        plan = session.scalars(text(f"EXPLAIN {spelled}")).all()
    assert any(f" {index} " in line for line in plan), plan
