"""What becomes of runs whose supervisor died: they died with it, and are buried when the next one starts.

Each is reported as ended `supervisor_lost` and metered exactly to the last reading that reached the disk.
"""

from dataclasses import replace

from scheduler.node.protocol import EndReason, RunState
from scheduler.node.spool import Line, Spool, ended_line, usage_line


def bury(spool: Spool, *, wall_ms: int, boot_ms: int) -> None:
    """Write the last record and the end of every run the journal believes alive. Raises OSError."""
    lines: list[Line] = []
    for run in spool.memory.open.values():
        _, record = run.meter.cut(final=True)
        ended = replace(
            run.status,
            state=RunState.ENDED,
            ended_unix_ms=wall_ms,
            ended_boot_ms=boot_ms,
            end_reason=EndReason.SUPERVISOR_LOST,
            reason="The node's supervisor ended without stopping it; it ended at the same moment.",
        )
        lines += [usage_line(record), ended_line(ended)]
    if lines:
        spool.append(*lines)
