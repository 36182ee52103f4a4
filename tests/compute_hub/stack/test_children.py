import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from compute_hub.settings import inherited_environment
from compute_hub.stack.children import Child, ChildEnded, processes_naming, stop_all

pytestmark = pytest.mark.slow


def started(tmp_path: Path, name: str, program: str) -> Child:
    argv = [sys.executable, "-c", program, str(tmp_path / name)]
    return Child(name, argv, log=tmp_path / f"{name}.log", environment=inherited_environment())


def test_a_child_that_ended_is_reported_with_its_last_words(tmp_path: Path) -> None:
    child = started(tmp_path, "short", "print('I cannot go on'); raise SystemExit(7)")
    child.process.wait()
    with pytest.raises(ChildEnded, match=r"short ended with exit status 7(.|\n)*I cannot go on"):
        child.check()
    again = child.again()
    assert again.process.wait() == 7


def test_stopping_ends_grandchildren_too(tmp_path: Path) -> None:
    program = (
        "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)', sys.argv[1]]);"
        "print('up', flush=True); import time; time.sleep(600)"
    )
    child = started(tmp_path, "family", program)
    while "up" not in child.tail():
        child.wait(0.05)
    assert len(child.tree()) == 1
    stop_all([child])
    assert processes_naming(tmp_path / "family") == []


def test_a_child_ends_when_its_owner_is_killed(tmp_path: Path) -> None:
    owner_program = (
        "import sys; from pathlib import Path; from compute_hub.settings import inherited_environment;"
        "from compute_hub.stack.children import Child; folder = Path(sys.argv[1]);"
        "child = Child('kept', ['sleep', '600'], log=folder / 'kept.log', environment=inherited_environment());"
        "print(child.process.pid, flush=True); child.process.wait()"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", owner_program, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    kept = psutil.Process(int(owner.stdout.readline()))
    owner.send_signal(signal.SIGKILL)
    owner.communicate()
    assert psutil.wait_procs([kept], timeout=10)[1] == []
