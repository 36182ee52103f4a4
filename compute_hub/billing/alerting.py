"""Alerts about a tenant's money: told once when a line is crossed, and again only after it was crossed back.

Whether a line is crossed is decided in a transaction, which leaves an alert to be delivered; delivering happens
between transactions (`workers.alerts`), again and again until it is done or was tried often enough.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from compute_hub.billing.domain.days import month_of
from compute_hub.billing.tables import AlertRow, AlertRuleRow, ChargeRow
from kernel.clock import unix_ms
from kernel.errors import Invalid, NotFound
from kernel.ids import new_id
from kernel.money import format_yuan
from vouchers import accounts
from vouchers.enterprises import lock_tenants
from vouchers.means import budgets_in_force
from vouchers.open_holds import OWN
from vouchers.tables import CoverageLine, Restoration
from vouchers.wallets import wallet_balance

TRIES_MAX: Final = 10


class AlertProjectMisplaced(Invalid):
    """A budget rule without a project, or another rule with one."""

    sentence = "project: {project!r} with a {kind} alert; a budget alert, and only that, names a project."


class AlertRuleNotFound(NotFound):
    """No alert rule has this id."""

    sentence = "There is no alert rule {rule}."


def set_alert_rule(
    session: Session,
    tenant_id: UUID,
    *,
    kind: str,
    threshold_micros: int,
    channel: str,
    target: str,
    by: UUID,
    at: datetime,
    project: str | None = None,
) -> AlertRuleRow:
    """Watch a tenant's own money.

    Args:
        session: whose transaction this belongs to.
        tenant_id: whose money.
        kind: `balance`: what it can still spend falls below the threshold; `spending`: what it spent of it in a month
            rises above; `budget`: what the budget of a project still allows in its period falls below.
        threshold_micros: the line.
        channel: `webhook` or `email`.
        target: the webhook's address or the mail's.
        by: who sets it.
        at: now.
        project: of a `budget` rule, and only there.

    Raises:
        EnterpriseNotFound: there is no such tenant.
        AlertProjectMisplaced: a project is missing, or named for another kind.
    """
    if (kind == "budget") != (project is not None):
        raise AlertProjectMisplaced(kind=kind, project=project)
    lock_tenants(session, [tenant_id])
    row = AlertRuleRow(
        id=new_id(),
        tenant_id=tenant_id,
        kind=kind,
        project=project,
        threshold_micros=threshold_micros,
        channel=channel,
        target=target,
        crossed=False,
        set_by=by,
        set_at=at,
    )
    session.add(row)
    session.flush()
    return row


def end_alert_rule(session: Session, rule_id: UUID, at: datetime) -> AlertRuleRow:
    """Stop watching. Ending it again does nothing. Raises AlertRuleNotFound."""
    row = session.get(AlertRuleRow, rule_id, with_for_update=True)
    if row is None:
        raise AlertRuleNotFound(rule=rule_id)
    row.ended_at = row.ended_at or at
    session.flush()
    return row


def raise_alerts(session: Session, at: datetime) -> int:
    """Leave an alert for every rule whose line was crossed since the last look; returns how many."""
    raised = 0
    rules = session.scalars(
        select(AlertRuleRow)
        .where(AlertRuleRow.ended_at.is_(None))
        .order_by(AlertRuleRow.id)
        .with_for_update(skip_locked=True)
    ).all()
    for rule in rules:
        figure = _figure(session, rule, at)
        crossed = figure is not None and _is_beyond(rule, figure)
        if figure is not None and crossed and not rule.crossed:
            sentence = _sentence(rule, figure, at)
            session.add(
                AlertRow(id=new_id(), rule_id=rule.id, raised_at=at, sentence=sentence, tries=0, failure="")
            )
            raised += 1
        rule.crossed = crossed
    session.flush()
    return raised


def undelivered(session: Session, limit: int) -> Sequence[tuple[AlertRow, AlertRuleRow]]:
    """Alerts still to be delivered, oldest first."""
    query = (
        select(AlertRow, AlertRuleRow)
        .join(AlertRuleRow, AlertRuleRow.id == AlertRow.rule_id)
        .where(AlertRow.sent_at.is_(None), AlertRow.tries < TRIES_MAX)
        .order_by(AlertRow.tries, AlertRow.id)
        .limit(limit)
    )
    return [(alert, rule) for alert, rule in session.execute(query)]


def note_delivery(session: Session, alert_id: UUID, failure: str, at: datetime) -> None:
    """Note that an alert was delivered, or why not."""
    row = session.get_one(AlertRow, alert_id, with_for_update=True)
    row.tries += 1
    row.failure = failure
    if not failure:
        row.sent_at = row.sent_at or at
    session.flush()


def _is_beyond(rule: AlertRuleRow, figure: int) -> bool:
    return figure > rule.threshold_micros if rule.kind == "spending" else figure < rule.threshold_micros


def _figure(session: Session, rule: AlertRuleRow, at: datetime) -> int | None:
    """What a rule watches; None where it has nothing to watch now: a project without a budget is not limited."""
    if rule.kind == "balance":
        own = wallet_balance(session, rule.tenant_id)
        return own.prepaid_available_micros + own.credit_available_micros
    if rule.project is not None:
        place = (rule.tenant_id, rule.project)
        budget = budgets_in_force(session, {place}, at).get(place)
        return None if budget is None else accounts.available(session, [budget])[budget.id]
    return _spent_micros(session, rule.tenant_id, month_of(unix_ms(at)))


def _spent_micros(session: Session, tenant_id: UUID, month: str) -> int:
    """What a tenant's charges of a month took of its own money, less what of that was given back."""
    of_month = (ChargeRow.tenant_id == tenant_id, ChargeRow.month == month)
    taken = select(func.coalesce(func.sum(ChargeRow.tenant_micros), 0)).where(*of_month)
    back = (
        select(func.coalesce(func.sum(Restoration.amount_micros), 0))
        .join(CoverageLine, CoverageLine.id == Restoration.line_id)
        .join(ChargeRow, ChargeRow.id == CoverageLine.charge_id)
        .where(*of_month, CoverageLine.source.in_(OWN))
    )
    return int(session.scalars(taken).one()) - int(session.scalars(back).one())


def _sentence(rule: AlertRuleRow, figure: int, at: datetime) -> str:
    if rule.kind == "balance":
        return f"¥{format_yuan(figure)} can still be spent, less than ¥{format_yuan(rule.threshold_micros)}."
    if rule.kind == "budget":
        left = f"¥{format_yuan(figure)} of the budget of project {rule.project} can still be spent"
        return f"{left}, less than ¥{format_yuan(rule.threshold_micros)}."
    month = month_of(unix_ms(at))
    return f"¥{format_yuan(figure)} was spent in {month}, more than ¥{format_yuan(rule.threshold_micros)}."
