"""`hub claim …`."""

from typing import Annotated, Any

import typer

from compute_hub.cli.amounts import in_units
from compute_hub.cli.output import AsJson, client, details, show
from kernel.errors import Invalid

app = typer.Typer(help="Claims of the centre, or of buyers, on programmes.", no_args_is_help=True)

_COLUMNS = {
    "id": "claim",
    "programme": "programme",
    "period": "period",
    "sequence": "n",
    "state": "state",
    "line_count": "lines",
    "amount": "amount",
    "approved": "approved",
    "made_at": "made",
}
_LINES = {
    "line": "line",
    "state": "state",
    "amount": "amount",
    "sampled": "sampled",
    "clause": "clause",
    "job_id": "job",
    "reason": "reason",
}
_STEPS = {"at": "at", "step": "step", "actor_id": "by", "facts": "facts"}

Claim = Annotated[str, typer.Argument(help="The claim's id.")]
Line = Annotated[int, typer.Argument(help="The line's number.")]
Reason = Annotated[str, typer.Option(help="Why.")]
Evidence = Annotated[list[str] | None, typer.Option(help="KIND=REFERENCE, such as invoice=I-7; repeatable.")]


class MalformedEvidence(Invalid):
    """An --evidence that is not KIND=REFERENCE."""

    sentence = "--evidence: {text!r} is not KIND=REFERENCE, such as invoice=I-7."


@app.command()
def make(
    programme: Annotated[str, typer.Argument(help="The programme.")],
    period: Annotated[str, typer.Argument(help="Such as 2026-03.")],
    *,
    evidence: Evidence = None,
    as_json: AsJson = False,
) -> None:
    """Claim what a programme's vouchers have covered up to the end of a period."""
    body = {"programme": programme, "period": period, "evidence": _evidence(evidence)}
    with client() as hub:
        show([hub.post("/v1/claims", body)], _COLUMNS, as_json=as_json)


@app.command()
def resubmit(claim: Claim, *, evidence: Evidence = None, as_json: AsJson = False) -> None:
    """Claim the disputed lines of a decided claim again."""
    _do(claim, ":resubmit", {"evidence": _evidence(evidence)}, as_json=as_json)


@app.command("list")
def list_(
    *,
    programme: Annotated[str | None, typer.Option(help="Only on this programme.")] = None,
    state: Annotated[
        str | None, typer.Option(help="Only those in this state: checked ones wait for first review.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List claims, newest first."""
    with client() as hub:
        found = list(hub.pages("/v1/claims", programme=programme, state=state))
    show(found, _COLUMNS, as_json=as_json)


@app.command("show")
def show_(claim: Claim, *, as_json: AsJson = False) -> None:
    """Show a claim with its steps and lines."""
    with client() as hub:
        found = hub.get(f"/v1/claims/{claim}")
        lines = list(hub.pages(f"/v1/claims/{claim}/lines"))
    if as_json:
        show([{**found, "lines": lines}], _COLUMNS, as_json=True)
        return
    details(found)
    show(found["steps"], _STEPS, as_json=False, title="Steps")
    show(lines, _LINES, as_json=False, title="Lines")


@app.command()
def check(
    claim: Claim,
    centre: Annotated[str, typer.Option(help="The centre's credit code.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Run the automatic checks."""
    _do(claim, ":check", {"centre_credit_code": centre}, as_json=as_json)


@app.command()
def sample(
    claim: Claim,
    seed: Annotated[str, typer.Option(help="Recorded, so that anybody can draw the same lines again.")],
    count: Annotated[int, typer.Option(help="How many lines.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Draw lines for inspection."""
    _do(claim, ":sample", {"seed": seed, "count": count}, as_json=as_json)


@app.command()
def review(claim: Claim, *, as_json: AsJson = False) -> None:
    """First review: pass a checked claim on."""
    _do(claim, ":first-review", None, as_json=as_json)


@app.command()
def dispute(claim: Claim, line: Line, reason: Reason, *, as_json: AsJson = False) -> None:
    """Take a line out; it may be claimed again with better evidence."""
    _do(claim, f"/lines/{line}:dispute", {"reason": reason}, as_json=as_json)


@app.command()
def refuse(claim: Claim, line: Line, reason: Reason, *, as_json: AsJson = False) -> None:
    """Refuse to pay a line, for good."""
    _do(claim, f"/lines/{line}:refuse", {"reason": reason}, as_json=as_json)


@app.command("claw-back")
def claw_back(claim: Claim, line: Line, reason: Reason, *, as_json: AsJson = False) -> None:
    """Take an approved or paid line back."""
    _do(claim, f"/lines/{line}:claw-back", {"reason": reason}, as_json=as_json)


@app.command()
def approve(claim: Claim, *, as_json: AsJson = False) -> None:
    """Approve finally what is left of a claim."""
    _do(claim, ":final-approval", None, as_json=as_json)


@app.command()
def reject(claim: Claim, reason: Reason, *, as_json: AsJson = False) -> None:
    """Send a whole claim back."""
    _do(claim, ":reject", {"reason": reason}, as_json=as_json)


@app.command()
def disburse(
    claim: Claim,
    bank_reference: Annotated[str, typer.Option(help="Of the bank transfer that pays it.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Pay what was approved."""
    _do(claim, ":disburse", {"bank_reference": bank_reference}, as_json=as_json)


@app.command()
def reconcile(
    claim: Claim,
    received: Annotated[str, typer.Option(help="What the statement shows: yuan, or card-hours as 12.5h.")],
    statement: Annotated[str, typer.Option(help="Which statement.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Hold the bank statement against what was paid."""
    _do(claim, ":reconcile", {**in_units("received", received), "statement": statement}, as_json=as_json)


def _do(claim: str, step: str, body: dict[str, Any] | None, *, as_json: bool) -> None:
    with client() as hub:
        show([hub.post(f"/v1/claims/{claim}{step}", body)], _COLUMNS, as_json=as_json)


def _evidence(given: list[str] | None) -> dict[str, str]:
    pairs = {}
    for text in given or ():
        kind, equals, reference = text.partition("=")
        if not equals:
            raise MalformedEvidence(text=text)
        pairs[kind] = reference
    return pairs
