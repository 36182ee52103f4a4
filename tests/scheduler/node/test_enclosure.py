"""What root makes sandboxes of: a room that has nothing of the host, and copies of mounts that are nobody else's."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from scheduler.node.config import NodeConfig
from scheduler.node.enclosure import enclosed, make_room
from scheduler.node.etc import make_etc
from scheduler.node.isolation import probe_view
from scheduler.node.nursery import Nursery, await_child
from tests.scheduler.node.harness import Machine, await_line

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("root")]

UID = 712_345


@pytest.fixture
def shared(machine: Machine) -> Iterator[Path]:
    """A file system whose mounts others take part in, as all of a host's are that systemd has started."""
    folder = machine.folder / "shared"
    (folder / "inner").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", str(folder)], check=True)
    subprocess.run(["mount", "--make-shared", str(folder)], check=True)
    (folder / "inner").mkdir()
    (folder / "later").mkdir()
    yield folder
    for node in machine.nodes:
        node.stop()
    subprocess.run(["umount", "--recursive", "--lazy", str(folder)], check=True)


def _mounts_below(folder: Path) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line.split()[4] for line in lines if line.split()[4].startswith(f"{folder}/")]


def test_mounts_of_a_job_are_not_the_hosts_and_later_ones_of_the_host_not_the_jobs(
    machine: Machine, shared: Path
) -> None:
    other = machine.folder / "other"
    other.mkdir()
    mounts = [{"source": str(shared), "target": "/opt/a"}, {"source": str(other), "target": "/opt/a/inner"}]
    node = machine.node(environments={"e": {"mounts": mounts}})
    script = "echo ready; until test -e /job/go; do sleep 0.05; done; ls /opt/a/later"
    spec = node.begin(node.spec("/bin/sh", "-c", script, environment="e"))
    await_line(spec, "ready")
    assert not _mounts_below(shared)
    subprocess.run(["mount", "-t", "tmpfs", "none", str(shared / "later")], check=True)
    (shared / "later" / "of-the-host").touch()
    Path(spec.workspace, "go").touch()
    assert node.ended(spec).exit_code == 0
    assert Path(spec.log).read_text() == "ready\n"


def test_no_place_is_made_on_the_host_for_a_folder_of_an_environment(machine: Machine) -> None:
    source = machine.folder / "source"
    source.mkdir()
    (source / "file").write_text("whole\n")
    mounts = [{"source": str(source), "target": "/../made"}]
    node = machine.node(environments={"e": {"mounts": mounts}})
    status, said = node.sh("cat /made/file", environment="e")
    assert (status.exit_code, said) == (0, "whole\n")
    assert not list(machine.folder.rglob("made"))


def test_a_job_finds_its_folders_and_no_blocked_signal_whatever_its_node_was_started_with(
    machine: Machine,
) -> None:
    source = machine.folder / "source"
    source.mkdir()
    (source / "file").write_text("whole\n")
    source.chmod(0o755)
    before, _ = os.umask(0o077), signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        mounts = [{"source": str(source), "target": "/opt/a/b"}]
        node = machine.node(environments={"e": {"mounts": mounts}})
    finally:
        os.umask(before)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
    status, said = node.sh("cat /opt/a/b/file /run/secrets/n; umask", environment="e", secrets={"n": "told\n"})
    assert (status.exit_code, said.split()) == (0, ["whole", "told", "0022"])
    spec = node.spec("grep", "SigBlk", "/proc/self/status")  # without a shell, which unblocks them itself
    assert node.run(spec).exit_code == 0
    assert Path(spec.log).read_text().split() == ["SigBlk:", "0" * 16]


@contextmanager
def _a_nursery(folder: Path) -> Iterator[tuple[Nursery, Path]]:
    """One with a room below a folder, which others may pass, and its /etc."""
    folder.chmod(0o755)
    state = folder / "state"
    state.mkdir()
    config = NodeConfig("n", "h", state_directory=str(state), workspace_root="/", host_run_directory="/")
    etc = make_etc(state)
    with closing(Nursery(make_room(config, etc))) as nursery:
        yield nursery, etc


def _run(nursery: Nursery, etc: Path, directory: int, *argv: str) -> tuple[int, str, list[str]]:
    """The first process's status, what it said, and its words to the supervisor."""
    view = replace(probe_view("", directory, str(etc), UID), argv=argv, env={"PATH": "/usr/bin"})
    output, status = os.memfd_create("said"), os.memfd_create("status")
    try:
        with enclosed(view, status) as launch:
            left = await_child(nursery.start(launch, output))
        said, told = (os.pread(file, 4096, 0).decode() for file in (output, status))
        return left, said, told.splitlines()
    finally:
        os.close(output)
        os.close(status)


def test_a_job_gets_the_folder_that_was_looked_at_and_not_what_has_its_name_now(machine: Machine) -> None:
    workspace, hidden = machine.folder / "workspace", machine.folder / "hidden"
    workspace.mkdir()
    hidden.mkdir()
    (workspace / "own").touch()
    (hidden / "secret").touch()
    os.chown(workspace, UID, UID)
    directory = os.open(workspace, os.O_RDONLY | os.O_DIRECTORY)
    workspace.rename(machine.folder / "moved")
    workspace.symlink_to(hidden)
    with _a_nursery(machine.folder) as (nursery, etc):
        left, said, told = _run(nursery, etc, directory, "ls", "/job")
    os.close(directory)
    assert (left, said, json.loads(told[-1])) == (0, "own\n", {"exit-code": 0})


def test_a_room_that_could_not_be_made_is_made_for_the_next_job(machine: Machine) -> None:
    workspace = machine.folder / "workspace"
    workspace.mkdir()
    os.chown(workspace, UID, UID)
    directory = os.open(workspace, os.O_RDONLY | os.O_DIRECTORY)
    with _a_nursery(machine.folder) as (nursery, etc):
        tree = machine.folder / "state" / "tree"
        tree.rmdir()
        left, said, told = _run(nursery, etc, directory, "true")
        assert (left, said.startswith("mount: "), told) == (1, True, [])
        tree.mkdir()
        left, said, told = _run(nursery, etc, directory, "true")
        assert (left, said, json.loads(told[-1])) == (0, "", {"exit-code": 0})
    os.close(directory)
