"""`hub claim …`."""

from typing import Annotated

import typer

from compute_hub.cli.output import AsJson, client, show

app = typer.Typer(help="Claims of the centre on programmes.", no_args_is_help=True)

_COLUMNS = {
    "id": "claim",
    "programme": "programme",
    "period": "period",
    "state": "state",
    "amount_cny": "amount",
    "made_at": "made",
}


@app.command()
def make(
    programme: Annotated[str, typer.Argument(help="The programme.")],
    period: Annotated[str, typer.Argument(help="Such as 2026-03.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Claim what a programme's vouchers have covered up to the end of a period."""
    with client() as hub:
        show([hub.post("/v1/claims", {"programme": programme, "period": period})], _COLUMNS, as_json=as_json)


@app.command("list")
def list_(*, as_json: AsJson = False) -> None:
    """List claims, newest first."""
    with client() as hub:
        show(hub.get("/v1/claims"), _COLUMNS, as_json=as_json)
