"""`hub invoice …` and `hub statement …`: what a month and a day come to."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from compute_hub.cli.output import AsJson, client, details, show

app = typer.Typer(help="Draft, close, show and file invoices.", no_args_is_help=True)
statement_app = typer.Typer(help="What a day came to.", no_args_is_help=True)

_INVOICES = {
    "number": "number",
    "month": "month",
    "buyer_name": "tenant",
    "gross_cny": "gross",
    "voucher_cny": "vouchers",
    "payable_cny": "payable",
    "vat_cny": "VAT",
    "owed_cny": "owed",
    "state": "state",
    "id": "id",
}
_LINES = {
    "line": "n",
    "model": "model",
    "month": "used in",
    "time_window": "time of day",
    "card_ms": "card time",
    "price_cny_per_card_hour": "per card-hour",
    "amount_cny": "amount",
}
Invoice = Annotated[str, typer.Argument(help="The invoice's id; `hub invoice list` shows it.")]
Tenant = Annotated[str | None, typer.Option(help="The enterprise; your own, if you are one.")]


@app.command("list")
def list_(
    *,
    month: Annotated[str | None, typer.Option(help="Only those of this month, such as 2026-03.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Only this enterprise's.")] = None,
    as_json: AsJson = False,
) -> None:
    """List invoices and credit notes."""
    with client() as hub:
        found = list(hub.pages("/v1/invoices", month=month, tenant_id=tenant))
    show(found, _INVOICES, as_json=as_json)


@app.command()
def draft(month: Annotated[str, typer.Argument()], *, tenant: Tenant = None, as_json: AsJson = False) -> None:
    """Say what a month such as 2026-03 would come to if it were closed now."""
    with client() as hub:
        found = hub.get("/v1/invoices:draft", month=month, tenant_id=tenant)
    if as_json:
        show([found], {}, as_json=True)
        return
    show(found["lines"], _LINES, as_json=False)
    details(found)


@app.command()
def close(month: Annotated[str, typer.Argument()], *, tenant: Tenant = None, as_json: AsJson = False) -> None:
    """Close a month for one tenant or for all: every invoice is final and numbered."""
    with client() as hub:
        made = hub.post("/v1/invoices:close", {"month": month, "tenant_id": tenant})
    show(made["items"], _INVOICES, as_json=as_json)


@app.command("show")
def show_(invoice: Invoice, *, as_json: AsJson = False) -> None:
    """Show an invoice and its lines."""
    with client() as hub:
        found = hub.get(f"/v1/invoices/{invoice}")
    if as_json:
        show([found], {}, as_json=True)
        return
    show(found["lines"], _LINES, as_json=False)
    details(found)


@app.command()
def explain(invoice: Invoice, line: Annotated[int, typer.Argument()], *, as_json: AsJson = False) -> None:
    """Lead from a line of an invoice to its jobs, the meter's records and the devices."""
    with client() as hub:
        rows = [
            {**record, "job_id": charge["job_id"], "where": f"{record['node']}:{record['devices']}"}
            for charge in hub.pages(f"/v1/invoices/{invoice}/lines/{line}/charges")
            for record in hub.pages(f"/v1/charges/{charge['charge_id']}/records")
        ]
    columns = {"job_id": "job", "attempt": "attempt", "rank": "rank", "k": "k", "where": "devices"}
    show(rows, columns | {"began_at": "from", "duration_ms": "for", "id": "id"}, as_json=as_json)


@app.command()
def credit(invoice: Invoice, reason: Annotated[str, typer.Option()], *, as_json: AsJson = False) -> None:
    """Write a credit note for what was given back of an invoice."""
    with client() as hub:
        show([hub.post(f"/v1/invoices/{invoice}:credit", {"reason": reason})], _INVOICES, as_json=as_json)


@app.command()
def save(
    invoice: Invoice,
    file: Annotated[Path, typer.Argument(help="Ends in .pdf or .xlsx.")],
    *,
    language: Annotated[str, typer.Option(help="zh or en.")] = "zh",
) -> None:
    """Save an invoice as PDF or Excel workbook."""
    with client() as hub:
        content = hub.file(f"/v1/invoices/{invoice}/document", format=file.suffix[1:], language=language)
    file.write_bytes(content)
    Console().print(f"{file}: {len(content)} bytes", markup=False)


@statement_app.command("show")
def statement(day: Annotated[str, typer.Argument()], *, tenant: Tenant = None, as_json: AsJson = False) -> None:
    """Show what was charged on a day such as 2026-03-14, and how the balances moved."""
    with client() as hub:
        found = hub.get(f"/v1/statements/{day}", tenant_id=tenant)
    if as_json:
        show([found], {}, as_json=True)
        return
    jobs = {"job_id": "job", "name": "name", "model": "model", "card_ms": "card time", "cost_cny": "cost"}
    show(found["jobs"], jobs | {"voucher_cny": "vouchers", "tenant_cny": "you"}, as_json=False)
    show(
        found["movements"],
        {"account": "account", "movement": "movement", "amount_cny": "amount"},
        as_json=False,
    )
    details(found)


@statement_app.callback()
def _group() -> None:
    """Keep `show` a word of its own while it is the only command."""
