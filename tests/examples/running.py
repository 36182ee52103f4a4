"""Runs the example programs as jobs do: each in its own working directory, with its own environment."""

import subprocess
from dataclasses import dataclass, field
from pathlib import Path

PATIENCE_S = 120


@dataclass
class Job:
    """A working directory with the example in it, and the processes started there."""

    python: Path
    folder: Path
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, *command: str, **environment: object) -> subprocess.Popen[str]:
        """Start the digits environment's Python, with warnings as errors."""
        process = subprocess.Popen(
            [str(self.python), "-W", "error", *command],
            cwd=self.folder,
            env={name: str(value) for name, value in environment.items()},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def run(self, *command: str, **environment: object) -> tuple[int, str, str]:
        """Run to the end; returns the exit status and both outputs."""
        return outcome(self.start(*command, **environment))


def outcome(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Wait for the end; returns the exit status and both outputs."""
    output, errors = process.communicate(timeout=PATIENCE_S)
    return process.returncode, output, errors


def wait_for_line(process: subprocess.Popen[str], beginning: str) -> str:
    """Read the output up to the first line that begins so."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(beginning):
            return line
    raise AssertionError(f"ended without a line {beginning!r}: {outcome(process)}")
