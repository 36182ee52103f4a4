"""`hub`: one command for enterprises, officers and operators.

Commands that talk to a running hub use HUB_URL and HUB_API_KEY; those that are a part of the hub read its settings.
"""

import sys

import typer

from compute_hub.cli import (
    alerts,
    applications,
    billing,
    claims,
    cluster,
    enterprises,
    jobs,
    meter,
    nodes,
    programmes,
    rates,
    secrets,
    templates,
    vouchers,
    wallets,
)
from compute_hub.cli.job_estimate import estimate
from compute_hub.cli.job_submission import submit
from compute_hub.cli.processes import api, biller, controller, first_key, keeper, migrate, up
from compute_hub.cli.replay import replay
from compute_hub.cli.simulate import simulate
from kernel.errors import HubError

app = typer.Typer(
    name="hub",
    help="Compute Hub: vouchers, jobs, usage and claims of a computing centre.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
jobs.app.command()(submit)
jobs.app.command()(estimate)
for name, group in (
    ("job", jobs.app),
    ("template", templates.app),
    ("secret", secrets.app),
    ("programme", programmes.app),
    ("application", applications.app),
    ("voucher", vouchers.app),
    ("wallet", wallets.app),
    ("enterprise", enterprises.app),
    ("key", enterprises.key_app),
    ("claim", claims.app),
    ("cluster", cluster.app),
    ("node", nodes.app),
    ("rate", rates.app),
    ("meter", meter.app),
    ("invoice", billing.app),
    ("alert", alerts.app),
    ("statement", billing.statement_app),
    ("ledger", cluster.ledger_app),
):
    app.add_typer(group, name=name)
enterprises.key_app.command("first")(first_key)
for command in (up, migrate, api, controller, biller, keeper, simulate, replay):
    app.command()(command)


def main() -> None:
    """Run the command; a refusal is one sentence on standard error and exit status 1."""
    try:
        app()
    except HubError as refusal:
        sys.stderr.write(f"hub: {refusal}\n")
        raise SystemExit(1) from None
