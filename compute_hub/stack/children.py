"""Child processes that end with their owner: each gets SIGTERM when the process that started it dies.

The kernel sends that signal when the starting *thread* ends, so children are started from a thread that lives as
long as their owner (the main thread, everywhere in the hub).
"""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import psutil

from kernel.clock import boottime_ms
from kernel.errors import HubError

_UNLESS_ORPHANED: Final = '[ "$PPID" = "$0" ] || exit 143; exec "$@"'
"""The kernel tells nobody of an owner that died before it was asked to."""

GRACE_MS: Final = 25_000
"""For a program that has only itself to end."""

_DEATH_S: Final = 10
"""A killed process that is large takes its time on a busy machine, and keeps its ports until then."""


class ChildEnded(HubError):
    """A process that should run has ended."""

    sentence = "{name} ended with exit status {status}. Its log is {log}; the last lines were:\n{tail}"


class Child:
    """One long-running program of the hub with its log file."""

    def __init__(self, name: str, argv: Sequence[str], *, log: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self.log = log
        self._argv, self._environment = tuple(argv), dict(environment)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as sink:
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", "sh", "-c", _UNLESS_ORPHANED, str(os.getpid()), *self._argv],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                env=self._environment,
                start_new_session=True,
            )

    def again(self) -> "Child":
        """Start the same program anew."""
        return Child(self.name, self._argv, log=self.log, environment=self._environment)

    def check(self) -> None:
        """Raise ChildEnded if the program is no longer running."""
        status = self.process.poll()
        if status is not None:
            raise ChildEnded(name=self.name, status=status, log=self.log, tail=self.tail())

    def tail(self, lines: int = 8) -> str:
        """The last lines the program printed."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def wait(self, seconds: float) -> None:
        """Wait for the program's end, at most so long."""
        try:
            self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return

    def signal(self, number: int) -> None:
        """Send a signal to the program, if it still runs."""
        if self.process.poll() is None:
            self.process.send_signal(number)

    def tree(self) -> list[psutil.Process]:
        """The program's descendants as they are now."""
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []


def stop_all(children: Sequence[Child], *, grace_ms: int = GRACE_MS) -> None:
    """SIGTERM to all at once, then SIGKILL to whatever is left of their trees after the grace period."""
    trees = [process for child in children for process in child.tree()]
    for child in children:
        child.signal(signal.SIGTERM)
    deadline_ms = boottime_ms() + grace_ms
    for child in children:
        try:
            child.process.wait(timeout=max(0, deadline_ms - boottime_ms()) / 1000)
        except subprocess.TimeoutExpired:
            child.process.kill()
            child.process.wait()
    end_processes(trees)


def end_processes(processes: Sequence[psutil.Process], *, grace_s: float = 5) -> None:
    """Wait for processes to end by themselves, then kill those that do not and wait until they are gone."""
    _, alive = psutil.wait_procs(processes, timeout=grace_s)
    for process in alive:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(alive, timeout=_DEATH_S)


def processes_naming(path: Path) -> list[psutil.Process]:
    """Other processes of ours whose command line names a path; for finding what a killed parent left behind."""
    found = []
    for process in psutil.process_iter(["cmdline", "uids"]):
        command = process.info["cmdline"] or []
        if process.pid != os.getpid() and any(str(path) in word for word in command):
            found.append(process)
    return found


def processes_having(variable: str, value: str) -> list[psutil.Process]:
    """Other processes that were started with a variable set so; for finding what a killed parent left behind."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(variable) == value:
                found.append(process)
        except psutil.Error:
            continue
    return found
