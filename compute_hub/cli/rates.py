"""`hub rate …`: what card time costs, and corrections of what it should have cost."""

from pathlib import Path
from typing import Annotated

import typer

from compute_hub.cli.output import AsJson, client, read_json, show

app = typer.Typer(help="What card time costs.", no_args_is_help=True)

_RATES = {
    "model": "model",
    "price_cny_per_card_hour": "per card-hour",
    "effective_from": "from",
    "effective_until": "until",
    "agreement": "agreement",
    "reason": "why",
    "id": "id",
}


@app.command("list")
def list_rates(*, as_json: AsJson = False) -> None:
    """List rate cards by model and the instant they begin: the history of all prices."""
    with client() as hub:
        show(list(hub.pages("/v1/rates")), _RATES, as_json=as_json)


@app.command("set")
def set_rate(
    model: Annotated[str, typer.Argument(help="The accelerator's model.")],
    price: Annotated[str, typer.Argument(help="Of one card-hour, in yuan.")],
    *,
    begins: Annotated[
        str | None, typer.Option("--from", help="Such as 2026-07-01T00:00:00+08:00; now, if left out.")
    ] = None,
    reason: Annotated[str, typer.Option(help="Why, for those who ask later.")] = "",
    as_json: AsJson = False,
) -> None:
    """Set a plain price of a model's card-hour from an instant on."""
    body = {"model": model, "price_cny_per_card_hour": price, "effective_from": begins, "reason": reason}
    with client() as hub:
        show([hub.post("/v1/rates", body)], _RATES, as_json=as_json)


@app.command()
def publish(
    file: Annotated[Path, typer.Argument(help='JSON: {"cards": [{"model": …}, …]}.', exists=True)],
    *,
    as_json: AsJson = False,
) -> None:
    """Set all rate cards of a file, or none: by kind, time of day, priority, fraction, volume, agreement."""
    with client() as hub:
        show(hub.post("/v1/rates:publish", read_json(file))["cards"], _RATES, as_json=as_json)


@app.command()
def correct(
    charge: Annotated[str, typer.Argument(help="The charge; `hub job charges` shows it.")],
    rate: Annotated[str, typer.Argument(help="The rate it should have had; `hub rate list` shows it.")],
    reason: Annotated[str, typer.Option(help="Why it had another.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Give a charge back and charge the same records again by another, lower rate."""
    with client() as hub:
        corrected = hub.post(f"/v1/charges/{charge}:correct", {"rate_id": rate, "reason": reason})
    columns = {
        "charge_id": "instead of",
        "replacement_id": "charge",
        "amount_cny": "cost",
        "tenant_cny": "you pay",
    }
    show([corrected], columns, as_json=as_json)
