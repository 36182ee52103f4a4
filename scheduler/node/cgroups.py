"""Memory, process and CPU limits per run, by whichever cgroup version is there and writable.

Version 1 keeps one hierarchy per controller, version 2 one for all. A run's groups are named after it below a
group named after the supervisor's state directory, so that a restarted supervisor finds and removes what its
predecessor left. Where nothing is writable there are no groups, and the node says so.

To make and remove version 1's four groups for every run takes a sixth of what a supervisor does for one that does
nothing. Memory remembers what a run left charged, so that group is always a new one; the other three keep nothing of a
run whose processes are gone but a counter of CPU time and what it took beyond its quota, which ends when the next one's
is written, and are used again (`_Kept`), as long as nobody is in them.
"""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kernel.ids import new_id
from scheduler.node.processes import kill_pidfd

_ROOT: Final = Path("/sys/fs/cgroup")
_V1_CONTROLLERS: Final = ("pids", "memory", "cpu", "cpuacct")
_V2_CONTROLLERS: Final = ("memory", "pids", "cpu")
_KEPT: Final = "kept-"
_KEPT_MAX: Final = 64
"""Unused groups that are kept; on a machine with many processors each takes a hundred kilobytes of the kernel's."""

_PERIOD_US: Final = 100_000
_PIDS_OF_THE_SANDBOX: Final = 8
_JOIN_FILES: Final = {1: "tasks", 2: "cgroup.procs"}
"""A thread that moves itself waits for nobody; a process waits for the whole machine's threads (an RCU grace period, up
to 16 ms). Version 2 moves threads only within a process's group."""

_FILE_BYTES: Final = 4096
"""More than any of the files holds that are read here."""

_SWAP: Final = frozenset({"memory.memsw.limit_in_bytes", "memory.swap.max"})
"""What keeps a run from having more memory than its own as swap, where the kernel counts that."""

_SOCKET_MEMORY: Final = "memory.kmem.tcp.limit_in_bytes"
"""What waits in sockets (UDP's, too), which version 1 counts apart and only where it is limited; newer kernels may have
done away with it."""

_SOCKET_SHARE: Final = 4
"""A quarter of a run's memory, beside the rest."""

_SKIPPED: Final = _SWAP | {_SOCKET_MEMORY}
"""Not there in every kernel."""


@dataclass(frozen=True, slots=True)
class Caps:
    """What a run may use; zero means no limit of CPU."""

    memory_mib: int
    pids: int
    cpu_milli: int


def v1_settings(caps: Caps) -> dict[str, dict[str, str]]:
    """Files to write per controller of version 1."""
    quota = str(max(1000, _PERIOD_US * caps.cpu_milli // 1000)) if caps.cpu_milli else "-1"
    return {
        "memory": {
            "memory.limit_in_bytes": str(caps.memory_mib << 20),
            "memory.memsw.limit_in_bytes": str(caps.memory_mib << 20),
            _SOCKET_MEMORY: str((caps.memory_mib << 20) // _SOCKET_SHARE),
        },
        "pids": {"pids.max": str(caps.pids + _PIDS_OF_THE_SANDBOX)},
        "cpu": {"cpu.cfs_quota_us": quota},
        "cpuacct": {},
    }


def v2_settings(caps: Caps) -> dict[str, str]:
    """Files to write in a version 2 group."""
    quota = str(max(1000, _PERIOD_US * caps.cpu_milli // 1000)) if caps.cpu_milli else "max"
    return {
        "memory.max": str(caps.memory_mib << 20),
        "memory.swap.max": "0",
        "memory.oom.group": "1",
        "pids.max": str(caps.pids + _PIDS_OF_THE_SANDBOX),
        "cpu.max": f"{quota} {_PERIOD_US}",
    }


class _Kept:
    """Groups of version 1 that one run has after the other: of controllers that charge nothing to who has left.

    Every process of a run enters that of `pids` before the others, so all are empty when nobody is counted there.
    Raises OSError.
    """

    def __init__(self, directories: dict[str, str]) -> None:
        self.directories = directories
        self._used_ns = 0
        os.mkdir(directories["pids"])  # noqa: PTH102 - as `RunCgroup.remove`; nobody else's, so it must be new
        try:
            for directory in directories.values():
                with suppress(FileExistsError):  # two controllers may share a hierarchy
                    os.mkdir(directory)  # noqa: PTH102 - the same
        except OSError:
            self.remove()
            raise

    def begin(self) -> bool:
        """Count for a new run from here on; false if somebody is still in them. Raises OSError if one is not there."""
        for directory in self.directories.values():
            os.stat(directory)  # noqa: PTH116 - the same
        if int(_read(self.directories["pids"], "pids.current")):
            return False
        if "cpuacct" in self.directories:
            self._used_ns = self._counted_ns()
        return True

    def cpu_ns(self) -> int:
        """CPU time used since `begin`. Raises OSError, KeyError, ValueError."""
        return self._counted_ns() - self._used_ns

    def remove(self) -> None:
        """Take them away; what a process still holds is left to the next start."""
        for path in set(self.directories.values()):
            with suppress(OSError):
                os.rmdir(path)  # noqa: PTH106 - as `RunCgroup.remove`

    def _counted_ns(self) -> int:
        return int(_read(self.directories["cpuacct"], "cpuacct.usage"))


class RunCgroup:
    """The groups of one run: one directory in version 2, one per controller in version 1.

    Args:
        kept: groups of version 1 that it has had from another run, beside `directories`; `spare` is given them back.
    """

    def __init__(
        self, run_id: str, directories: dict[str, str], version: int,
        kept: _Kept | None = None, spare: Callable[[_Kept], None] = lambda _: None,
    ) -> None:  # fmt: skip
        self.run_id = run_id
        self._made = tuple(set(directories.values()))
        self._directories = (kept.directories if kept is not None else {}) | directories
        self._join_file = _JOIN_FILES[version]
        self._kept = kept
        self._spare = spare

    @property
    def joins(self) -> tuple[str, ...]:
        """Files into which a process of one thread writes 0 to come under the limits, in this order."""
        return tuple(dict.fromkeys(f"{path}/{self._join_file}" for path in self._directories.values()))

    def cpu_ms(self) -> int | None:
        """CPU time used by everything that ever ran in the group; None where nobody counts it."""
        with suppress(OSError, KeyError, ValueError):
            if self._kept is not None:
                return self._kept.cpu_ns() // 1_000_000
            return int(_read(self._directories["cpuacct"], "cpuacct.usage")) // 1_000_000
        with suppress(OSError, KeyError, ValueError):
            return _counter(self._directories["cpu"], "cpu.stat", "usage_usec") // 1000
        return None

    def memory_bytes(self) -> int | None:
        """The most its processes have kept of memory, caches included; None where no cgroup counts it."""
        for name in ("memory.max_usage_in_bytes", "memory.peak", "memory.current"):
            with suppress(OSError, ValueError, KeyError):
                return int(_read(self._directories["memory"], name))
        return None

    def oom_kills(self) -> int:
        """How many processes the kernel killed because the group ran out of memory."""
        for name in ("memory.oom_control", "memory.events"):
            with suppress(OSError, KeyError, ValueError):
                return _counter(self._directories["memory"], name, "oom_kill")
        return 0

    def kill(self) -> None:
        """SIGKILL whatever is still in the group."""
        for path in set(self._directories.values()):
            for pid in _members(path):
                with suppress(ProcessLookupError):
                    handle = os.pidfd_open(pid)
                    if pid in _members(path):  # else its number is a stranger's by now
                        kill_pidfd(handle)
                    os.close(handle)

    def members(self) -> Iterator[int]:
        """Processes that are still in the group."""
        return (pid for path in sorted(set(self._directories.values())) for pid in _members(path))

    def remove(self) -> bool:
        """Give back what is kept for others, and take the empty groups away.

        Returns:
            False if a dying process still holds one and it must be tried again.
        """
        gone = True
        for path in self._made:
            try:
                os.rmdir(path)  # noqa: PTH106 - making Paths would be a third of the work of making a run's groups
            except FileNotFoundError:
                continue
            except OSError:
                gone = False
        if gone and self._kept is not None:
            kept, self._kept = self._kept, None
            self._directories = {}  # they are others' from here on
            self._spare(kept)
        return gone


class CgroupTree:
    """Where the groups of this supervisor's runs go.

    Args:
        state_directory: names the supervisor among others of the host.
        parent: an operator's delegated group, or empty for the supervisor's own.
    """

    def __init__(self, state_directory: Path, parent: str) -> None:
        digest = hashlib.sha256(os.fsencode(state_directory)).hexdigest()[:12]
        self._bases: dict[str, Path] = {}
        self._version = 0
        self._kept: tuple[str, ...] = ()
        self._spare: deque[_Kept] = deque()
        for version, found in ((1, _v1_parents(parent)), (2, _v2_parents(parent))):
            bases = {controller: path / f"hub-{digest}" for controller, path in found.items()}
            if {"memory", "pids"} <= bases.keys() and _make(bases.values()):
                self._bases, self._version = bases, version
                self._kept = _usable_again(bases)
                return

    @property
    def available(self) -> bool:
        """Whether memory and processes of a run can be limited."""
        return bool(self._bases)

    def create(self, run_id: str, caps: Caps) -> RunCgroup | None:
        """The groups of a run with its limits set; None where there are none. Raises OSError."""
        if not self._bases:
            return None
        directories = {name: f"{base}/{run_id}" for name, base in self._bases.items() if name not in self._kept}
        kept = self._keep() if self._kept else None
        group = RunCgroup(run_id, directories, self._version, kept, self._unused)
        settings = v1_settings(caps) if self._version == 1 else dict.fromkeys(directories, v2_settings(caps))
        try:
            for directory in directories.values():
                with suppress(FileExistsError):
                    os.mkdir(directory)  # noqa: PTH102 - as `remove`
            # To write the quota, though it be the same, forgives what the run before has taken beyond it.
            for controller, directory in ((kept.directories if kept is not None else {}) | directories).items():
                for name, value in settings[controller].items():
                    try:
                        _write(directory, name, value)
                    except FileNotFoundError:
                        if name not in _SKIPPED:  # else this kernel does not count it
                            raise
        except OSError:
            group.remove()
            raise
        return group

    def _keep(self) -> _Kept:
        """Those unused for longest, if nobody is left in them, else new ones; their name tells no run of another.

        Those of which somebody else has taken one away are nobody's any more, or each run that got them would fail.
        """
        while self._spare:
            kept = self._spare.popleft()
            try:
                if kept.begin():
                    return kept
            except FileNotFoundError:
                kept.remove()
                continue
            except OSError:  # we have no descriptors, which is no fault of theirs
                self._unused(kept)
                raise
            self._unused(kept)
            break
        own = f"{_KEPT}{new_id()}"
        return _Kept({name: f"{self._bases[name]}/{own}" for name in self._kept})

    def _unused(self, kept: _Kept) -> None:
        if len(self._spare) < _KEPT_MAX:
            self._spare.append(kept)
        else:
            kept.remove()

    def leftovers(self) -> Iterator[RunCgroup]:
        """Groups of runs that a dead supervisor left here."""
        names = {
            entry.name
            for base in self._bases.values()
            if base.is_dir()
            for entry in base.iterdir()
            if entry.is_dir()
        }
        for name in sorted(names):
            directories = {controller: f"{base}/{name}" for controller, base in self._bases.items()}
            yield RunCgroup(name, directories, self._version)

    def close(self) -> None:
        """Remove the supervisor's own groups if no run is left in them."""
        for base in self._bases.values():
            with suppress(OSError):
                base.rmdir()


def _usable_again(bases: Mapping[str, Path]) -> tuple[str, ...]:
    """Controllers of version 1 whose groups others may have after a run: where memory has a hierarchy of its own."""
    hierarchies = {name: base.stat().st_dev for name, base in bases.items()}
    if hierarchies["memory"] in [hierarchies[name] for name in bases if name != "memory"]:
        return ()
    return tuple(name for name in _V1_CONTROLLERS if name in bases and name != "memory")


def _v1_parents(parent: str) -> dict[str, Path]:
    found = {}
    for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            if controller in _V1_CONTROLLERS:
                found[controller] = _ROOT / controller / (parent or path).lstrip("/")
    return {name: path for name, path in found.items() if path.is_dir()}


def _v2_parents(parent: str) -> dict[str, Path]:
    if not parent or not (_ROOT / "cgroup.controllers").exists():
        return {}
    base = _ROOT / parent.lstrip("/")
    with suppress(OSError):
        enabled = (base / "cgroup.subtree_control").read_text(encoding="ascii").split()
        return {name: base for name in _V2_CONTROLLERS if name in enabled}
    return {}


def _make(directories: Iterable[Path]) -> bool:
    made = []
    try:
        for directory in dict.fromkeys(directories):
            directory.mkdir(exist_ok=True)
            made.append(directory)
    except OSError:
        for directory in made:
            with suppress(OSError):
                directory.rmdir()
        return False
    return True


def _write(directory: str, name: str, value: str) -> None:
    # Plain system calls here and below: each run has a dozen, and Python's files would ask each what it is.
    file = os.open(f"{directory}/{name}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(file, value.encode())
    finally:
        os.close(file)


def _read(directory: str, name: str) -> bytes:
    file = os.open(f"{directory}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(file, _FILE_BYTES)
    finally:
        os.close(file)


def _members(directory: str) -> list[int]:
    try:
        return [int(pid) for pid in Path(directory, "cgroup.procs").read_text(encoding="ascii").split()]
    except OSError:
        return []


def _counter(directory: str, file: str, name: str) -> int:
    lines = (line.split() for line in _read(directory, file).splitlines())
    return int({line[0]: line[1] for line in lines}[name.encode()])
