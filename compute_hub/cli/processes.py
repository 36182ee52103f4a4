"""The commands that are the hub's own processes; each imports what it runs when it runs, so the others start fast."""

import json
import os
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from compute_hub.identity.roles import Role
from compute_hub.sdk import HubClient
from compute_hub.settings import Settings, settings

if TYPE_CHECKING:
    from compute_hub.stack.up import LocalStack

_EXAMPLE_CODE = "91331003MA0EXAMPL0"
_OFFICERS = {
    Role.OPERATOR: "Operator of the centre",
    Role.AUTHORITY: "Officer of the authority",
    Role.FIRST_REVIEWER: "First reviewer",
    Role.APPROVER: "Approver",
    Role.AUDITOR: "Auditor",
}


def api() -> None:
    """Serve the HTTP API."""
    from compute_hub.api.app import run_api

    run_api(settings())


def controller(
    *,
    simulated: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False, help="Simulate the nodes of the settings on one Ray node; what ran is written here."
        ),
    ] = None,
    raylet: Annotated[
        bool,
        typer.Option(help="Also run a raylet: needed where no node of the same user runs on this machine."),
    ] = False,
    head: Annotated[bool, typer.Option(help="Also run the head of the Ray cluster, and a raylet.")] = False,
) -> None:
    """Schedule: lead or stand by."""
    from compute_hub.workers.controller import run_controller

    run_controller(settings(), schedule=simulated, raylet=raylet, head=head)


def biller() -> None:
    """Charge usage and capture what it costs."""
    from compute_hub.workers.biller import run_biller

    run_biller(settings())


def keeper() -> None:
    """Remove what jobs left when its time is over, or the disk is full."""
    from compute_hub.workers.keeper import run_keeper

    run_keeper(settings())


def migrate() -> None:
    """Bring the database to this version, as the owner in HUB_MIGRATION_URL, and set the settings' first prices.

    Once per release, before the hub's processes are started.
    """
    from compute_hub.stack.database import migrate_database
    from kernel.clock import utc_now

    migrate_database(settings(), utc_now())


def first_key(person: Annotated[str, typer.Argument(help="Whose key it is.")]) -> None:
    """Make an operator's key in the database itself, for an installation whose operators have none.

    It is shown this once. All other keys are made with it: `hub key make`.
    """
    from compute_hub.identity.keys import issue_key
    from compute_hub.stack.database import application_url
    from kernel.clock import utc_now
    from kernel.database import open_engine, transaction

    engine = open_engine(application_url(settings()), pool_size=1)
    with transaction(engine) as session:
        made = issue_key(session, Role.OPERATOR, person, at=utc_now())
    engine.dispose()
    typer.echo(made)


def up(
    *,
    with_monitoring: Annotated[
        bool,
        typer.Option(help="Also run Prometheus, and Alertmanager and Grafana where they are installed."),
    ] = False,
) -> None:
    """Run the whole hub on this machine until Ctrl-C, with an API key for every role.

    Jobs have their grace then; Ctrl-C again cuts it short.
    """
    from compute_hub.stack.up import LocalStack

    chosen = settings()
    console = Console()
    stack = LocalStack(
        chosen,
        {},
        lambda sentence: console.print(sentence, highlight=False),
        monitored=with_monitoring,
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: _interrupt(stack))
    try:
        with stack:
            _introduce(console, chosen, stack)
            never = threading.Event()
            while not never.wait(1):
                for what in stack.mend():
                    console.print(what, highlight=False)
    except KeyboardInterrupt:
        console.print("Everything is stopped.")


def _interrupt(stack: "LocalStack") -> None:
    """Leave what is being done, once; stopping itself is not interrupted, only its patience with jobs ends."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, lambda *_: stack.hurry())
    raise KeyboardInterrupt


def _introduce(console: Console, chosen: Settings, stack: "LocalStack") -> None:
    keys = {role.value: stack.key(role, person) for role, person in _OFFICERS.items()}
    with HubClient(stack.url, keys["operator"]) as operator:
        enterprise = operator.post(
            "/v1/enterprises",
            {"credit_code": _EXAMPLE_CODE, "name": "Example Manufacturing Ltd.", "region": "331003"},
        )
        request = {"role": "tenant", "person": "Engineer of the example firm", "tenant_id": enterprise["id"]}
        keys["tenant"] = operator.post("/v1/api-keys", request)["key"]
        operator.post(
            f"/v1/enterprises/{enterprise['id']}/deposits",
            {"amount_cny": "1000.00", "reference": f"{_EXAMPLE_CODE} opening balance"},
        )
    _keep(chosen.state_directory / "keys.json", {"url": stack.url, "keys": keys})
    lines = [
        "",
        f"API       {stack.url}/v1   (its description: {stack.url}/v1/openapi.json)",
        f"Metrics   {stack.url}/metrics",
        *(f"{program.name.capitalize():<13} {program.address}" for program in stack.monitors),
        f"Logs      {stack.logs}",
        "",
        f"API keys, one per role (also in {chosen.state_directory / 'keys.json'}):",
        *(f"  {role:<15} {key}" for role, key in keys.items()),
    ]
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False)
    console.print("\nTry it in another terminal, as the example firm:")
    console.print(f"  export HUB_URL={stack.url} HUB_API_KEY={keys['tenant']}", soft_wrap=True)
    console.print("  hub cluster show")
    model = next((device.model for node in chosen.nodes for device in node.devices), "MODEL")
    console.print(
        f"  hub job submit --accelerator {model} --workdir examples/digits -- python train.py", soft_wrap=True
    )
    console.print("  hub job list\n")
    console.print("Ctrl-C ends everything.")


def _keep(path: Path, content: object) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
