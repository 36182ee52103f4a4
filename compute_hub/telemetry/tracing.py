"""Spans for OpenTelemetry, sent where an endpoint is configured and nowhere otherwise.

A job's way runs through several processes, any of which may be killed at any time. So no span is kept open: each is
told whole when what it is about is over and committed, as a child of the request that submitted the job, whose
`traceparent` is kept with the job. Ids of effects are derived, so a step told twice is one span.
Invariant: telling never waits and never fails; what the collector does not take in time is dropped.
"""

from collections.abc import Mapping
from contextvars import ContextVar
from datetime import datetime
from typing import Final, Protocol

from compute_hub.settings import Settings
from kernel.clock import unix_ms
from kernel.traces import Trace

Attributes = Mapping[str, str | int]

CURRENT: Final[ContextVar[Trace | None]] = ContextVar("hub_current_request", default=None)
"""The span of the request that is being answered."""

ABOUT: Final[ContextVar[dict[str, str | int] | None]] = ContextVar("hub_request_is_about", default=None)
"""What the request's span and log line say beside what every request's say."""


class Spans(Protocol):
    """Somebody who is told spans."""

    def tell(
        self,
        name: str,
        span: Trace,
        parent: str,
        since: datetime,
        until: datetime,
        attributes: Attributes,
        *,
        served: bool = False,
    ) -> None:
        """One span that is over.

        Args:
            name: of the span; one of few.
            span: its own ids.
            parent: the span id of what it belongs to, empty for none.
            since: its beginning.
            until: its end.
            attributes: facts about it.
            served: whether it answered somebody outside.
        """
        ...

    def close(self) -> None:
        """Send what is left, briefly."""
        ...


class NoSpans:
    """Nobody collects."""

    def tell(
        self,
        name: str,
        span: Trace,
        parent: str,
        since: datetime,
        until: datetime,
        attributes: Attributes,
        *,
        served: bool = False,
    ) -> None:
        """Nothing is told."""

    def close(self) -> None:
        """Nothing is left."""


def open_spans(settings: Settings, process: str) -> Spans:
    """To the configured collector (OTLP over HTTP), or to nobody."""
    if settings.otlp_endpoint is None:
        return NoSpans()
    # The library takes half a second to import: only who sends spans pays for it.
    from compute_hub.telemetry.otlp import OtlpSpans  # noqa: PLC0415 - see above

    return OtlpSpans(settings.otlp_endpoint, process)


def traceparent() -> str:
    """Of the request being answered; empty outside of one."""
    current = CURRENT.get()
    return "" if current is None else str(current)


def about(**facts: str | int) -> None:
    """Let the request's span and log line say more; does nothing outside of one."""
    known = ABOUT.get()
    if known is not None:
        known.update(facts)


def unix_ns(at: datetime) -> int:
    """Nanoseconds since the Unix epoch, as spans count; exact to the microsecond."""
    return unix_ms(at) * 1_000_000 + at.microsecond % 1000 * 1000
