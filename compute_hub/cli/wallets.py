"""`hub wallet …`: an enterprise's own money."""

from typing import Annotated, Any

import typer

from compute_hub.cli.output import AsJson, client, show

app = typer.Typer(help="Prepaid balances, credit lines, budgets, groups.", no_args_is_help=True)

_COLUMNS = {
    "tenant_id": "enterprise",
    "prepaid_available_cny": "prepaid",
    "prepaid_held_cny": "held",
    "credit_available_cny": "credit left",
    "credit_held_cny": "held",
    "payer_id": "paid by",
}
_HISTORY = {
    "sequence": "n",
    "at": "at",
    "movement": "movement",
    "side": "side",
    "amount": "amount",
    "net": "balance",
    "held": "held",
    "cause": "cause",
}
_BUDGETS = {"project": "project", "starts_at": "from", "ends_at": "until", "available_cny": "left", "id": "id"}

Enterprise = Annotated[str, typer.Argument(help="The enterprise's id.")]
Amount = Annotated[str, typer.Argument(help="In yuan, such as 1000.00.")]
Reference = Annotated[str, typer.Option(help="The bank's or your reference; it is booked once.")]
Project = Annotated[str, typer.Argument(help="The project.")]
Starts = Annotated[str, typer.Option(help="Such as 2026-01-01T00:00:00+08:00.")]


@app.command("show")
def show_(
    enterprise: Annotated[str | None, typer.Argument(help="Whose; your own, if left out.")] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Show an enterprise's own money."""
    path = "/v1/wallet" if enterprise is None else f"/v1/enterprises/{enterprise}/wallet"
    with client() as hub:
        show([hub.get(path)], _COLUMNS, as_json=as_json)


@app.command()
def history(
    *,
    credit: Annotated[bool, typer.Option("--credit", help="Of your credit line instead.")] = False,
    as_json: AsJson = False,
) -> None:
    """List every movement of your prepaid balance."""
    with client() as hub:
        entries = list(hub.pages("/v1/wallet/history", of="credit" if credit else "prepaid"))
    show(entries, _HISTORY, as_json=as_json)


@app.command()
def deposit(enterprise: Enterprise, amount: Amount, reference: Reference, *, as_json: AsJson = False) -> None:
    """Book a bank transfer to an enterprise's prepaid balance."""
    _book(enterprise, "deposits", amount, reference, as_json=as_json)


@app.command("grant-credit")
def grant_credit(
    enterprise: Enterprise, amount: Amount, reference: Reference, *, as_json: AsJson = False
) -> None:
    """Raise an enterprise's postpaid credit line."""
    _book(enterprise, "credit:grant", amount, reference, as_json=as_json)


@app.command("withdraw-credit")
def withdraw_credit(
    enterprise: Enterprise, amount: Amount, reference: Reference, *, as_json: AsJson = False
) -> None:
    """Lower a credit line."""
    _book(enterprise, "credit:withdraw", amount, reference, as_json=as_json)


@app.command("repay-credit")
def repay_credit(
    enterprise: Enterprise, amount: Amount, reference: Reference, *, as_json: AsJson = False
) -> None:
    """Book a bank transfer for what was used on credit; what it brings beyond goes to the prepaid balance."""
    _book(enterprise, "credit:repay", amount, reference, as_json=as_json)


@app.command()
def bind(
    enterprise: Enterprise,
    affiliate: Annotated[str, typer.Argument(help="For whom it pays.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Let an enterprise pay for another one of its group."""
    _affiliate(enterprise, affiliate, "bind", as_json=as_json)


@app.command()
def unbind(
    enterprise: Enterprise,
    affiliate: Annotated[str, typer.Argument(help="For whom it no longer pays.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Stop paying for an affiliate."""
    _affiliate(enterprise, affiliate, "unbind", as_json=as_json)


@app.command()
def budgets(*, as_json: AsJson = False) -> None:
    """List what you may still spend on your projects."""
    with client() as hub:
        show(list(hub.pages("/v1/budgets")), _BUDGETS, as_json=as_json)


@app.command("raise-budget")
def raise_budget(
    project: Project,
    amount: Amount,
    starts: Starts,
    ends: Starts,
    reference: Reference,
    *,
    lower: Annotated[bool, typer.Option(help="Lower it instead.")] = False,
    as_json: AsJson = False,
) -> None:
    """Raise (or lower) what you yourself may spend on a project in a period."""
    body: dict[str, Any] = {"project": project, "starts_at": starts, "ends_at": ends}
    body |= {"amount_cny": amount, "reference": reference}
    with client() as hub:
        answer = hub.post("/v1/budgets:lower" if lower else "/v1/budgets:raise", body)
    show([answer], _BUDGETS, as_json=as_json)


def _book(enterprise: str, what: str, amount: str, reference: str, *, as_json: bool) -> None:
    body = {"amount_cny": amount, "reference": reference}
    with client() as hub:
        show([hub.post(f"/v1/enterprises/{enterprise}/{what}", body)], _COLUMNS, as_json=as_json)


def _affiliate(enterprise: str, affiliate: str, what: str, *, as_json: bool) -> None:
    with client() as hub:
        answer = hub.post(f"/v1/enterprises/{enterprise}/affiliates:{what}", {"affiliate_id": affiliate})
    show([answer], _COLUMNS, as_json=as_json)
