"""What a session of tests leaves behind: nothing.

All temporary files of a session, and of every process it starts, lie in one folder of its own, so that what remains can
be told from what others do on the machine: processes whose command, environment or mounts name the folder, control
groups of supervisors that were configured below it, mounts and files in it.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import psutil

_PATIENCE_S: Final = 60
_TRACKER: Final = b"multiprocessing.resource_tracker"
"""Python's own; it ends by itself with the process it belongs to."""

_CGROUPS: Final = Path("/sys/fs/cgroup")


def own_folder() -> Path:
    """Make the session's folder (short, because of the paths of sockets) and have everybody use it."""
    folder = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    return folder


def processes_naming(folder: Path) -> list[psutil.Process]:
    """Processes other than this one whose command or environment name a folder, or that see part of it as a mount."""
    needle = os.fsencode(folder)
    found = []
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        command, environment, mounts = (_of(process, part) for part in ("cmdline", "environ", "mountinfo"))
        if _TRACKER in command:
            continue
        # Where a mount comes from, not where it is: what copied all mounts while we had one is not ours.
        roots = [line.split()[3] for line in mounts.splitlines()]
        if needle in command + environment or any(os.fsencode(folder.name) in root for root in roots):
            found.append(process)
    return found


def _of(process: psutil.Process, part: str) -> bytes:
    try:
        return Path(f"/proc/{process.pid}/{part}").read_bytes()
    except OSError:
        return b""


def leftovers(folder: Path) -> list[str]:
    """What remains of the session, in words; processes are given a while to end."""
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(folder) in line]
    alive = [] if mounts else psutil.wait_procs(processes_naming(folder), timeout=_PATIENCE_S)[1]
    return [
        *(f"mount {line}" for line in mounts),
        *(f"process {words(process)}" for process in alive),
        *(f"cgroup {path}" for path in cgroups_of(_configured(folder))),
        *(f"file {path}" for path in sorted(folder.iterdir()) if not _is_expected(path)),
    ]


def remove(folder: Path) -> None:
    """Take away what pytest keeps for whoever looks into a failure."""
    shutil.rmtree(folder, ignore_errors=True)


def _is_expected(path: Path) -> bool:
    """Pytest's own folder, and the folder that hubs share for ever, once it holds nothing but its locks."""
    if path.name.startswith("compute-hub-"):
        return not [one for one in path.rglob("*") if one.is_socket() or one.parent.name == "gangs"]
    return path.name.startswith("pytest-of-")


def cgroups_of(state_directories: Iterable[str]) -> list[Path]:
    """Control groups of the supervisors with these state directories; others come and go meanwhile."""
    names = {f"hub-{hashlib.sha256(os.fsencode(state)).hexdigest()[:12]}" for state in state_directories}
    return [Path(at) / name for at, below, _ in os.walk(_CGROUPS) for name in sorted(names & set(below))]


def _configured(folder: Path) -> list[str]:
    return [json.loads(path.read_text())["state_directory"] for path in folder.rglob("supervisor.json")]


def words(process: psutil.Process) -> str:
    """Its number and command."""
    try:
        return f"{process.pid} {' '.join(process.cmdline())[:200]}"
    except psutil.Error:
        return str(process.pid)
