"""What of the usage a report carries when there is more than it can.

Invariant: each run has its share, in the order of its records, so that one whose records the controller cannot write
keeps nobody else's from it.
"""

from collections.abc import Iterable
from itertools import chain, islice, zip_longest
from typing import Final

from scheduler.node.protocol import UsageRecord

USAGE_PER_REPORT_MAX: Final = 1000
"""A report of more takes longer to write, carry and read on a busy machine than its controller waits for it."""


def portion(records: Iterable[UsageRecord]) -> tuple[UsageRecord, ...]:
    """The first record of each run, then the second of each, and so on, as many as a report may have."""
    every = tuple(records)
    if len(every) <= USAGE_PER_REPORT_MAX:
        return every
    by_run: dict[str, list[UsageRecord]] = {}
    for record in every:
        by_run.setdefault(record.run_id, []).append(record)
    in_turn = chain.from_iterable(zip_longest(*by_run.values()))
    return tuple(islice((record for record in in_turn if record is not None), USAGE_PER_REPORT_MAX))
