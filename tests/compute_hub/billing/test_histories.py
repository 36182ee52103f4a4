"""Whatever happens, and in whatever order: billed time is used time, parts are the whole, all books agree."""

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.compute_hub.billing.histories import History
from tests.compute_hub.billing.house import House
from tests.compute_hub.billing.judging import judge

pytestmark = pytest.mark.slow

KINDS = (
    *("begin", "deliver", "deliver", "bill", "wait"),
    *("kill", "lose", "end", "correct", "restore", "claim", "close", "credit"),
)
STEP = st.tuples(st.sampled_from(KINDS), st.integers(0, 9999), st.integers(0, 10**6))
BEGINNING = st.lists(st.tuples(st.just("begin"), st.integers(0, 9999), st.integers(0, 10**6)), max_size=2)

TEN_DAYS_LATE = [
    ("begin", 1, 5),
    ("deliver", 0, 1),
    ("end", 0, 0),
    ("wait", 1, 14_399),
    ("bill", 0, 0),
    ("wait", 1, 14_399),
    ("close", 0, 0),
    ("wait", 1, 14_399),
    ("close", 0, 0),
]


@given(BEGINNING, st.lists(STEP, min_size=6, max_size=30))
@example([], TEN_DAYS_LATE)
@settings(
    deadline=None,
    max_examples=20,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_after_every_history_usage_charges_papers_ledger_and_claims_agree(
    house: House, beginning: list[tuple[str, int, int]], steps: list[tuple[str, int, int]]
) -> None:
    history = History(house)
    for kind, number, amount in [*beginning, *steps]:
        history.step(kind, number, amount)
    history.finish()
    judge(history)
