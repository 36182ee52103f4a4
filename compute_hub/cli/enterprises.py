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
_FACTS = {
    "version": "version",
    "recorded_at": "since",
    "name": "name",
    "region": "region",
    "industry": "industry",
    "size_class": "size",
    "yearly_contract_cny": "contracts, yuan",
    "clean_years": "clean years",
    "dishonest": "dishonest",
    "recorded_by": "by",
    "reason": "reason",
}
_CONTROL = {
    "controlled": "party",
    "controller": "controlled by",
    "recorded_at": "since",
    "ended_at": "until",
    "reason": "reason",
}
_KEYS = {
    "id": "key",
    "role": "role",
    "person": "person",
    "tenant_id": "enterprise",
    "authority": "authority",
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
    role: Annotated[list[str] | None, typer.Option(help="A role, such as chain_leader; repeatable.")] = None,
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
        "roles": role or [],
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


@app.command()
def change(
    enterprise: Enterprise,
    reason: Annotated[str, typer.Option(help="Why, such as the registry's notice.")],
    *,
    name: Annotated[str | None, typer.Option(help="The registered name.")] = None,
    region: Annotated[str | None, typer.Option(help="Division code, such as 331003.")] = None,
    industry: Annotated[str | None, typer.Option(help="The industry.")] = None,
    size: Annotated[str | None, typer.Option(help="micro, small, medium, large or startup.")] = None,
    yearly_contract: Annotated[
        str | None, typer.Option(help="Contracted for compute in a year, in yuan.")
    ] = None,
    clean_years: Annotated[int | None, typer.Option(help="Years without a record.")] = None,
    dishonest: Annotated[
        bool | None,
        typer.Option("--dishonest/--honest", help="On the list of dishonest enterprises, or off it."),
    ] = None,
    role: Annotated[list[str] | None, typer.Option(help="All its roles from now on; repeatable.")] = None,
    as_json: AsJson = False,
) -> None:
    """Change what the rules know of an enterprise from now on; what was decided keeps the facts it saw."""
    body = {
        "reason": reason,
        "name": name,
        "region": region,
        "industry": industry,
        "size_class": size,
        "yearly_contract_cny": yearly_contract,
        "clean_years": clean_years,
        "dishonest": dishonest,
        "roles": role or None,
    }
    with client() as hub:
        answer = hub.post(f"/v1/enterprises/{enterprise}:change-facts", body)
    show([answer], {**_COLUMNS, "dishonest": "dishonest", "version": "version"}, as_json=as_json)


@app.command()
def history(enterprise: Enterprise, *, as_json: AsJson = False) -> None:
    """List what the rules knew of an enterprise from when on, who changed it and why."""
    with client() as hub:
        show(list(hub.pages(f"/v1/enterprises/{enterprise}/facts")), _FACTS, as_json=as_json)


@app.command("set-controller")
def set_controller(
    controlled: Party,
    controller: Party,
    reason: Annotated[str, typer.Option(help="How it is known.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Record who directly controls a party from now on."""
    body = {"controlled": controlled, "controller": controller, "reason": reason}
    with client() as hub:
        show([hub.post("/v1/controllers", body)], _CONTROL, as_json=as_json)


@app.command()
def controllers(
    *,
    party: Annotated[str | None, typer.Option(help="Whose controllers, past ones too.")] = None,
    as_json: AsJson = False,
) -> None:
    """List who directly controls whom, or who ever controlled one party."""
    with client() as hub:
        if party is None:
            found = list(hub.pages("/v1/controllers"))
        else:
            found = hub.get("/v1/controllers/history", party=party)["items"]
    show(found, _CONTROL, as_json=as_json)


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
    authority: Annotated[
        str | None, typer.Option(help="Of an officer's or reviewer's key: whose programmes it decides about.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key; it is shown this once."""
    body = {"role": role, "person": person, "tenant_id": enterprise, "authority": authority}
    with client() as hub:
        made = hub.post("/v1/api-keys", body)
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
