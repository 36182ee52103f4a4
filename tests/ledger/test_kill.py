import pytest

from benchmarks.kill_ledger import kill_points


@pytest.mark.slow
def test_500_kills_of_clients_and_backends_lose_and_double_nothing() -> None:
    assert kill_points(500, seed=7) == {"points": 500, "lost": 0, "doubled": 0, "unbalanced": 0}
