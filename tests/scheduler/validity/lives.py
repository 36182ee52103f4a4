"""Rules of a job's life: one live attempt, none before its time, none beyond its limit, none after it succeeded."""

from collections import defaultdict

from tests.scheduler.validity.facts import Asked, Attempt, Log


def lives(log: Log, asked: dict[str, Asked]) -> list[str]:
    """One live attempt per job, none before its time, none beyond its limit, none after it succeeded."""
    found = []
    ended_well: dict[str, int] = {}
    by_job: dict[str, list[Attempt]] = defaultdict(list)
    for attempt in log.attempts:
        by_job[attempt.job].append(attempt)
        if attempt.reason == "finished":
            ended_well[attempt.job] = attempt.end_ms
    for name, attempts in by_job.items():
        attempts.sort(key=lambda one: one.start_ms)
        for number, attempt in enumerate(attempts):
            before = attempts[number - 1] if number else None
            found += _life(asked[name], attempt, before, number + 1, ended_well)
    return found


def _life(
    job: Asked, attempt: Attempt, before: Attempt | None, number: int, ended_well: dict[str, int]
) -> list[str]:
    late = [
        needed for needed in job.depends_on if ended_well.get(needed, attempt.start_ms + 1) > attempt.start_ms
    ]
    broken = {
        "starts before it may": attempt.start_ms < max(job.submitted_ms, job.not_before_ms),
        "runs beyond its limit": attempt.end_ms - attempt.start_ms > job.limit_ms,
        "counts its attempts wrongly": attempt.attempt != number,
        "has two live attempts": before is not None and before.end_ms > attempt.start_ms,
        "runs again after it ended": before is not None and before.reason in {"finished", "timed_out"},
        f"starts before {late} succeeded": bool(late),
    }
    return [f"{job.job} {what}" for what, is_so in broken.items() if is_so]
