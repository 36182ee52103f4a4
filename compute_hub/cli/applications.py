"""`hub application …`."""

from typing import Annotated, Any

import typer

from compute_hub.cli.amounts import OptionalAmount, in_units
from compute_hub.cli.output import AsJson, client, details, show

app = typer.Typer(help="Applications for vouchers.", no_args_is_help=True)

_COLUMNS = {
    "id": "application",
    "programme": "programme",
    "state": "state",
    "requested": "asked",
    "granted": "granted",
    "submitted_at": "submitted",
    "notice_ends_at": "notice until",
}
_CHECKS = {"revision": "revision", "rule": "rule", "verdict": "verdict", "clause": "clause", "facts": "facts"}
_STEPS = {"at": "at", "step": "step", "reason": "reason", "actor_id": "by"}
_OBJECTIONS = {"id": "objection", "state": "state", "reason": "reason", "resolution": "resolution"}
_NOTICES = {
    "application_id": "application",
    "programme": "programme",
    "enterprise": "enterprise",
    "granted": "granted",
    "notice_ends_at": "notice until",
    "objections_open": "objections",
}
_VOUCHER = {"number": "voucher", "face": "face value", "expires_at": "expires", "id": "id"}

Application = Annotated[str, typer.Argument(help="The application's id.")]
Needed = Annotated[str, typer.Option(help="Why; the applicant is told.")]
Reason = Annotated[str, typer.Option(help="Why.")]


@app.command()
def apply(
    programme: Annotated[str, typer.Argument(help="The programme.")],
    *,
    amount: OptionalAmount = None,
    contract: Annotated[str, typer.Option(help="The purchase contract's number.")] = "",
    supplier: Annotated[str, typer.Option(help="The supplier's credit code.")] = "",
    contract_amount: Annotated[str, typer.Option(help="The contract's amount in yuan.")] = "0",
    contract_days: Annotated[int, typer.Option(help="How long the contract runs.")] = 0,
    round_id: Annotated[str | None, typer.Option("--round", help="The round it answers to.")] = None,
    draft: Annotated[bool, typer.Option(help="Do not hand it in yet.")] = False,
    as_json: AsJson = False,
) -> None:
    """Apply for a voucher; the automatic checks run at once."""
    body = {
        "programme": programme,
        **in_units("requested", amount),
        "contract_number": contract,
        "supplier_credit_code": supplier,
        "contract_cny": contract_amount,
        "contract_days": contract_days,
        "round_id": round_id,
    }
    with client() as hub:
        _print(hub.post("/v1/applications:draft" if draft else "/v1/applications", body), as_json=as_json)


@app.command("list")
def list_(
    *,
    state: Annotated[str | None, typer.Option(help="Only those in this state.")] = None,
    programme: Annotated[str | None, typer.Option(help="Only this programme's.")] = None,
    as_json: AsJson = False,
) -> None:
    """List applications, newest first: yours, or all for an officer."""
    with client() as hub:
        rows = list(hub.pages("/v1/applications", state=state, programme=programme))
    show(rows, _COLUMNS, as_json=as_json)


@app.command("show")
def show_(application: Application, *, as_json: AsJson = False) -> None:
    """Show an application with its checks, steps and objections."""
    with client() as hub:
        _print(hub.get(f"/v1/applications/{application}"), as_json=as_json)


@app.command()
def submit(application: Application, *, as_json: AsJson = False) -> None:
    """Hand in a draft, or what was sent back."""
    _do(application, "submit", None, as_json=as_json)


@app.command()
def revise(application: Application, *, amount: OptionalAmount = None, as_json: AsJson = False) -> None:
    """Change what a draft, or what was sent back, asks for."""
    _do(application, "revise", in_units("requested", amount), as_json=as_json)


@app.command()
def withdraw(application: Application, *, as_json: AsJson = False) -> None:
    """Take an application back."""
    _do(application, "withdraw", None, as_json=as_json)


@app.command("send-back")
def send_back(application: Application, reason: Needed, *, as_json: AsJson = False) -> None:
    """Send an application back to its applicant with what is missing."""
    _do(application, "request-revision", {"reason": reason}, as_json=as_json)


@app.command()
def review(application: Application, *, reason: Reason = "", as_json: AsJson = False) -> None:
    """First review: pass an application on to final approval."""
    _do(application, "first-review", {"reason": reason}, as_json=as_json)


@app.command()
def approve(
    application: Application,
    *,
    amount: OptionalAmount = None,
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Approve finally, wholly or in part; another person's work than the first review."""
    body = {"reason": reason, **in_units("granted", amount)}
    _do(application, "final-approval", body, as_json=as_json)


@app.command()
def reject(application: Application, reason: Needed, *, as_json: AsJson = False) -> None:
    """Refuse an application."""
    _do(application, "reject", {"reason": reason}, as_json=as_json)


@app.command()
def notices(*, as_json: AsJson = False) -> None:
    """List approvals against which anybody may object now."""
    with client() as hub:
        show(list(hub.pages("/v1/notices")), _NOTICES, as_json=as_json)


@app.command("object")
def object_(application: Application, reason: Needed, *, as_json: AsJson = False) -> None:
    """Object to an approval during its public notice."""
    with client() as hub:
        answer = hub.post(f"/v1/applications/{application}:object", {"reason": reason})
    show([answer], _NOTICES, as_json=as_json)


@app.command()
def resolve(
    objection: Annotated[str, typer.Argument(help="The objection's id.")],
    resolution: Annotated[str, typer.Option(help="Why.")],
    *,
    upheld: Annotated[bool, typer.Option(help="Uphold it, which rejects the application.")] = False,
    as_json: AsJson = False,
) -> None:
    """Dismiss or uphold an objection."""
    with client() as hub:
        answer = hub.post(f"/v1/objections/{objection}:resolve", {"upheld": upheld, "resolution": resolution})
    _print(answer, as_json=as_json)


@app.command()
def issue(application: Application, *, as_json: AsJson = False) -> None:
    """Issue the voucher of an approved application."""
    with client() as hub:
        show([hub.post(f"/v1/applications/{application}:issue")], _VOUCHER, as_json=as_json)


@app.command("release-tranche")
def release_tranche(
    application: Application,
    report: Annotated[str, typer.Option(help="The accepted progress report's reference.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Issue the next part of a grant on a progress report."""
    with client() as hub:
        answer = hub.post(f"/v1/applications/{application}:release-tranche", {"report": report})
    show([answer], _VOUCHER, as_json=as_json)


def _do(application: str, step: str, body: dict[str, Any] | None, *, as_json: bool) -> None:
    with client() as hub:
        _print(hub.post(f"/v1/applications/{application}:{step}", body), as_json=as_json)


def _print(application: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        show([application], _COLUMNS, as_json=True)
        return
    details(application)
    show(application["checks"], _CHECKS, as_json=False, title="Automatic checks")
    show(application["steps"], _STEPS, as_json=False, title="Steps")
    if application["objections"]:
        show(application["objections"], _OBJECTIONS, as_json=False, title="Objections")
