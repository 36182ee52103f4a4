"""What the centre has and what of it is given out: by model for everybody, by node for the operator."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from fractions import Fraction
from typing import Final

from sqlalchemy import text
from sqlalchemy.orm import Session

from compute_hub.telemetry.centre import Part
from compute_hub.telemetry.families import Bounded, Family, Sample
from compute_hub.telemetry.parts.sizes import MODELS_MAX, NODES_MAX

STATES: Final = ("available", "unhealthy", "draining", "down")
LEVELS: Final = ("full", "user", "process", "unavailable")

DEVICES = Family(
    "hub_devices",
    "Accelerators installed, by what they can be used for now: available, or unhealthy, or on a node that is "
    "draining or down. Their sum is the installed capacity, the denominator of the sold rate; those available are "
    "the denominator of the allocation rate.",
    ("model", "state"),
)
ALLOCATED = Family(
    "hub_devices_allocated",
    "Accelerators given out to jobs, fractions counted as such: the numerator of the allocation rate.",
    ("model",),
)
FREE_WHOLE = Family(
    "hub_devices_free_whole", "Available accelerators of which no part is given out.", ("model",)
)
FREE_BLOCK = Family(
    "hub_devices_free_block",
    "The most wholly free accelerators on one node: the largest gang that fits there.",
    ("model",),
)
PEAK = Family(
    "hub_peak_pflops",
    "Peak PFLOPS of the accelerators in each state, at the precision of hub_accelerator_peak_pflops.",
    ("model", "state"),
)
PEAK_EACH = Family(
    "hub_accelerator_peak_pflops", "Peak PFLOPS of one accelerator, as configured.", ("model", "precision")
)
NODES = Family("hub_nodes", "Nodes by state.", ("state",))
ISOLATION = Family(
    "hub_nodes_isolation",
    "Nodes that are not down, by how well they keep tenants apart: full, user (one uid or no cgroups), process (no "
    "sandbox, by choice), unavailable (they refuse every job).",
    ("level",),
)
NODE_UP = Family("hub_node_up", "Whether a node answers the controller.", ("node",))
NODE_DEVICES = Family("hub_node_devices", "Healthy accelerators of a node.", ("node", "model"))
NODE_UNHEALTHY = Family(
    "hub_node_devices_unhealthy", "Accelerators of a node that are reported broken.", ("node", "model")
)
NODE_ALLOCATED = Family(
    "hub_node_devices_allocated", "Accelerators of a node given out to jobs.", ("node", "model")
)

_DEVICES = text("""
    WITH used AS (
        SELECT a.node, a.device_index, sum(upper(a.slots) - lower(a.slots)) AS milli
          FROM runs r JOIN allocations a ON a.run_id = r.id AND upper_inf(a.span)
         WHERE r.state <> 'ended' GROUP BY a.node, a.device_index)
    SELECT d.node, d.model, CASE WHEN n.state = 'up' AND n.admits <> 'open' THEN 'draining' ELSE n.state END AS state,
           count(*) FILTER (WHERE d.healthy AND NOT d.cordoned), count(*) FILTER (WHERE d.healthy AND d.cordoned),
           count(*) FILTER (WHERE NOT d.healthy),
           count(*) FILTER (WHERE d.healthy AND NOT d.cordoned AND used.milli IS NULL), coalesce(sum(used.milli), 0)
      FROM devices d JOIN nodes n ON n.name = d.node
      LEFT JOIN used ON used.node = d.node AND used.device_index = d.index
     GROUP BY d.node, d.model, n.state, n.admits""")
_NODES = text("""
    SELECT CASE WHEN state = 'up' AND admits <> 'open' THEN 'draining' ELSE state END,
           coalesce(isolation ->> 'level', 'unavailable'), count(*)
      FROM nodes GROUP BY 1, 2""")


def capacity(peak_pflops: Mapping[str, tuple[str, Fraction]]) -> Part:
    """The part; `peak_pflops` are precision and peak of one card by model, of the models of which it is known."""

    def read(session: Session, _at: datetime) -> Iterator[Sample]:
        rows = session.execute(_DEVICES).all()
        nodes, models = (
            Bounded((row[0] for row in rows), NODES_MAX),
            Bounded((row[1] for row in rows), MODELS_MAX),
        )
        for model in sorted({models(row[1]) for row in rows}):
            yield from (DEVICES(0, model, state) for state in STATES)
        block: dict[str, int] = {}
        for name, raw_model, state, open_, cordoned, unhealthy, free, milli in rows:
            node, model = nodes(name), models(raw_model)
            usable = {"up": "available"}.get(state, state)
            closed = "draining" if state == "up" else state
            yield DEVICES(open_, model, usable)
            yield DEVICES(cordoned, model, closed)
            yield DEVICES(unhealthy, model, "unhealthy" if state == "up" else state)
            yield ALLOCATED(float(milli) / 1000, model)
            yield FREE_WHOLE(free if state == "up" else 0, model)
            block[model] = max(block.get(model, 0), free if state == "up" else 0)
            if raw_model in peak_pflops:
                yield PEAK(float(open_ * peak_pflops[raw_model][1]), model, usable)
                yield PEAK(float(cordoned * peak_pflops[raw_model][1]), model, closed)
            yield NODE_UP(state != "down", node)
            yield NODE_DEVICES(open_ + cordoned, node, model)
            yield NODE_ALLOCATED(float(milli) / 1000, node, model)
            if unhealthy:
                yield NODE_UNHEALTHY(unhealthy, node, model)
        yield from (FREE_BLOCK(most, model) for model, most in block.items())
        yield from (
            PEAK_EACH(float(peak), model, precision) for model, (precision, peak) in peak_pflops.items()
        )
        yield from _nodes(session)

    families = (
        DEVICES, ALLOCATED, FREE_WHOLE, FREE_BLOCK, PEAK, PEAK_EACH, NODES, ISOLATION,
        NODE_UP, NODE_DEVICES, NODE_UNHEALTHY, NODE_ALLOCATED,
    )  # fmt: skip
    return Part("capacity", 2000, families, read)


def _nodes(session: Session) -> Iterator[Sample]:
    yield from (NODES(0, state) for state in ("up", "draining", "down"))
    yield from (ISOLATION(0, level) for level in LEVELS)
    for state, level, count in session.execute(_NODES):
        yield NODES(count, state)
        if state != "down":
            yield ISOLATION(count, level if level in LEVELS else "unavailable")
