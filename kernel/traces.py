"""What a request and everything it causes have in common, in the words of W3C Trace Context.

A `traceparent` names a trace and a span of it: `00-<trace id>-<span id>-<flags>`. The trace id is also the request id
of logs and answers.
"""

import re
from dataclasses import dataclass
from typing import Final

from kernel.ids import derived_id, new_id, new_secret

_TRACEPARENT: Final = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_SAMPLED: Final = 1
_SPAN_DIGITS: Final = 16


@dataclass(frozen=True, slots=True)
class Trace:
    """A span of a trace, and whether its spans are collected."""

    trace_id: str
    span_id: str
    sampled: bool = True

    def __str__(self) -> str:
        """As the header `traceparent`."""
        return f"00-{self.trace_id}-{self.span_id}-{int(self.sampled):02x}"

    def child(self) -> "Trace":
        """A new span of the same trace."""
        return Trace(self.trace_id, new_secret()[:_SPAN_DIGITS], self.sampled)

    def effect(self, noun: str, *causes: object) -> "Trace":
        """The span of something these causes have: told twice, it is one span."""
        return Trace(self.trace_id, derived_id(noun, *causes).hex[:_SPAN_DIGITS], self.sampled)


def new_trace() -> Trace:
    """The first span of a trace of its own."""
    return Trace(new_id().hex, new_secret()[:_SPAN_DIGITS])


def parse_trace(traceparent: str) -> Trace | None:
    """What a `traceparent` names; None if it is none."""
    found = _TRACEPARENT.fullmatch(traceparent)
    if found is None or not int(found[1], 16) or not int(found[2], 16):
        return None
    return Trace(found[1], found[2], bool(int(found[3], 16) & _SAMPLED))


def request_id(traceparent: str) -> str:
    """The id under which logs know a request; empty if nobody asked."""
    trace = parse_trace(traceparent)
    return "" if trace is None else trace.trace_id
