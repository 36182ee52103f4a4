"""The judge sees what it is there for, in what programs wrote down themselves."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.peers.verdict import overlapping_beats
from kernel.ids import new_id

_CASES = [
    ("one attempt", [["began", "1.0", "1.2"]], 0),
    ("one after the other", [["began", "1.0"], ["began", "2.0", "2.2"], ["began"], ["began", "3.0"]], 0),
    ("a last word cut short", [["began", "1.0", "9"], ["began", "9.5"]], 0),
    ("begun twice", [["began", "1.0", "began", "1.1"]], 1),
    ("at the same time", [["began", "1.0", "2.0"], ["began", "1.5", "2.5"]], 1),
    ("at the same time as the one before the last", [["began", "5.0"], ["began"], ["began", "4.0"]], 1),
]


@pytest.mark.parametrize(("attempts", "wrong"), [case[1:] for case in _CASES], ids=[case[0] for case in _CASES])
def test_a_program_that_ran_twice_is_seen_by_its_own_words(
    tmp_path: Path, attempts: Sequence[Sequence[str]], wrong: int
) -> None:
    job = tmp_path / str(new_id()) / str(new_id())
    for number, lines in enumerate(attempts, start=1):
        rank = job / f"attempt-{number}" / "rank-0"
        rank.mkdir(parents=True)
        (rank / "beats").write_text("\n".join(lines) + ("" if lines[-1] == "9" else "\n"))
    assert overlapping_beats(tmp_path) == wrong
