"""`hub voucher …`."""

import typer

from compute_hub.cli.output import AsJson, client, show

app = typer.Typer(help="Vouchers and what remains on them.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keep `list` a word of its own while it is the only command."""


@app.command("list")
def list_(*, as_json: AsJson = False) -> None:
    """List vouchers: yours, or all for an officer."""
    with client() as hub:
        rows = hub.get("/v1/vouchers")
    show(
        rows,
        {
            "number": "voucher",
            "programme": "programme",
            "state": "state",
            "face_cny": "face value",
            "held_cny": "held",
            "captured_cny": "captured",
            "remaining_cny": "remaining",
            "expires_at": "expires",
            "id": "id",
        },
        as_json=as_json,
    )
