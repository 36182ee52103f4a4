"""What jobs left is kept for its time, the oldest goes first when the disk fills, and nothing of a live one."""

from datetime import timedelta
from pathlib import Path
from uuid import UUID

from kernel.clock import boottime_ms, unix_ms, utc_now
from kernel.ids import new_id
from scheduler.keeping import Swept, Terms, sweep
from scheduler.node.removing import BIN
from tests.scheduler.controller.counted import Centre, simulated

HOUR_MS = 3_600_000
TERMS = Terms(files_kept_ms=24 * HOUR_MS, logs_kept_ms=72 * HOUR_MS, least_kept_ms=HOUR_MS, full_percent=80)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def left(centre: Centre, job_id: UUID, attempt: int = 1) -> Path:
    """What an attempt would have left; its folder."""
    folder = centre.store.attempt(centre.job(job_id), attempt)
    (folder / "rank-0").mkdir(parents=True)
    (folder / "rank-0" / "result").write_text("42")
    (folder / "rank-0.log").write_text("done\n")
    kept = centre.store.checkpoints(centre.job(job_id), 0)
    kept.mkdir(parents=True, exist_ok=True)
    (kept / "weights").write_text("1")
    return folder


def ended(centre: Centre) -> UUID:
    job_id = centre.started(milliseconds=0)
    centre.machines.nodes["n"].advance(boottime_ms(), unix_ms(utc_now()))
    centre.tick()
    assert centre.job(job_id).state == "succeeded"
    return job_id


def swept(centre: Centre, hours: float, used: int = 0, terms: Terms = TERMS) -> Swept:
    """What a sweep so many hours from now does, on a disk that is so full."""
    at = utc_now() + timedelta(hours=hours)
    *_, last = sweep(centre.engine, centre.store.workspaces, terms, at, lambda _: used)
    return last


def test_files_go_after_their_time_logs_after_theirs_and_the_job_says_so(centre: Centre) -> None:
    job_id = ended(centre)
    folder = left(centre, job_id)
    assert swept(centre, 23.9).removed == 0
    assert swept(centre, 24.1).removed == 1
    assert (names(folder), names(folder.parent)) == (["rank-0.log"], ["attempt-1"])
    assert centre.job(job_id).files_removed_at is not None
    assert centre.job(job_id).logs_removed_at is None
    assert swept(centre, 71).removed == 0
    assert swept(centre, 73).removed == 1
    assert names(folder.parents[1]) == [BIN]
    assert names(folder.parents[1] / BIN) == []
    assert centre.job(job_id).logs_removed_at is not None


def test_of_a_live_job_only_what_an_attempt_left_that_another_followed_goes(centre: Centre) -> None:
    job_id = centre.started(max_retries=1)
    first = left(centre, job_id)
    centre.machines.nodes["n"] = simulated("n", instance="second")
    centre.tick()
    assert centre.job(job_id).state == "queued"
    assert swept(centre, 1000, used=100).removed == 0
    deadline = boottime_ms() + 30_000
    while centre.job(job_id).attempt < 2:
        assert boottime_ms() < deadline
        centre.tick()
    second = left(centre, job_id, 2)
    assert swept(centre, 1000, used=100).removed == 1
    assert (names(first), names(second)) == (["rank-0.log"], ["rank-0", "rank-0.log"])
    assert (centre.store.checkpoints(centre.job(job_id), 0) / "weights").exists()
    assert centre.job(job_id).files_removed_at is None
    assert swept(centre, 1000, used=100).removed == 0


def test_on_a_full_disk_the_oldest_go_first_files_before_logs_and_no_more_than_need_be(centre: Centre) -> None:
    jobs = [ended(centre) for _ in range(3)]
    folders = [left(centre, job_id) for job_id in jobs]
    assert swept(centre, 0.9, used=100).removed == 0
    full = iter((90, 90, 79, 79, 79))
    at = utc_now() + timedelta(hours=2)
    *_, last = sweep(centre.engine, centre.store.workspaces, TERMS, at, lambda _: next(full))
    assert (last.removed, last.before_time) == (2, 2)
    assert [(folder / "rank-0").exists() for folder in folders] == [False, False, True]
    full = iter((90, 90, 79, 79))
    *_, last = sweep(centre.engine, centre.store.workspaces, TERMS, at, lambda _: next(full))
    assert [folder.exists() for folder in folders] == [False, True, True]
    assert not (folders[2] / "rank-0").exists()


def test_a_sweep_that_is_broken_off_anywhere_is_ended_by_the_next(centre: Centre) -> None:
    for steps in range(8):
        job_id = ended(centre)
        folder = left(centre, job_id)
        (folder / "rank-0" / "a" / "b").mkdir(parents=True)
        for hours in (25, 73):
            at = utc_now() + timedelta(hours=hours)
            broken = sweep(centre.engine, centre.store.workspaces, TERMS, at, lambda _: 0)
            for _ in range(steps):
                next(broken, None)
            broken.close()
            swept(centre, hours)
        assert not folder.parent.exists()
        assert names(folder.parents[1] / BIN) == []
        assert centre.job(job_id).logs_removed_at is not None


def test_what_is_no_jobs_or_anothers_stays(centre: Centre, tmp_path: Path) -> None:
    job_id = ended(centre)
    folder = left(centre, job_id)
    root = centre.store.workspaces
    strangers = [root / "uploads" / "x", root / str(new_id()) / str(job_id), folder.parents[1] / str(new_id())]
    for path in strangers:
        path.mkdir(parents=True)
    outside = tmp_path / "outside"
    outside.mkdir()
    (root / str(new_id())).symlink_to(outside)
    assert swept(centre, 100).removed == 1
    assert all(path.exists() for path in (*strangers, outside))


def test_without_a_store_there_is_nothing_to_do(centre: Centre, tmp_path: Path) -> None:
    assert next(iter(sweep(centre.engine, tmp_path / "none", TERMS, utc_now()))).removed == 0
