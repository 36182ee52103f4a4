"""Working directories with the example in them, as the hub would lay them out for two nodes."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from compute_hub.stack import ports
from tests.examples.running import Job

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def digits_python() -> Path:
    """The Python that `make setup` builds for the example."""
    python = REPOSITORY / "var" / "environments" / "digits" / "bin" / "python"
    assert python.exists(), f"there is no {python}; run `make setup`"
    return python


@pytest.fixture
def jobs(digits_python: Path, tmp_path: Path) -> Iterator[list[Job]]:
    """Two working directories, for one rank each; whatever still runs is killed afterwards."""
    pair = [Job(digits_python, tmp_path / f"node-{number}") for number in range(2)]
    for job in pair:
        shutil.copytree(
            REPOSITORY / "examples" / "digits", job.folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    yield pair
    for process in (process for job in pair for process in job.started):
        process.kill()
        process.communicate()


@pytest.fixture
def job(jobs: list[Job]) -> Job:
    """One working directory."""
    return jobs[0]


@pytest.fixture
def free_port() -> int:
    """A port on loopback that nobody listens at."""
    return ports.free_port()
