"""When a waiting job will probably start: the same policy, played forward on a copy with predicted durations.

An estimate, not a promise: it knows no job that has not been submitted yet and evicts nobody.
"""

from copy import deepcopy
from dataclasses import replace
from typing import Final

from scheduler.policy.cycle import run_cycle
from scheduler.policy.reasons import expected_end_ms
from scheduler.policy.state import SchedulerState

STEPS_MAX: Final = 2000
"""Instants played before the forecast says that it does not know."""


def estimate_starts(
    state: SchedulerState, job_ids: frozenset[str], now_ms: int, steps_max: int = STEPS_MAX
) -> dict[str, int]:
    """Estimated start times of those of the waiting jobs whose start comes into sight; the state is untouched."""
    future = deepcopy(state)
    future.settings = replace(state.settings, evicts=False)
    for known in state.promises.nominations.by_job.values():
        if known.due_ms is not None:
            future.promises.nominations.forget(known.job_id)  # nobody has been told to stop for it yet
    found: dict[str, int] = {}
    at_ms = now_ms
    for _ in range(steps_max):
        found |= {start.job_id: at_ms for start in run_cycle(future, at_ms).starts if start.job_id in job_ids}
        if len(found) == len(job_ids) or not (future.running or future.next_alarm_ms()):
            break
        at_ms = _play_next(future, at_ms)
    return found


def _play_next(future: SchedulerState, at_ms: int) -> int:
    """Let the next thing happen in the copy; returns when that is."""
    grace_ms = future.settings.grace_ms
    ends = [
        (at_ms + grace_ms if running.evicted_for else expected_end_ms(running, at_ms), running.job.id)
        for running in future.running.values()
    ]
    alarm_ms = future.next_alarm_ms()
    next_ms = min([end_ms for end_ms, _ in ends] + ([] if alarm_ms is None else [max(alarm_ms, at_ms + 1)]))
    for end_ms, job_id in sorted(ends):
        if end_ms <= next_ms:
            future.allocation_ended(job_id, next_ms, succeeded=True)
    return next_ms
