"""Each contract of the imports is broken once on purpose, in a copy of the tree, to see that it is noticed."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("kernel", "ledger", "vouchers", "scheduler", "compute_hub")


@pytest.fixture
def copied_tree(tmp_path: Path) -> Path:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint(tree: Path) -> subprocess.CompletedProcess[str]:
    lint_imports = Path(sys.executable).with_name("lint-imports")
    return subprocess.run(
        [str(lint_imports), "--no-cache"], cwd=tree, capture_output=True, text=True, timeout=120, check=False
    )


def test_the_tree_as_it_is_keeps_every_contract(copied_tree: Path) -> None:
    done = lint(copied_tree)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("ledger/posting.py", "import vouchers.errors", "imports point one way"),
        ("vouchers/errors.py", "import scheduler.refusals", "imports point one way"),
        ("kernel/money.py", "import ledger.errors", "imports point one way"),
        ("scheduler/jobs.py", "import ledger.posting", "the scheduler does not know what money is"),
        ("ledger/domain/accounts.py", "import sqlalchemy", "rules do no I/O"),
        ("scheduler/policy/cycle.py", "import random", "rules do no I/O"),
        ("vouchers/domain/facts.py", "import kernel.clock", "rules do no I/O"),
        ("scheduler/jobs.py", "import fastapi", "only the API knows HTTP frameworks"),
    ],
)
def test_a_seeded_violation_is_caught(copied_tree: Path, file: str, line: str, contract: str) -> None:
    path = copied_tree / file
    path.write_text(f"{path.read_text(encoding='utf-8')}\n{line}\n", encoding="utf-8")
    done = lint(copied_tree)
    assert done.returncode == 1
    assert contract in done.stdout.split("Broken contracts")[1]
