"""`hub`: one command for enterprises, officers and operators.

Commands that talk to a running hub use HUB_URL and HUB_API_KEY; those that are a part of the hub read its settings.
"""

import sys

import typer

from compute_hub.cli import claims, cluster, jobs, vouchers
from compute_hub.cli.processes import api, biller, controller, node, up
from compute_hub.cli.simulate import simulate
from kernel.errors import HubError

app = typer.Typer(
    name="hub",
    help="Compute Hub: vouchers, jobs, usage and claims of a computing centre.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(jobs.app, name="job")
app.add_typer(vouchers.app, name="voucher")
app.add_typer(claims.app, name="claim")
app.add_typer(cluster.app, name="cluster")
app.add_typer(cluster.ledger_app, name="ledger")
for command in (up, api, controller, biller, node, simulate):
    app.command()(command)


def main() -> None:
    """Run the command; a refusal is one sentence on standard error and exit status 1."""
    try:
        app()
    except HubError as refusal:
        sys.stderr.write(f"hub: {refusal}\n")
        raise SystemExit(1) from None
