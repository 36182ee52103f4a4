"""Logs as one JSON object a line on standard error, the same of every process.

Invariant: whatever a process says, through structlog or through Python's own logging, is one JSON object with the
time, how grave it is, and which process says it. Lines about a job carry `job` and `request_id`: the trace id of the
request that submitted it, so that one word found in all logs tells a job's whole way. An error is told with where it
came from, never with what the variables there held.
"""

import logging
import sys
from typing import Final

import structlog

_SHARED: Final[tuple[structlog.typing.Processor, ...]] = (
    structlog.contextvars.merge_contextvars,
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    # Without the values of variables: among them are tenants' secrets, keys of the API and the database's password.
    structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False)),
)


def configure_logs(process: str) -> None:
    """Let this process log; `process` stands in every line."""

    def named(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        event["process"] = (
            process  # not a context variable: those do not reach the threads that libraries start
        )
        return event

    render = structlog.processors.JSONRenderer(ensure_ascii=False)
    structlog.configure(
        processors=[*_SHARED, named, render],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*_SHARED, structlog.stdlib.add_logger_name, named],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render],
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
