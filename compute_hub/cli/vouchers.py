"""`hub voucher …`."""

from typing import Annotated

import typer

from compute_hub.cli.amounts import Amount, in_units
from compute_hub.cli.output import AsJson, client, details, show

app = typer.Typer(help="Vouchers and what remains on them.", no_args_is_help=True)

_COLUMNS = {
    "number": "voucher",
    "programme": "programme",
    "state": "state",
    "face": "face value",
    "held": "held",
    "captured": "captured",
    "remaining": "remaining",
    "use_by_at": "use by",
    "expires_at": "expires",
    "id": "id",
}
_FORECAST = {
    "number": "voucher",
    "programme": "programme",
    "use_by_at": "use by",
    "expires_at": "expires",
    "remaining": "remaining",
    "used_by_then": "will be used",
    "lapsing": "will lapse",
}
_RESTORED = {
    "restored_at": "at",
    "kind": "what",
    "source": "to",
    "amount_cny": "amount",
    "reason": "reason",
    "job_id": "job",
}

Voucher = Annotated[str, typer.Argument(help="The voucher's id.")]
Project = Annotated[str, typer.Argument(help="The project.")]
Reference = Annotated[str, typer.Option(help="Your reference; it counts once.")]


@app.command("list")
def list_(
    *,
    programme: Annotated[str | None, typer.Option(help="Only this programme's.")] = None,
    state: Annotated[str | None, typer.Option(help="Only active, expired or recalled ones.")] = None,
    as_json: AsJson = False,
) -> None:
    """List vouchers: yours, or all for an officer."""
    with client() as hub:
        show(list(hub.pages("/v1/vouchers", programme=programme, state=state)), _COLUMNS, as_json=as_json)


@app.command("show")
def show_(voucher: Voucher, *, as_json: AsJson = False) -> None:
    """Show a voucher with its parts for projects."""
    with client() as hub:
        found = hub.get(f"/v1/vouchers/{voucher}")
    if as_json:
        show([found], _COLUMNS, as_json=True)
        return
    show([found], _COLUMNS, as_json=False)
    if found["ended_at"]:
        details({"ended_at": found["ended_at"], "ended_reason": found["ended_reason"]})
    if found["parts"]:
        show(found["parts"], {"project": "project", "remaining": "remaining"}, as_json=False, title="Parts")


@app.command()
def allot(
    voucher: Voucher, project: Project, amount: Amount, reference: Reference, *, as_json: AsJson = False
) -> None:
    """Keep a part of a voucher for one project."""
    body = {"project": project, **in_units("amount", amount), "reference": reference}
    with client() as hub:
        show([hub.post(f"/v1/vouchers/{voucher}:allot", body)], _COLUMNS, as_json=as_json)


@app.command("return-part")
def return_part(
    voucher: Voucher, project: Project, amount: Amount, reference: Reference, *, as_json: AsJson = False
) -> None:
    """Give a project's part, or some of it, back to the whole voucher."""
    body = {"project": project, **in_units("amount", amount), "reference": reference}
    with client() as hub:
        show([hub.post(f"/v1/vouchers/{voucher}:return-part", body)], _COLUMNS, as_json=as_json)


@app.command()
def recall(
    voucher: Voucher,
    reason: Annotated[str, typer.Option(help="Why; the holder is told.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Take back what is not set aside on a voucher."""
    with client() as hub:
        answer = hub.post(f"/v1/vouchers/{voucher}:recall", {"reason": reason})
    show([answer], _COLUMNS, as_json=as_json)


@app.command()
def forecast(
    *,
    programme: Annotated[str | None, typer.Option(help="Only this programme's.")] = None,
    as_json: AsJson = False,
) -> None:
    """Forecast what will lapse unused, at the pace of use so far."""
    with client() as hub:
        found = hub.get("/v1/vouchers:forecast", programme=programme)
    show(found["items"], _FORECAST, as_json=as_json)
    if not as_json:
        show(found["by_month"], {"month": "month", "lapsing": "will lapse"}, as_json=False)


@app.command()
def restored(*, as_json: AsJson = False) -> None:
    """List what was given back for lost usage, or clawed back."""
    with client() as hub:
        show(list(hub.pages("/v1/restorations")), _RESTORED, as_json=as_json)


@app.command("restore")
def restore(
    charge: Annotated[str, typer.Argument(help="The charge's id; `hub job charges` shows it.")],
    reason: Annotated[str, typer.Option(help="What was lost.")],
    *,
    lost_ms: Annotated[
        int | None, typer.Option(help="Card milliseconds of it that were lost in all; all of them if left out.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Give a charge for lost usage back, or a part of it, to what had paid it."""
    body = {"reason": reason} if lost_ms is None else {"reason": reason, "lost_card_ms": lost_ms}
    with client() as hub:
        answer = hub.post(f"/v1/charges/{charge}:restore", body)
    show([answer], {"charge_id": "charge", "amount_cny": "given back"}, as_json=as_json)
