"""What of the usage a report carries when there is more than it can.

Invariant: each run has its share, in the order of its records, and where there are too many runs for that, all have
their turn: so however many there are whose records the controller cannot write, they keep nobody else's from it.
"""

from collections.abc import Iterable
from itertools import chain, islice, zip_longest
from typing import Final

from scheduler.node.protocol import UsageRecord

USAGE_PER_REPORT_MAX: Final = 1000
"""A report of more takes longer to write, carry and read on a busy machine than its controller waits for it."""


def portion(records: Iterable[UsageRecord], turn: int) -> tuple[UsageRecord, ...]:
    """The first record of each run, then the second of each, and so on, as many as a report may have.

    Each turn begins behind the runs of the one before: of n runs all are told of in n / `USAGE_PER_REPORT_MAX` turns.
    """
    every = tuple(records)
    if len(every) <= USAGE_PER_REPORT_MAX:
        return every
    by_run: dict[str, list[UsageRecord]] = {}
    for record in every:
        by_run.setdefault(record.run_id, []).append(record)
    runs = list(by_run.values())
    first = turn * USAGE_PER_REPORT_MAX % len(runs)
    in_turn = chain.from_iterable(zip_longest(*runs[first:], *runs[:first]))
    return tuple(islice((record for record in in_turn if record is not None), USAGE_PER_REPORT_MAX))
