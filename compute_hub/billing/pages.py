"""What the biller asks every second though mostly nothing is due: statements made once and prepared in a connection."""

from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

from sqlalchemy import ColumnElement, Integer, Select, Uuid, bindparam
from sqlalchemy.orm import Session

from kernel.prepared import Prepared

AFTER: Final = bindparam("after", type_=Uuid)
"""The last job of the page before."""


class Pages:
    """Jobs that are due, in order, a page at a time.

    Args:
        query: their ids.
        behind: which of them come after the job `AFTER`.
    """

    def __init__(self, query: Select[UUID], behind: ColumnElement[bool]) -> None:
        page = query.limit(bindparam("limit", type_=Integer))
        self._first = Prepared(page)
        self._next = Prepared(page.where(behind))

    def __call__(self, session: Session, limit: int, after: UUID | None, **values: Any) -> Sequence[UUID]:  # noqa: ANN401 - of any type
        """The page behind a job, or the first one."""
        if after is None:
            rows = self._first(session, limit=limit, **values)
        else:
            rows = self._next(session, limit=limit, after=after, **values)
        return [job_id for (job_id,) in rows]
