"""`hub enterprise …` and `hub key …`."""

from typing import Annotated

import typer

from compute_hub.cli.output import AsJson, client, details, show

app = typer.Typer(help="Enterprises, which are the tenants.", no_args_is_help=True)
key_app = typer.Typer(help="API keys.", no_args_is_help=True)

_COLUMNS = {
    "id": "id",
    "credit_code": "credit code",
    "name": "name",
    "region": "region",
    "industry": "industry",
    "size_class": "size",
}
_KEYS = {
    "id": "key",
    "role": "role",
    "person": "person",
    "tenant_id": "enterprise",
    "created_at": "made",
    "revoked_at": "revoked",
}

Enterprise = Annotated[str, typer.Argument(help="The enterprise's id.")]
Party = Annotated[str, typer.Argument(help="A credit code, or a person's reference.")]


@app.command()
def register(
    credit_code: Annotated[str, typer.Argument(help="The unified social credit code.")],
    name: Annotated[str, typer.Argument(help="The registered name.")],
    region: Annotated[str, typer.Option(help="Division code, such as 331003.")],
    *,
    industry: Annotated[str, typer.Option(help="The industry.")] = "manufacturing",
    size: Annotated[str, typer.Option(help="micro, small, medium, large or startup.")] = "small",
    yearly_contract: Annotated[str, typer.Option(help="Contracted for compute in a year, in yuan.")] = "0",
    clean_years: Annotated[int, typer.Option(help="Years without a record.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Register an enterprise as a tenant."""
    body = {
        "credit_code": credit_code,
        "name": name,
        "region": region,
        "industry": industry,
        "size_class": size,
        "yearly_contract_cny": yearly_contract,
        "clean_years": clean_years,
    }
    with client() as hub:
        show([hub.post("/v1/enterprises", body)], _COLUMNS, as_json=as_json)


@app.command("list")
def list_(*, as_json: AsJson = False) -> None:
    """List enterprises by credit code."""
    with client() as hub:
        show(list(hub.pages("/v1/enterprises")), _COLUMNS, as_json=as_json)


@app.command("show")
def show_(enterprise: Enterprise, *, as_json: AsJson = False) -> None:
    """Show what the rules know of an enterprise."""
    with client() as hub:
        found = hub.get(f"/v1/enterprises/{enterprise}")
    if as_json:
        show([found], _COLUMNS, as_json=True)
    else:
        details(found)


@app.command("mark-dishonest")
def mark_dishonest(
    enterprise: Enterprise,
    *,
    off: Annotated[bool, typer.Option(help="Take it off the list.")] = False,
    as_json: AsJson = False,
) -> None:
    """Put an enterprise on the list of dishonest ones."""
    with client() as hub:
        answer = hub.post(f"/v1/enterprises/{enterprise}:mark-dishonest", {"dishonest": not off})
    show([answer], {**_COLUMNS, "dishonest": "dishonest"}, as_json=as_json)


@app.command("set-controller")
def set_controller(controlled: Party, controller: Party, *, as_json: AsJson = False) -> None:
    """Record who directly controls a party."""
    with client() as hub:
        answer = hub.post("/v1/controllers", {"controlled": controlled, "controller": controller})
    show([answer], {"controlled": "party", "controller": "controlled by"}, as_json=as_json)


@app.command()
def controllers(*, as_json: AsJson = False) -> None:
    """List who directly controls whom."""
    with client() as hub:
        found = list(hub.pages("/v1/controllers"))
    show(found, {"controlled": "party", "controller": "controlled by"}, as_json=as_json)


@app.command()
def related(party: Party, *, as_json: AsJson = False) -> None:
    """List who is related to a party otherwise than by control, and how."""
    with client() as hub:
        found = hub.get("/v1/related-parties", party=party)["items"]
    show(found, {"one": "party", "other": "related to", "reason": "reason"}, as_json=as_json)


@app.command()
def relate(
    one: Party,
    other: Party,
    reason: Annotated[str, typer.Option(help="How they are related.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Record that two parties are related otherwise than by control."""
    with client() as hub:
        answer = hub.post("/v1/related-parties", {"one": one, "other": other, "reason": reason})
    show([answer], {"one": "party", "other": "related to", "reason": "reason"}, as_json=as_json)


@key_app.command()
def make(
    role: Annotated[
        str, typer.Argument(help="authority, first_reviewer, approver, operator, tenant, auditor.")
    ],
    person: Annotated[str, typer.Argument(help="Whose key it is.")],
    *,
    enterprise: Annotated[str | None, typer.Option(help="Of a tenant's key: the enterprise's id.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key; it is shown this once."""
    with client() as hub:
        made = hub.post("/v1/api-keys", {"role": role, "person": person, "tenant_id": enterprise})
    if as_json:
        show([made], _KEYS, as_json=True)
    else:
        details(made)


@key_app.command("list")
def list_keys(*, as_json: AsJson = False) -> None:
    """List keys, newest first, without the keys themselves."""
    with client() as hub:
        show(list(hub.pages("/v1/api-keys")), _KEYS, as_json=as_json)


@key_app.command()
def revoke(key: Annotated[str, typer.Argument(help="The key's id.")], *, as_json: AsJson = False) -> None:
    """End a key at once."""
    with client() as hub:
        show([hub.post(f"/v1/api-keys/{key}:revoke")], _KEYS, as_json=as_json)
