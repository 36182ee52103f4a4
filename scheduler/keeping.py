"""How long what jobs left is kept in the workspace store, and who goes first when its disk fills.

A job's files are the working directories of its attempts and its checkpoints; its logs lie beside them and outlive
them. All lie on the file system that nodes and API share, so they are there when the node is gone.

Invariants: of a job that has not ended only working directories of attempts that another one followed go, and none
before all its runs are known to be dead; nothing goes before its least time; a job says when its files or logs went.
"""

import enum
import heapq
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Final
from uuid import UUID

import structlog
from sqlalchemy import Engine, func, select, update
from sqlalchemy.orm import Session

from kernel.clock import unix_ms
from kernel.database import transaction
from scheduler.node.removing import BIN, emptying, open_bin, put_aside
from scheduler.tables import JobRow, RunRow

AT_ONCE: Final = 10_000
"""Removals of one sweep, and of each part those that are remembered as the oldest."""

_LOOK_UP: Final = 500
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CHECKPOINTS: Final = "checkpoints"

_log = structlog.get_logger(__name__)


class Part(enum.IntEnum):
    """What of a job is removed, in this order when the disk is full."""

    FILES = 0
    LOGS = 1


@dataclass(frozen=True)
class Terms:
    """For how long.

    Args:
        files_kept_ms: working directories and checkpoints, after the end of the job, or of a followed attempt.
        logs_kept_ms: logs, after the end of the job.
        least_kept_ms: everything, however full the disk is.
        full_percent: of the file system in use; above it the oldest go before their time.
    """

    files_kept_ms: int
    logs_kept_ms: int
    least_kept_ms: int
    full_percent: int

    def over(self, part: Part) -> int:
        """How long a part is kept when there is room."""
        return self.files_kept_ms if part is Part.FILES else self.logs_kept_ms


@dataclass(frozen=True, order=True)
class Spent:
    """What may go: a part of a job that has ended, or (`attempt` > 0) the working directories of an earlier attempt."""

    part: Part
    ended_ms: int
    job_id: UUID
    attempt: int
    tenant_id: UUID


@dataclass
class Swept:
    """What a sweep did; `more` when there may be more to do at once."""

    removed: int = 0
    before_time: int = 0
    more: bool = False


def used_percent(folder: int) -> int:
    """How full its file system is for ordinary users, by bytes or by files, whichever is more."""
    found = os.fstatvfs(folder)
    used = found.f_blocks - found.f_bfree
    of_bytes = used * 100 // max(1, used + found.f_bavail)
    files = found.f_files - found.f_ffree
    return max(of_bytes, files * 100 // max(1, files + found.f_favail)) if found.f_files else of_bytes


def sweep(
    engine: Engine, root: Path, terms: Terms, at: datetime, used: Callable[[int], int] = used_percent
) -> Iterator[Swept]:
    """Remove what is over its time, and the oldest as long as a disk is too full.

    Yields what was done so far wherever others may have their turn; may be broken off and begun anew anywhere.

    Args:
        engine: of the application role.
        root: of the workspaces.
        terms: for how long.
        at: now.
        used: reads how full the file system of an open folder is.
    """
    swept = Swept()
    yield from _end_what_was_begun(root, swept)
    oldest: dict[Part, list[Spent]] = {part: [] for part in Part}
    for spent in _survey(engine, root, unix_ms(at) - terms.least_kept_ms):
        if spent is None:
            yield swept
            continue
        found = oldest[spent.part]
        found.append(spent)
        if len(found) >= 2 * AT_ONCE:
            oldest[spent.part] = heapq.nsmallest(AT_ONCE, found)
    for part in Part:
        for spent in sorted(oldest[part])[:AT_ONCE]:
            timely = unix_ms(at) - spent.ended_ms >= terms.over(part)
            with _opened(root, str(spent.tenant_id)) as tenant:
                if tenant is None or not (timely or used(tenant) >= terms.full_percent):
                    continue
                yield from _remove(engine, tenant, spent, at, swept)
            swept.removed += 1
            swept.before_time += not timely
    swept.more = max(map(len, oldest.values())) >= AT_ONCE and swept.removed > 0
    yield swept


def _end_what_was_begun(root: Path, swept: Swept) -> Iterator[Swept]:
    for tenant_id in _ids(root):
        with _opened(root, tenant_id, BIN) as bin_:
            if bin_ is not None:
                for _ in emptying(bin_):
                    yield swept


def _survey(engine: Engine, root: Path, until_ms: int) -> Iterator[Spent | None]:
    """All that may go and ended by then; None wherever others may have their turn."""
    for tenant_id in _ids(root):
        names = _ids(root / tenant_id)
        while ids := [UUID(name) for name in islice(names, _LOOK_UP)]:
            with transaction(engine) as session:
                found = [*_ended(session, UUID(tenant_id), ids), *_followed(session, UUID(tenant_id), ids)]
            yield from (one for one in found if one.ended_ms <= until_ms and _holds_something(root, one))
            yield None


def _ended(session: Session, tenant_id: UUID, ids: Sequence[UUID]) -> Iterator[Spent]:
    """Of these jobs, those that have ended, with what is left of each."""
    rows = session.execute(
        select(JobRow.id, JobRow.ended_at, JobRow.files_removed_at).where(
            JobRow.id.in_(ids), JobRow.tenant_id == tenant_id, JobRow.ended_at.is_not(None)
        )
    )
    for job_id, ended_at, files_removed_at in rows:
        assert ended_at is not None  # noqa: S101 - asked for
        part = Part.FILES if files_removed_at is None else Part.LOGS
        yield Spent(part, unix_ms(ended_at), job_id, 0, tenant_id)


def _followed(session: Session, tenant_id: UUID, ids: Sequence[UUID]) -> Iterator[Spent]:
    """Attempts of live jobs that another attempt followed and of which every run is dead."""
    rows = session.execute(
        select(RunRow.job_id, RunRow.attempt, func.max(RunRow.ended_at))
        .join(JobRow, JobRow.id == RunRow.job_id)
        .where(
            JobRow.id.in_(ids),
            JobRow.tenant_id == tenant_id,
            JobRow.ended_at.is_(None),
            RunRow.attempt < JobRow.attempt,
        )
        .group_by(RunRow.job_id, RunRow.attempt)
        .having(func.bool_and(RunRow.state == "ended"))
    )
    for job_id, attempt, ended_at in rows:
        assert ended_at is not None  # noqa: S101 - all have ended
        yield Spent(Part.FILES, unix_ms(ended_at), job_id, attempt, tenant_id)


def _holds_something(root: Path, spent: Spent) -> bool:
    """Whether an earlier attempt still has working directories; of a job that has ended the database says so."""
    if not spent.attempt:
        return True
    with _opened(root, str(spent.tenant_id), str(spent.job_id), f"attempt-{spent.attempt}") as attempt:
        return attempt is not None and bool(_folders(attempt))


def _remove(engine: Engine, tenant: int, spent: Spent, at: datetime, swept: Swept) -> Iterator[Swept]:
    """Put aside, say so, empty the bin: files are said to be removed once they are, logs before they are."""
    into = open_bin(tenant)
    try:
        if spent.part is Part.LOGS:
            _say(engine, spent, at)
            put_aside(tenant, str(spent.job_id), into)
        else:
            _put_files_aside(tenant, spent, into)
            if not spent.attempt:
                _say(engine, spent, at)
        for _ in emptying(into):
            yield swept
    except OSError as error:
        _log.error("files_not_removed", job=str(spent.job_id), attempt=spent.attempt, reason=str(error))
    finally:
        os.close(into)


def _put_files_aside(tenant: int, spent: Spent, into: int) -> None:
    try:
        job = os.open(str(spent.job_id), _DIRECTORY, dir_fd=tenant)
    except FileNotFoundError:
        return
    try:
        for name in _folders(job):
            if name == _CHECKPOINTS and not spent.attempt:
                put_aside(job, name, into)
            elif name == f"attempt-{spent.attempt}" or (name.startswith("attempt-") and not spent.attempt):
                attempt = os.open(name, _DIRECTORY, dir_fd=job)
                try:
                    for rank in _folders(attempt):
                        put_aside(attempt, rank, into)
                finally:
                    os.close(attempt)
    finally:
        os.close(job)


def _say(engine: Engine, spent: Spent, at: datetime) -> None:
    removed = {"files_removed_at": func.coalesce(JobRow.files_removed_at, at)}
    if spent.part is Part.LOGS:
        removed["logs_removed_at"] = func.coalesce(JobRow.logs_removed_at, at)
    with transaction(engine) as session:
        session.execute(
            update(JobRow)
            .where(JobRow.id == spent.job_id, JobRow.ended_at.is_not(None))
            .values(removed)
            .execution_options(synchronize_session=False)
        )


def _folders(folder: int) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))


def _ids(folder: Path) -> Iterator[str]:
    """The names of the folders in a folder that are ids, as the store writes them; none if it is not there."""
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(ValueError):
                if str(UUID(entry.name)) == entry.name and entry.is_dir(follow_symlinks=False):
                    yield entry.name


@contextmanager
def _opened(root: Path, *names: str) -> Iterator[int | None]:
    """A descriptor of a folder below the root, no step of it a link; None where there is none."""
    here: int | None = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in names:
            assert here is not None  # noqa: S101 - the loop ends where it is None
            above = here
            try:
                here = os.open(name, _DIRECTORY, dir_fd=above)
            except (FileNotFoundError, NotADirectoryError):
                here = None
            os.close(above)
            if here is None:
                break
        yield here
    finally:
        if here is not None:
            os.close(here)
