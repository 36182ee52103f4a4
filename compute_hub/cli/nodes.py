"""`hub node …`: join this machine to the centre, or tell the hub what to do with its nodes."""

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from compute_hub.cli.output import AsJson, client, show
from compute_hub.settings import settings
from kernel.errors import Invalid

app = typer.Typer(
    help="Join this machine to the centre, or drain, cordon and reserve its nodes.", invoke_without_command=True
)

_Node = Annotated[str, typer.Argument(help="The node's name.")]
_Reason = Annotated[str, typer.Option(help="Why; it is kept with your name.")]
_Card = Annotated[int | None, typer.Option(help="One device of the node, by its index.")]
_From = Annotated[str, typer.Option("--from", help="From when, as 2026-05-01T08:00 (UTC) or with an offset.")]
_To = Annotated[str, typer.Option("--to", help="Until when.")]
_Nodes = Annotated[list[str], typer.Argument(help="Nodes; for maintenance also NODE:0,2 for single devices.")]

_COLUMNS = {
    "name": "node",
    "standing": "is",
    "drain_by": "empty by",
    "cards": "cards",
    "used": "allocated",
    "trouble": "trouble",
    "facts": "labels",
    "last_seen_at": "seen",
}
_EVENTS = {"number": "n", "at": "at", "node": "node", "kind": "what", "sentence": "", "by": "by"}
_RESERVATIONS = {
    "id": "id",
    "purpose": "for",
    "tenant_id": "tenant",
    "facts": "nodes",
    "begins_at": "from",
    "ends_at": "to",
    "unused_card_ms": "unused",
    "reason": "why",
}


class NotATime(Invalid):
    """A time that cannot be read."""

    sentence = "{option}: {text!r} is not a time. Write it as 2026-05-01T08:00, with +08:00 behind it if it is not UTC."


class NotADevice(Invalid):
    """A device that cannot be read."""

    sentence = "{text!r} names no devices. Write NODE or NODE:0,2."


@app.callback()
def node(
    context: typer.Context,
    *,
    name: Annotated[str | None, typer.Option(help="Which node of the settings this machine is.")] = None,
    head: Annotated[bool, typer.Option(help="Also run the head of the Ray cluster.")] = False,
) -> None:
    """Join this machine to the centre (--name): a raylet and the supervisor that runs jobs. Or see the commands."""
    if context.invoked_subcommand is not None:
        return
    if name is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)
    from compute_hub.stack.node_process import run_node  # noqa: PLC0415 - the other commands start without Ray

    run_node(settings(), name, head=head)


@app.command("list")
def list_(*, as_json: AsJson = False) -> None:
    """List the nodes: how they stand, what of them is given out, what is wrong with their devices."""
    with client() as hub:
        nodes = hub.get("/v1/cluster")["nodes"]
    _show(nodes, as_json=as_json)


@app.command()
def cordon(node: _Node, reason: _Reason, *, card: _Card = None, as_json: AsJson = False) -> None:
    """Let a node, or one device of it, take no new jobs; what runs goes on."""
    _order(node, card, "cordon", {"reason": reason}, as_json=as_json)


@app.command()
def drain(
    node: _Node,
    reason: _Reason,
    *,
    deadline_s: Annotated[
        int | None, typer.Option(help="Stop what still runs after so many seconds; it is tried again.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Let a node run empty: its jobs finish, or have until a deadline."""
    _order(node, None, "drain", {"reason": reason, "deadline_s": deadline_s}, as_json=as_json)


@app.command()
def resume(node: _Node, reason: _Reason, *, card: _Card = None, as_json: AsJson = False) -> None:
    """Let a node, or one device of it, take jobs again."""
    _order(node, card, "resume", {"reason": reason}, as_json=as_json)


@app.command()
def label(
    node: _Node,
    labels: Annotated[
        list[str] | None, typer.Argument(help="All labels, as zone=a switch=s1; none: none.")
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Say where a node lies (zone, switch) and what it is, over what the node states of itself."""
    named = dict(pair.partition("=")[::2] for pair in labels or [])
    _order(node, None, "label", {"labels": named}, as_json=as_json)


@app.command()
def reserve(
    nodes: _Nodes, tenant: Annotated[str, typer.Option(help="The enterprise's id.")], begins: _From, ends: _To,
    reason: _Reason, *, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Keep whole nodes for an enterprise."""
    _reserve(nodes, tenant, begins, ends, reason, as_json=as_json)


@app.command()
def maintain(nodes: _Nodes, begins: _From, ends: _To, reason: _Reason, *, as_json: AsJson = False) -> None:
    """Announce a maintenance window: nothing starts that would run into it; what still runs then is stopped."""
    _reserve(nodes, None, begins, ends, reason, as_json=as_json)


@app.command()
def reservations(*, as_json: AsJson = False) -> None:
    """List reservations and maintenance windows, with the card time their holders did not use."""
    with client() as hub:
        _show_reservations(list(hub.pages("/v1/reservations")), as_json=as_json)


@app.command()
def cancel(
    reservation: Annotated[str, typer.Argument(help="The reservation's id.")], *, as_json: AsJson = False
) -> None:
    """Cancel a reservation or maintenance window, from now on."""
    with client() as hub:
        _show_reservations([hub.post(f"/v1/reservations/{reservation}:cancel")], as_json=as_json)


@app.command()
def events(
    node: Annotated[str | None, typer.Argument(help="Of this node only.")] = None, *, as_json: AsJson = False
) -> None:
    """List what was ordered of nodes and what happened to them, the latest first."""
    with client() as hub:
        show(list(hub.pages("/v1/node-events", node=node)), _EVENTS, as_json=as_json)


def _order(node: str, card: int | None, what: str, body: dict[str, Any], *, as_json: bool) -> None:
    where = f"/v1/nodes/{node}" if card is None else f"/v1/nodes/{node}/devices/{card}"
    with client() as hub:
        _show([hub.post(f"{where}:{what}", body)], as_json=as_json)


def _show(nodes: list[dict[str, Any]], *, as_json: bool) -> None:
    rows = nodes
    if not as_json:
        rows = [{**node, **_summary(node["devices"]), "facts": node["labels"]} for node in nodes]
    show(rows, _COLUMNS, as_json=as_json)


def _summary(devices: list[dict[str, Any]]) -> dict[str, Any]:
    used = sum(device["allocated_milli"] for device in devices)
    trouble = [
        f"{device['index']}: {'failed' if device['failed'] else 'unhealthy'} ({device['health_reason']})"
        for device in devices
        if not device["healthy"]
    ]
    trouble += [f"{device['index']}: cordoned" for device in devices if device["cordoned"]]
    models = sorted({device["model"] for device in devices})
    return {
        "cards": f"{len(devices)} × {', '.join(models)}",
        "used": f"{used / 1000:g}",
        "trouble": "; ".join(trouble) or None,
    }


def _reserve(
    nodes: list[str], tenant: str | None, begins: str, ends: str, reason: str, *, as_json: bool
) -> None:
    body = {
        "nodes": dict(map(_devices, nodes)),
        "tenant_id": tenant,
        "begins_at": _time("--from", begins),
        "ends_at": _time("--to", ends),
        "reason": reason,
    }
    with client() as hub:
        _show_reservations([hub.post("/v1/reservations", body)], as_json=as_json)


def _devices(text: str) -> tuple[str, list[int]]:
    node, _, indices = text.partition(":")
    try:
        return node, [int(index) for index in indices.split(",")] if indices else []
    except ValueError:
        raise NotADevice(text=text) from None


def _time(option: str, text: str) -> str:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise NotATime(option=option, text=text) from None
    return (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).isoformat()


def _show_reservations(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    if not as_json:
        rows = [{**row, "facts": {n: d or "all" for n, d in row["nodes"].items()}} for row in rows]
    show(rows, _RESERVATIONS, as_json=as_json)
