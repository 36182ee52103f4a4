"""Alerts about a tenant's money. Only the operator says where they go, because the hub itself calls there."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter
from pydantic import StringConstraints
from sqlalchemy import select
from sqlalchemy.orm import Session

from compute_hub.api.call import Caller
from compute_hub.api.shapes import After, Body, Id, Limit, Page, Project, View, Yuan, page_of
from compute_hub.billing.alerting import end_alert_rule, set_alert_rule
from compute_hub.billing.tables import AlertRow, AlertRuleRow
from kernel.errors import Invalid
from kernel.money import format_yuan, parse_yuan

router = APIRouter(prefix="/v1", tags=["alerts"])


class AlertTargetRefused(Invalid):
    """A target that the channel cannot reach."""

    sentence = "target: a {channel} alert goes to {wanted}."


class AlertRuleSetting(Body):
    """Tell somebody when a tenant's money crosses a line.

    `balance`: what it can still spend of its own falls below; `spending`: a month's spending rises above; `budget`:
    what the budget of a project still allows in its period falls below.
    """

    tenant_id: Id
    kind: Literal["balance", "spending", "budget"]
    project: Project | None = None
    threshold_cny: Yuan
    channel: Literal["webhook", "email"]
    target: Annotated[str, StringConstraints(min_length=3, max_length=500, pattern=r"^[\x21-\x7e]+$")]


class AlertRuleView(View):
    """A line that is watched; `crossed` is how it was when last looked at."""

    id: UUID
    tenant_id: UUID
    kind: str
    project: str | None
    threshold_cny: str
    channel: str
    target: str
    crossed: bool
    ended_at: datetime | None


class AlertView(View):
    """A line that was crossed."""

    id: UUID
    rule_id: UUID
    tenant_id: UUID
    raised_at: datetime
    sentence: str
    sent_at: datetime | None
    tries: int
    failure: str


@router.post("/alert-rules", status_code=201, name="set_alert_rule")
def set_rule(body: AlertRuleSetting, call: Caller) -> AlertRuleView:
    """Watch a tenant's balance, its month's spending or the budget of one of its projects."""
    wanted = ("https://", "http://") if body.channel == "webhook" else ()
    if wanted and not body.target.startswith(wanted):
        raise AlertTargetRefused(channel=body.channel, wanted="an address that begins with https:// or http://")
    if not wanted and body.target.count("@") != 1:
        raise AlertTargetRefused(channel=body.channel, wanted="one e-mail address")

    def action(session: Session, at: datetime) -> AlertRuleView:
        row = set_alert_rule(
            session,
            body.tenant_id,
            kind=body.kind,
            threshold_micros=parse_yuan(body.threshold_cny, field="threshold_cny"),
            channel=body.channel,
            target=body.target,
            project=body.project,
            by=call.principal.id,
            at=at,
        )
        return _rule(row)

    return call.once(AlertRuleView, body, action)


@router.post("/alert-rules/{rule_id}:end", name="end_alert_rule")
def end_rule(rule_id: UUID, call: Caller) -> AlertRuleView:
    """Stop watching."""
    return call.once(AlertRuleView, None, lambda session, at: _rule(end_alert_rule(session, rule_id, at)))


@router.get("/alert-rules", name="list_alert_rules")
def rules(call: Caller, limit: Limit = 100, after: After = None) -> Page[AlertRuleView]:
    """What is watched; a tenant's own, or all."""

    def action(session: Session) -> Page[AlertRuleView]:
        query = select(AlertRuleRow).order_by(AlertRuleRow.id).limit(limit)
        if call.scope is not None:
            query = query.where(AlertRuleRow.tenant_id == call.scope)
        if after is not None:
            query = query.where(AlertRuleRow.id > after)
        items = [_rule(row) for row in session.scalars(query)]
        return page_of(items, limit, items[-1].id if items else "")

    return call.read(action)


@router.get("/alerts", name="list_alerts")
def alerts(call: Caller, limit: Limit = 100, after: After = None) -> Page[AlertView]:
    """What was told to whom, oldest first; a tenant's own, or all."""

    def action(session: Session) -> Page[AlertView]:
        query = (
            select(AlertRow, AlertRuleRow.tenant_id)
            .join(AlertRuleRow, AlertRuleRow.id == AlertRow.rule_id)
            .order_by(AlertRow.id)
            .limit(limit)
        )
        if call.scope is not None:
            query = query.where(AlertRuleRow.tenant_id == call.scope)
        if after is not None:
            query = query.where(AlertRow.id > after)
        items = [
            AlertView(
                id=row.id,
                rule_id=row.rule_id,
                tenant_id=tenant_id,
                raised_at=row.raised_at,
                sentence=row.sentence,
                sent_at=row.sent_at,
                tries=row.tries,
                failure=row.failure,
            )
            for row, tenant_id in session.execute(query)
        ]
        return page_of(items, limit, items[-1].id if items else "")

    return call.read(action)


def _rule(row: AlertRuleRow) -> AlertRuleView:
    return AlertRuleView(
        id=row.id,
        tenant_id=row.tenant_id,
        kind=row.kind,
        project=row.project,
        threshold_cny=format_yuan(row.threshold_micros),
        channel=row.channel,
        target=row.target,
        crossed=row.crossed,
        ended_at=row.ended_at,
    )
