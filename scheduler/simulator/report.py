"""One self-contained page about a run: curves, waiting by size, a Gantt chart of nodes, policies side by side.

Nothing is fetched when it is opened: style and drawings are in the page.
"""

from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any, Final

from scheduler.policy.model import WHOLE_MILLI, DeviceSlice
from scheduler.simulator.engine import Outcome, Run
from scheduler.simulator.summary import finished_jobs
from scheduler.simulator.workload import Cluster

Row = tuple[str, Outcome, dict[str, Any]]

_WIDTH: Final = 960
_HEIGHT: Final = 160
_STEPS: Final = 480
_LEFT: Final = 84
_PLOT: Final = _WIDTH - _LEFT
_FOOT: Final = 20
_NODES_SHOWN: Final = 40
_BARS_SHOWN: Final = 4000
_ROW: Final = 12
_COLOURS: Final = ("#0b6e8a", "#c2571a", "#4f7a28", "#7a3f8f", "#a11d33", "#6b6b6b")
_STYLE: Final = """body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:62rem;padding:0
1rem;color:#1b1f24} table{border-collapse:collapse;width:100%;margin:.5rem 0 1.5rem}
th,td{padding:.3rem .6rem;text-align:right;border-bottom:1px solid #d8dee4}
th:first-child,td:first-child{text-align:left}svg{width:100%;height:auto;background:#f6f8fa}
figure{margin:0 0 1.5rem}.wide{overflow-x:auto}svg{min-width:42rem}
svg text{font:11px system-ui,sans-serif;fill:#57606a}
figcaption{color:#57606a;font-size:.9em}h2{margin-top:2rem}.key{margin-right:1.2rem}"""


def write_report(file: Path, cluster: Cluster, rows: list[Row]) -> None:
    """Write the page."""
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>Simulation</title>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<style>{_STYLE}</style></head><body><h1>Simulation</h1>",
        f"<p>{len(cluster.nodes)} nodes with {sum(len(node.devices) for node in cluster.nodes)} devices, ",
        f"{rows[0][2]['jobs']:,} jobs finished.</p>",
        _comparison(rows),
        _legend(rows),
        "<h2>Allocation rate</h2>",
        _curves(rows, _allocated(cluster), "Share of the devices that are allocated, over time", percent=True),
        "<h2>Jobs waiting</h2>",
        _curves(rows, _waiting, "Jobs that wait for their first start, over time"),
        "<h2>Waiting by size</h2>",
        _by_size(rows),
        f"<h2>Nodes under {escape(rows[0][0])}</h2>",
        _gantt(cluster, rows[0][1]),
        "</body></html>\n",
    ]
    file.write_text("".join(parts), encoding="utf-8")


def _table(head: list[str], body: list[list[str]]) -> str:
    heads = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in body)
    return (
        f"<div class='wide'><table><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table></div>".replace(
            " s</th>", "&nbsp;s</th>"
        )
    )


def _comparison(rows: list[Row]) -> str:
    keys = ["mean_jct_s", "mean_queue_s", "p50_queue_s", "p99_queue_s", "max_queue_s"]
    head = ["policy", "mean completion s", "mean wait s", "median wait s", "99 % wait s", "longest wait s"]
    head += ["bounded slowdown", "allocation rate", "preemptions", "impossible", "left waiting"]
    body = [
        [
            name,
            *(f"{summary[key]:,.0f}" for key in keys),
            f"{summary['bounded_slowdown']:.2f}",
            f"{summary['utilisation']:.1%}",
            f"{summary['preemptions']:,}",
            str(len(summary["impossible_jobs"])),
            str(len(summary["unstarted_jobs"])),
        ]
        for name, _, summary in rows
    ]
    return "<h2>Policies side by side</h2>" + _table(head, body)


def _legend(rows: list[Row]) -> str:
    keys = (
        f"<span class='key'><b style='color:{_COLOURS[index % len(_COLOURS)]}'>&#9632;</b> {escape(row[0])}</span>"
        for index, row in enumerate(rows)
    )
    return "<p>" + "".join(keys) + "</p>"


Curve = list[tuple[int, int]]
"""(time in ms, change) pairs."""


Measure = Callable[[Outcome], tuple[Curve, int]]
"""From a run to a curve and the top it is drawn against (0: its own)."""


def _waiting(outcome: Outcome) -> tuple[Curve, int]:
    changes: Curve = []
    for row in finished_jobs(outcome):
        changes += [(row.job.submitted_ms, 1), (row.job.submitted_ms + row.queue_ms, -1)]
    return changes, 0


def _allocated(cluster: Cluster) -> Measure:
    capacity = sum(len(node.devices) for node in cluster.nodes) * WHOLE_MILLI

    def measure(outcome: Outcome) -> tuple[Curve, int]:
        changes: Curve = []
        for run in outcome.runs:
            changes += [(run.start_ms, run.job.devices_milli), (run.end_ms, -run.job.devices_milli)]
        return changes, capacity

    return measure


def _curves(rows: list[Row], measure: Measure, caption: str, *, percent: bool = False) -> str:
    sampled = []
    begin = min((run.start_ms for _, outcome, _ in rows for run in outcome.runs), default=0)
    end = max((outcome.end_ms for _, outcome, _ in rows), default=1)
    top = 1
    for _, outcome, _ in rows:
        changes, ceiling = measure(outcome)
        values = _sample(sorted(changes), begin, max(end, begin + 1))
        if percent:  # a share is drawn against the most there is, in thousandths
            values, ceiling = [value * 1000 // max(1, ceiling) for value in values], 1000
        top = max(top, ceiling, *values)
        top += top % 2  # so that the middle is a whole number
        sampled.append(values)
    lines = "".join(
        f"<polyline fill='none' stroke='{_COLOURS[index % len(_COLOURS)]}' stroke-width='1.4' points='"
        + " ".join(
            f"{_LEFT + step * _PLOT / _STEPS:.1f},{_high(value, top):.1f}" for step, value in enumerate(values)
        )
        + "'/>"
        for index, values in reversed(list(enumerate(sampled)))  # the first policy on top of the others
    )
    levels = "".join(
        f"<line x1='{_LEFT}' x2='{_WIDTH}' y1='{_high(top * part, 4 * top):.1f}' y2='{_high(top * part, 4 * top):.1f}' "
        f"stroke='#d8dee4'/><text x='{_LEFT - 6}' y='{_high(top * part, 4 * top) + 4:.1f}' text-anchor='end'>"
        f"{_level(top * part / 4, percent=percent)}</text>"
        for part in (0, 2, 4)
    )
    return (
        f"<figure><div class='wide'><svg viewBox='0 0 {_WIDTH} {_HEIGHT + _FOOT}' role='img'>"
        f"{levels}{lines}{_days(begin, end)}</svg></div>"
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _high(value: int, top: int) -> float:
    """Where a value lies on a chart whose upper edge is `top`."""
    return _HEIGHT - value * (_HEIGHT - 10) / top


def _level(value: float, *, percent: bool) -> str:
    return f"{value / 10:.0f} %" if percent else f"{value:,.0f}"


def _days(begin: int, end: int, y: int = _HEIGHT) -> str:
    """Marks of time under a chart, in days or hours since its beginning."""
    unit, name = (86_400_000, "d") if end - begin >= 3 * 86_400_000 else (3_600_000, "h")
    step = max(1, -(-(end - begin) // unit) // 8)
    marks = range(0, (end - begin) // unit + 1, step)
    return "".join(
        f"<text x='{_LEFT + mark * unit * _PLOT / max(1, end - begin):.1f}' y='{y + 14}'>{mark} {name}</text>"
        for mark in marks
        if mark * unit * _PLOT / max(1, end - begin) < _PLOT - 24
    )


def _sample(changes: Curve, begin: int, end: int) -> list[int]:
    values = []
    level, at = 0, 0
    for step in range(_STEPS):
        until = begin + (end - begin) * (step + 1) // _STEPS
        while at < len(changes) and changes[at][0] <= until:
            level += changes[at][1]
            at += 1
        values.append(level)
    return values


def _by_size(rows: list[Row]) -> str:
    sizes = sorted({size for _, _, summary in rows for size in summary["by_size"]}, key=float)
    head = ["devices", "jobs", *(f"{name}: mean / longest wait s" for name, _, _ in rows)]
    body = []
    for size in sizes:
        cells = [summary["by_size"].get(size) for _, _, summary in rows]
        body.append(
            [
                size,
                f"{max(cell['jobs'] for cell in cells if cell):,}",
                *(
                    f"{cell['mean_queue_s']:,.0f} / {cell['max_queue_s']:,.0f}" if cell else ""
                    for cell in cells
                ),
            ]
        )
    return _table(head, body)


def _gantt(cluster: Cluster, outcome: Outcome) -> str:
    shown = {node.name: (index, len(node.devices)) for index, node in enumerate(cluster.nodes[:_NODES_SHOWN])}
    begin = min((run.start_ms for run in outcome.runs), default=0)
    scale = _PLOT / max(1, outcome.end_ms - begin)
    bars: list[str] = []
    for run in sorted(outcome.runs, key=lambda one: (one.start_ms - one.end_ms, one.job.id)):
        if len(bars) >= _BARS_SHOWN:
            break
        for placement in run.placements:
            if placement.node in shown and placement.devices:
                index, devices = shown[placement.node]
                bars.append(_bar(run, placement.devices, index, devices, begin, scale))
    names = "".join(
        f"<text x='{_LEFT - 6}' y='{(index + 1) * _ROW - 2}' text-anchor='end'>{escape(name[-13:])}</text>"
        for name, (index, _) in shown.items()
    )
    high = max(1, len(shown)) * _ROW
    return (
        f"<figure><div class='wide'><svg viewBox='0 0 {_WIDTH} {high + _FOOT}' role='img'>{names}{''.join(bars)}"
        f"{_days(begin, outcome.end_ms, high)}</svg></div><figcaption>{len(shown)} of {len(cluster.nodes)} nodes, a "
        f"row each, devices from top to bottom; the {len(bars):,} longest allocations on them</figcaption></figure>"
    )


def _bar(run: Run, pieces: tuple[DeviceSlice, ...], index: int, devices: int, begin: int, scale: float) -> str:
    each = (_ROW - 2) / max(1, devices)
    x = _LEFT + (run.start_ms - begin) * scale
    y = index * _ROW + min(piece.device for piece in pieces) * each
    wide = max(0.4, (run.end_ms - run.start_ms) * scale)
    high = max(0.6, each * len(pieces))
    hue = sum(map(ord, run.job.id)) * 47 % 360
    return (
        f"<rect x='{x:.1f}' y='{y:.1f}' width='{wide:.1f}' height='{high:.1f}' fill='hsl({hue} 45% 55%)'>"
        f"<title>{escape(run.job.id)}: {escape(run.end_reason)}</title></rect>"
    )
