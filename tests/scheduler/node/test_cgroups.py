"""Groups that one run has after the other, where control groups are of version 1."""

import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernel.ids import new_id
from scheduler.node.cgroups import Caps, CgroupTree
from scheduler.node.protocol import RunState
from tests.scheduler.node.harness import Node, await_line

SPIN = "i=0; while [ $i -lt 500000 ]; do i=$((i+1)); done"
CAPS = Caps(memory_mib=64, pids=20, cpu_milli=0)


def groups_of(pid: int | None) -> dict[str, Path]:
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    return {name: Path("/sys/fs/cgroup", name, path[1:]) for _, name, path in (one.split(":") for one in lines)}


def directories(joins: tuple[str, ...]) -> dict[str, Path]:
    return {Path(join).parts[4]: Path(join).parent for join in joins}


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[CgroupTree]:
    tree = CgroupTree(tmp_path, "")
    yield tree
    assert all(group.remove() for group in tree.leftovers())
    tree.close()


def test_groups_that_one_run_has_after_the_other_count_and_limit_each_for_itself(node: Node) -> None:
    if "memory" not in groups_of(os.getpid()) or os.geteuid() != 0:
        return  # version 2 keeps a new group for each run
    first = node.spec("/bin/sh", "-c", f"echo ready; {SPIN}", pids=20)
    node.begin(first)
    await_line(first, "ready")
    before = groups_of(node.await_state(first, RunState.RUNNING).pid)
    node.ended(first)
    second = node.begin(node.spec("/bin/sh", "-c", "echo ready; sleep 1000", pids=30))
    await_line(second, "ready")
    after = groups_of(node.await_state(second, RunState.RUNNING).pid)
    assert after["pids"] == before["pids"]
    assert (after["pids"] / "pids.max").read_text().strip() == "38"
    assert (after["memory"].name, before["memory"].name) == (second.run_id, first.run_id)
    node.desired.clear()
    node.ended(second)
    (used,), (idle,) = node.records(first), node.records(second)
    assert idle.cpu_ms < used.cpu_ms


def test_groups_are_not_used_again_while_anybody_is_in_them(tree: CgroupTree) -> None:
    if "memory" not in groups_of(os.getpid()) or not tree.available:
        return  # the same
    first = tree.create(str(new_id()), CAPS)
    assert first is not None
    left = directories(first.joins)
    with subprocess.Popen(["/bin/sleep", "1000"]) as process:
        (left["pids"] / "tasks").write_text(str(process.pid))
        assert first.remove()
        assert first.joins == ()
        second, third = (tree.create(str(new_id()), CAPS) for _ in range(2))
        assert second is not None
        assert third is not None
        assert left["pids"] not in {directories(group.joins)["pids"] for group in (second, third)}
        first.kill()
        assert process.poll() is None  # they are no longer the run's
        process.kill()
    assert second.remove()
    assert third.remove()
    found = [tree.create(str(new_id()), CAPS) for _ in range(3)]
    assert left["pids"] in {directories(group.joins)["pids"] for group in found if group is not None}
    assert all(group is not None and group.remove() for group in found)


def test_the_groups_of_a_run_tell_nothing_of_who_had_them_before(tree: CgroupTree) -> None:
    first_id = str(new_id())
    first = tree.create(first_id, CAPS)
    assert first is None or first.remove()
    second = tree.create(str(new_id()), CAPS)
    if second is not None:  # what is said of a start that failed names them
        assert first_id not in "".join(second.joins)
        assert second.remove()


@pytest.mark.parametrize("controller", ["pids", "cpu", "cpuacct"])
def test_groups_of_which_somebody_has_taken_one_away_are_given_to_no_run(
    tree: CgroupTree, controller: str
) -> None:
    if controller not in groups_of(os.getpid()) or not tree.available:
        return  # the same
    first = tree.create(str(new_id()), CAPS)
    assert first is not None
    taken = directories(first.joins)
    assert first.remove()
    taken[controller].rmdir()
    for _ in range(2):
        group = tree.create(str(new_id()), CAPS)
        assert group is not None
        assert all(Path(join).exists() for join in group.joins)
        assert group.remove()
    assert not any(folder.exists() for folder in taken.values())


def test_groups_that_cannot_be_looked_at_for_want_of_descriptors_stay_for_a_later_run(tree: CgroupTree) -> None:
    if "memory" not in groups_of(os.getpid()) or not tree.available:
        return  # the same
    first = tree.create(str(new_id()), CAPS)
    assert first is not None
    left = directories(first.joins)
    assert first.remove()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            tree.create(str(new_id()), CAPS)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    second = tree.create(str(new_id()), CAPS)
    assert second is not None
    assert directories(second.joins)["pids"] == left["pids"]
    assert second.remove()


def test_a_limit_that_differs_from_the_run_before_is_written(tree: CgroupTree) -> None:
    if "memory" not in groups_of(os.getpid()) or not tree.available:
        return  # the same
    for pids, quota in ((20, "50000"), (30, "-1"), (20, "50000")):
        caps = Caps(memory_mib=64, pids=pids, cpu_milli=0 if quota == "-1" else 500)
        group = tree.create(str(new_id()), caps)
        assert group is not None
        at = directories(group.joins)
        assert (at["pids"] / "pids.max").read_text().strip() == str(pids + 8)
        assert (at["cpu"] / "cpu.cfs_quota_us").read_text().strip() == quota
        assert group.remove()


def test_limits_that_somebody_else_has_changed_are_not_the_next_runs(tree: CgroupTree) -> None:
    if "memory" not in groups_of(os.getpid()) or not tree.available:
        return  # the same
    caps = Caps(memory_mib=64, pids=20, cpu_milli=500)
    first = tree.create(str(new_id()), caps)
    assert first is not None
    at = directories(first.joins)
    (at["pids"] / "pids.max").write_text("1")
    (at["cpu"] / "cpu.cfs_quota_us").write_text("1000")
    assert first.remove()
    second = tree.create(str(new_id()), caps)
    assert second is not None
    assert directories(second.joins)["pids"] == at["pids"]
    assert (at["pids"] / "pids.max").read_text().strip() == "28"
    assert (at["cpu"] / "cpu.cfs_quota_us").read_text().strip() == "50000"
    assert second.remove()
