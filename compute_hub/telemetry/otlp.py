"""Spans through OpenTelemetry's SDK: batched, sent by a thread of its own, dropped when there are too many."""

from datetime import datetime
from typing import Final

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags

from compute_hub.telemetry.tracing import Attributes, unix_ns
from kernel.traces import Trace

_PATIENCE_S: Final = 5
_DELAY_MS: Final = 1000
_QUEUE_MAX: Final = 8192
_BATCH_MAX: Final = 512
_SCOPE: Final = InstrumentationScope("compute_hub.telemetry")


class OtlpSpans:
    """Sends spans to `<endpoint>/v1/traces` as the service `hub-<process>`."""

    def __init__(self, endpoint: str, process: str) -> None:
        self._resource = Resource({"service.namespace": "compute-hub", "service.name": f"hub-{process}"})
        self._batches = BatchSpanProcessor(
            OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces", timeout=_PATIENCE_S),
            max_queue_size=_QUEUE_MAX,
            max_export_batch_size=_BATCH_MAX,
            schedule_delay_millis=_DELAY_MS,
        )

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
        """As `tracing.Spans`; a span that is not sampled is not sent."""
        if not span.sampled:
            return
        self._batches.on_end(
            ReadableSpan(
                name,
                context=_context(span.trace_id, span.span_id),
                parent=_context(span.trace_id, parent) if parent else None,
                resource=self._resource,
                attributes=dict(attributes),
                kind=SpanKind.SERVER if served else SpanKind.INTERNAL,
                start_time=unix_ns(since),
                end_time=unix_ns(max(since, until)),
                instrumentation_scope=_SCOPE,
            )
        )

    def close(self) -> None:
        """As `tracing.Spans`."""
        self._batches.force_flush(_PATIENCE_S * 1000)
        self._batches.shutdown()  # type: ignore[no-untyped-call] # the library leaves it untyped


def _context(trace_id: str, span_id: str) -> SpanContext:
    return SpanContext(
        int(trace_id, 16), int(span_id, 16), is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED)
    )
