"""The only place that reads a clock; everybody else is told what time it is.

Wall time (`utc_now`) labels events for people. Durations that are metered or that decide about a lease come
from CLOCK_BOOTTIME, which no administrator and no time server can step.
"""

import time
from datetime import UTC, datetime
from pathlib import Path


def utc_now() -> datetime:
    """The wall clock, as an aware UTC datetime."""
    return datetime.now(UTC)  # noqa: TID251 - this module is the one reader of clocks


def unix_ms(at: datetime) -> int:
    """Milliseconds since the Unix epoch of an aware datetime, rounded down."""
    delta = at - datetime(1970, 1, 1, tzinfo=UTC)
    return (delta.days * 86_400 + delta.seconds) * 1000 + delta.microseconds // 1000


def from_unix_ms(ms: int) -> datetime:
    """The aware UTC datetime of a count of milliseconds since the Unix epoch."""
    return datetime.fromtimestamp(ms // 1000, UTC).replace(microsecond=ms % 1000 * 1000)


def boottime_ms() -> int:
    """Milliseconds since boot, suspension included; never steps, comparable only within one boot."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


def boottime_ns() -> int:
    """As `boottime_ms`, in nanoseconds, for what takes less than a millisecond."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    """The kernel's random name of this boot, which says whether two `boottime_ms` may be compared."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
