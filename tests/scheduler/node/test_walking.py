"""However a job nests and fills its folders, they are counted in small steps."""

import asyncio
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from scheduler.node.config import Limits
from scheduler.node.errors import InvalidRun, NestedTooDeep
from scheduler.node.watching import Allowance, Watch
from scheduler.node.workspace import DEPTH_MAX, Census, Way, adopt, walk_entries
from tests.scheduler.node.nesting import nest

OPENED_AT_ONCE = 1024
ORDINARY = os.geteuid() or 54_321
"""A user that may not look into everything."""


@contextmanager
def opened(folder: Path) -> Iterator[int]:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    yield handle
    os.close(handle)


def test_whoever_walks_deep_folders_rests_for_every_few_of_those_opened_on_the_way(tmp_path: Path) -> None:
    nest(tmp_path, DEPTH_MAX)
    with opened(tmp_path) as top:
        steps = list(walk_entries(top))
    opened_in_all = DEPTH_MAX * (DEPTH_MAX + 1) // 2
    assert sum(step is not None for step in steps) == DEPTH_MAX
    assert sum(step is None for step in steps) >= opened_in_all // OPENED_AT_ONCE


def test_folders_too_deep_within_each_other_are_not_walked_to_their_end(tmp_path: Path) -> None:
    nest(tmp_path, DEPTH_MAX + 20)
    with opened(tmp_path) as top:
        census = Census([top], [512, None])
        while not census.complete:
            census.step()
        with pytest.raises(NestedTooDeep):
            list(walk_entries(top))
    assert str(DEPTH_MAX) in census.trouble
    assert census.entries <= DEPTH_MAX + 1


@pytest.mark.parametrize("mode", [0, 0o400])
def test_a_folder_that_a_job_closes_to_hide_it_from_an_ordinary_user_is_named(
    tmp_path: Path, mode: int
) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed" / "file").touch()
    (tmp_path / "open").touch()
    with opened(tmp_path) as top:
        for path in (tmp_path, tmp_path / "closed"):
            os.chown(path, ORDINARY, ORDINARY)
        (tmp_path / "closed").chmod(mode)
        child = os.fork()
        if child == 0:
            os.setresuid(ORDINARY, ORDINARY, ORDINARY)
            census = Census([top])
            while not census.complete:
                census.step()
            os._exit(census.entries if "Its folder closed is closed to" in census.trouble else 99)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 2


def test_a_workspace_whose_adoption_was_broken_off_is_adopted_whole_by_whoever_comes_next(
    tmp_path: Path,
) -> None:
    if os.geteuid() != 0:
        return  # an ordinary user's jobs all run as that user
    for number in range(1000):
        (tmp_path / str(number)).touch()
        os.chown(tmp_path / str(number), ORDINARY, ORDINARY)
    os.chown(tmp_path, ORDINARY, ORDINARY)
    with opened(tmp_path) as top:
        broken_off = adopt(top, ORDINARY + 1)
        broken_off.send(None)
        broken_off.close()
        assert {path.stat().st_uid for path in tmp_path.iterdir()} == {ORDINARY, ORDINARY + 1}
        asyncio.run(adopt(top, ORDINARY))
    assert {path.stat().st_uid for path in tmp_path.iterdir()} == {ORDINARY}


def test_one_folder_with_many_files_is_counted_in_steps(tmp_path: Path) -> None:
    for number in range(2000):
        (tmp_path / str(number)).touch()
    steps = 0
    with opened(tmp_path) as top:
        census = Census([top], [512, None, 512])
        while not census.complete:
            census.step()
            steps += 1
    assert (census.entries, census.bytes) == (2000, 1024)
    assert steps >= 2000 // 256


def test_however_many_workspaces_are_counted_at_once_they_share_what_is_done_in_one_tick(
    tmp_path: Path,
) -> None:
    for number in range(1500):
        (tmp_path / str(number)).touch()
    allowance, limits = Allowance(steps=10), Limits(workspace_entries=100)
    with ExitStack() as stack:
        tops = [stack.enter_context(opened(tmp_path)) for _ in range(40)]
        watches = [Watch([top], limits, allowance, memory_bytes=0) for top in tops]
        alone = stack.enter_context(subprocess.Popen(["/usr/bin/cat"], stdin=subprocess.PIPE))
        complained = [
            {at for at, one in enumerate(watches) if one.disk(now_ms, alone.pid)} for now_ms in range(1, 400)
        ]
    assert max(map(len, complained)) <= 10
    assert set.union(*complained) == set(range(40))  # everybody has his turn


def test_a_way_makes_what_is_not_there_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "tenant").mkdir()
    with Way(tmp_path) as way:
        for parts, made in (
            (("tenant", "job", "rank-0"), True),
            (("tenant", "job", "kept", "rank-0"), True),
            (("tenant", "job"), False),
            (("tenant", "job", "rank-0"), False),
            (("tenant",), False),
        ):
            directory = way.enter(parts, "workspace", create=True)
            assert os.path.samestat(os.fstat(directory), tmp_path.joinpath(*parts).stat())
            assert way.made is made, parts


def test_a_way_leads_through_no_link_and_goes_on_from_where_it_was_refused(tmp_path: Path) -> None:
    (tmp_path / "tenant" / "job").mkdir(parents=True)
    (tmp_path / "tenant" / "link").symlink_to("job")
    before = len(list(Path("/proc/self/fd").iterdir()))
    with Way(tmp_path) as way:
        way.enter(("tenant", "job"), "workspace")
        for parts in (("tenant", "link", "below"), ("tenant", "link"), ("tenant", "job", "nothing")):
            with pytest.raises(
                InvalidRun, match=f"{parts[1] if 'link' in parts else 'nothing'} is not a directory"
            ):
                way.enter(parts, "workspace")
        assert os.path.samestat(
            os.fstat(way.enter(("tenant", "job"), "log")), (tmp_path / "tenant" / "job").stat()
        )
    assert len(list(Path("/proc/self/fd").iterdir())) == before
