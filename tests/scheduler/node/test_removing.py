"""What jobs left is removed, however it is made, and nothing else."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from scheduler.node.removing import BIN, emptying, open_bin, put_aside
from tests.scheduler.node.nesting import nest

ORDINARY = os.geteuid() or 54_321
"""A user that may not look into everything."""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def opened(folder: Path) -> Iterator[tuple[int, int]]:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    into = open_bin(handle)
    yield handle, into
    os.close(into)
    os.close(handle)


def remove(folder: Path, name: str) -> int:
    with opened(folder) as (handle, into):
        put_aside(handle, name, into)
        return sum(1 for _ in emptying(into))


def test_folders_without_end_within_each_other_go_one_step_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    nest(tmp_path / "work", 3000)
    assert remove(tmp_path, "work") >= 3000
    assert names(tmp_path) == [BIN]
    assert names(tmp_path / BIN) == []


def test_a_folder_with_many_files_goes_in_portions(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    for number in range(2000):
        (tmp_path / "work" / str(number)).touch()
    assert remove(tmp_path, "work") >= 2000 // 256
    assert names(tmp_path / BIN) == []


def test_links_out_of_it_lead_nowhere(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "kept").mkdir(parents=True)
    (outside / "file").write_text("kept")
    store = tmp_path / "store"
    (store / "work").mkdir(parents=True)
    (store / "work" / "folder").symlink_to(outside)
    (store / "work" / "file").symlink_to(outside / "file")
    os.link(outside / "file", store / "work" / "second name")
    os.mkfifo(store / "work" / "pipe")
    (store / "link").symlink_to(outside)
    remove(store, "work")
    remove(store, "link")
    assert names(store) == [BIN]
    assert names(store / BIN) == []
    assert (outside / "file").read_text() == "kept"
    assert (outside / "kept").is_dir()


def test_a_link_in_the_place_of_the_bin_is_refused(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / BIN).symlink_to(tmp_path / "outside")
    with pytest.raises(OSError, match="directory"), opened(tmp_path / "store"):
        pass


def test_wherever_a_removal_is_broken_off_the_next_one_ends_it(tmp_path: Path) -> None:
    for steps in range(12):
        store = tmp_path / str(steps)
        (store / "work" / "a" / "b").mkdir(parents=True)
        (store / "work" / "c").mkdir()
        (store / "work" / "a" / "file").touch()
        with opened(store) as (handle, into):
            put_aside(handle, "work", into)
            removal = emptying(into)
            for _ in range(steps):
                next(removal, None)
        assert not (store / "work").exists()
        remove(store, "work")
        assert names(store / BIN) == []


def test_whoever_shut_its_owner_out_is_removed_by_an_ordinary_user_all_the_same(tmp_path: Path) -> None:
    work = tmp_path / "work"
    (work / "closed" / "deeper").mkdir(parents=True)
    (work / "closed" / "deeper" / "file").touch()
    for path in (work / "closed" / "deeper", work / "closed", work, tmp_path):
        os.chown(path, ORDINARY, ORDINARY)
        path.chmod(0o700 if path == tmp_path else 0)
    handle = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    child = os.fork()
    if child == 0:
        os.setresuid(ORDINARY, ORDINARY, ORDINARY)
        into = open_bin(handle)
        put_aside(handle, "work", into)
        for _ in emptying(into):
            pass
        os._exit(sum(1 for _ in os.scandir(into)))
    _, status = os.waitpid(child, 0)
    os.close(handle)
    assert os.waitstatus_to_exitcode(status) == 0
    assert names(tmp_path) == [BIN]
