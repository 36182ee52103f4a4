"""Sums over tables that only grow, without adding up the whole past at every look.

Rows are summed by the instant they were written with. What is older than an hour cannot change any more (a
transaction that long is ended by the server), so it is added up once and remembered; only the last hours are read
again. Invariant: the sums never decrease and equal those over the whole table.
"""

from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import text
from sqlalchemy.orm import Session

_SETTLES: Final = timedelta(hours=1)
_FOLD_AFTER: Final = timedelta(hours=2)
_BEGINNING: Final = datetime(1970, 1, 1, tzinfo=UTC)

Key = tuple[str, ...]
Sums = dict[Key, tuple[float, ...]]


class History:
    """Sums of one query by key.

    Args:
        query: takes `:since` and `:until` (`since < instant <= until`) and yields `keys` columns of text, then
            columns to be added up.
        keys: how many of the columns are the key.
    """

    def __init__(self, query: str, *, keys: int) -> None:
        self._query = text(query)
        self._keys = keys
        self._settled: Sums = {}
        self._settled_until = _BEGINNING

    def sums(self, session: Session, at: datetime) -> Sums:
        """The sums over everything written so far, by key in order."""
        settled, until = self._settled, self._settled_until
        if at - until > _FOLD_AFTER:
            until = at - _SETTLES
            settled = _added(settled, self._read(session, self._settled_until, until))
        everything = _added(settled, self._read(session, until, datetime.max.replace(tzinfo=UTC)))
        self._settled, self._settled_until = settled, until
        return dict(sorted(everything.items()))

    def _read(
        self, session: Session, since: datetime, until: datetime
    ) -> Iterator[tuple[Key, tuple[float, ...]]]:
        for row in session.execute(self._query, {"since": since, "until": until}):
            yield (
                tuple([str(value) for value in row[: self._keys]]),
                tuple([float(v) for v in row[self._keys :]]),
            )


def _added(sums: Sums, rows: Iterator[tuple[Key, tuple[float, ...]]]) -> Sums:
    total: defaultdict[Key, tuple[float, ...]] = defaultdict(tuple, sums)
    for key, values in rows:
        before = total[key]
        total[key] = tuple([a + b for a, b in zip(before, values, strict=True)]) if before else values
    return dict(total)
