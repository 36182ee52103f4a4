"""The report: who got what, which cards ran what for how long, who paid what share, what the centre claims."""

from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from compute_hub.cli.output import yuan
from compute_hub.identity.roles import Role
from compute_hub.stack.ray_node import export_ray_environment, ray_address
from examples.demo.story import Story
from kernel.money import format_yuan, parse_yuan

EXPECTED = {
    "distributed training": ("succeeded", 0),
    "cancelled training": ("cancelled", None),
    "digits training": ("succeeded", 0),
    "failing evaluation": ("failed", 3),
    "waiting training": ("succeeded", 0),
}


def build_report(story: Story) -> dict[str, Any]:
    """Everything the report says, as JSON; amounts in micro-yuan."""
    auditor = story.officers[Role.AUDITOR]
    programme = auditor.get("/v1/programmes")["items"][0]
    audit = auditor.get("/v1/ledger/audit")
    jobs = story.current_jobs()
    usage = [record for job in jobs for record in story.usage(job["id"])]
    return {
        "programme": {
            "budget_micros": parse_yuan(programme["budget_cny"]),
            "issued_micros": parse_yuan(programme["issued_cny"]),
        },
        "vouchers": [_voucher(story, voucher) for voucher in auditor.pages("/v1/vouchers")],
        "jobs": [_job(story, job) for job in jobs],
        "claim": {
            "id": story.claim["id"],
            "amount_micros": parse_yuan(story.claim["amount_cny"]),
            "lines": story.claim["line_count"],
        },
        "ledger": {key: audit[key] for key in ("transfers", "sum_micros", "audit")},
        "usage": {"records": len(usage), "card_ms": sum(record["slot_ms"] for record in usage) // 1000},
        "ray": _ray(story),
    }


def _voucher(story: Story, voucher: dict[str, Any]) -> dict[str, Any]:
    amounts = {
        f"{part}_micros": parse_yuan(voucher[f"{part}_cny"])
        for part in ("face", "captured", "held", "remaining")
    }
    return {"id": voucher["id"], "tenant": story.names[voucher["tenant_id"]], **amounts}


def _job(story: Story, job: dict[str, Any]) -> dict[str, Any]:
    devices = [[device["node"], device["index"]] for device in job["devices"]]
    return {
        "id": job["id"],
        "name": job["name"],
        "tenant": story.names[job["tenant_id"]],
        "state": job["state"],
        "exit_code": job["exit_code"],
        "nodes": sorted({node for node, _ in devices}),
        "devices": devices,
        "queued_at": job["queued_at"],
        "started_at": job["started_at"],
        "ended_at": job["ended_at"],
        "card_ms": job["card_ms"],
        "charge_micros": parse_yuan(job["charge_cny"]),
        "voucher_micros": parse_yuan(job["voucher_cny"]),
        "tenant_micros": parse_yuan(job["tenant_cny"]),
    }


def _ray(story: Story) -> dict[str, Any]:
    """What the hub's Ray cluster says of itself."""
    settings = story.stack.settings
    export_ray_environment(settings)
    import ray  # noqa: PLC0415 - Ray reads its environment when it is imported

    from scheduler.ray.start import keep_loopback  # noqa: PLC0415 - nor this

    keep_loopback()
    ray.init(address=ray_address(settings), log_to_driver=False, configure_logging=False)
    alive = sum(node["Alive"] for node in ray.nodes())
    ray.shutdown()
    return {"nodes": alive, "version": ray.__version__}


def faults(report: dict[str, Any]) -> list[str]:
    """What is not as the story says; nothing, if all is well."""
    found = []
    for job in report["jobs"]:
        state, code = EXPECTED[job["name"]]
        if job["state"] != state or (code is not None and job["exit_code"] != code):
            found.append(
                f"{job['name']} ended as {job['state']} with exit code {job['exit_code']}, not {state}"
            )
        if job["charge_micros"] != job["voucher_micros"] + job["tenant_micros"]:
            found.append(f"{job['name']}: what voucher and firm pay is not its cost")
    captured = sum(voucher["captured_micros"] for voucher in report["vouchers"])
    paid = sum(job["voucher_micros"] for job in report["jobs"])
    if not captured == paid == report["claim"]["amount_micros"]:
        found.append(
            f"vouchers captured {captured}, jobs say {paid}, the claim says {report['claim']['amount_micros']}"
        )
    if report["ledger"]["audit"] != "ok" or report["ledger"]["sum_micros"] != 0:
        found.append("the ledger's audit found differences")
    return found


def print_report(report: dict[str, Any], path: Path) -> None:
    """The report for people."""
    console = Console()
    if not console.is_terminal:
        console.width = 132
    console.rule("[bold]Compute Hub: what the vouchers did[/bold]")
    console.print(_money(report))
    console.print(_work(report))
    claim = report["claim"]
    console.print(
        f"The centre claims [bold]{_yuan(claim['amount_micros'])}[/bold] from the programme in {claim['lines']} lines, "
        "one for each charge a voucher shared in."
    )
    usage, ledger = report["usage"], report["ledger"]
    console.print(
        f"Behind it: {usage['records']} meter records of {usage['card_ms'] / 1000:,.1f} card-seconds; "
        f"{ledger['transfers']} ledger transfers whose balances sum to {_yuan(ledger['sum_micros'])}; "
        f"audit {ledger['audit']}; {report['ray']['nodes']} Ray nodes (Ray {report['ray']['version']})."
    )
    seconds = report["seconds"]
    console.print(
        f"It took {seconds['total']} s: {seconds['start']} s to start, {seconds['story']} s for the story. "
        f"The same as data: {path}"
    )


def _money(report: dict[str, Any]) -> Table:
    budget, issued = report["programme"]["budget_micros"], report["programme"]["issued_micros"]
    table = Table(
        title=f"Programme: {_yuan(budget)} a year, of which {_yuan(issued)} are issued",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for heading in ("firm", "voucher worth", "used", "set aside", "left"):
        table.add_column(heading, justify="left" if heading == "firm" else "right")
    for voucher in report["vouchers"]:
        amounts = (_yuan(voucher[f"{part}_micros"]) for part in ("face", "captured", "held", "remaining"))
        table.add_row(voucher["tenant"], *amounts)
    return table


def _work(report: dict[str, Any]) -> Table:
    table = Table(title="Jobs", title_justify="left", box=box.SIMPLE_HEAD)
    for heading in (
        "job",
        "firm",
        "end",
        "cards (node: numbers)",
        "card-seconds",
        "cost",
        "voucher pays",
        "firm pays",
    ):
        numbers = heading in {"card-seconds", "cost", "voucher pays", "firm pays"}
        table.add_column(heading, justify="right" if numbers else "left")
    for job in report["jobs"]:
        cards = ", ".join(
            f"{node}: {' '.join(str(index) for where, index in job['devices'] if where == node)}"
            for node in job["nodes"]
        )
        money = (_yuan(job[f"{part}_micros"]) for part in ("charge", "voucher", "tenant"))
        table.add_row(job["name"], job["tenant"], job["state"], cards, f"{job['card_ms'] / 1000:,.1f}", *money)
    return table


def _yuan(micros: int) -> str:
    return yuan(format_yuan(micros))
