"""Delivering alerts: a webhook is called, an e-mail is dropped as a file that the centre's mail system picks up."""

import json
import threading
from datetime import datetime
from email.message import EmailMessage
from pathlib import Path
from typing import Final
from uuid import UUID

import httpx
import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from compute_hub.billing.alerting import note_delivery, raise_alerts, undelivered
from kernel.clock import utc_now
from kernel.database import transaction

_BATCH: Final = 20
_TIMEOUT_S: Final = 3
_INTERVAL_S: Final = 5
_log = structlog.get_logger(__name__)


def keep_alerting(engine: Engine, mail: Path, stopping: threading.Event) -> threading.Thread:
    """Alert every few seconds on a thread of its own, so that nobody's webhook holds the billing up."""

    def alert() -> None:
        while not stopping.wait(_INTERVAL_S):
            try:
                alert_once(engine, mail, utc_now())
            except DBAPIError as error:
                _log.error("database_failed", reason=str(error.orig))

    thread = threading.Thread(target=alert, name="alerts", daemon=True)
    thread.start()
    return thread


def alert_once(engine: Engine, mail: Path, at: datetime) -> int:
    """Raise what is due and try to deliver what is not delivered yet; returns how many were delivered."""
    with transaction(engine) as session:
        raise_alerts(session, at)
    with transaction(engine) as session:
        waiting = [
            (alert.id, rule.channel, rule.target, rule.tenant_id, rule.kind, alert.sentence)
            for alert, rule in undelivered(session, _BATCH)
        ]
    delivered = 0
    for alert_id, channel, target, tenant_id, kind, sentence in waiting:
        content = {"id": str(alert_id), "tenant_id": str(tenant_id), "kind": kind, "sentence": sentence}
        failure = _call(target, content) if channel == "webhook" else _drop(mail, target, alert_id, content)
        if failure:
            _log.warning("alert_not_delivered", alert=str(alert_id), reason=failure)
        with transaction(engine) as session:
            note_delivery(session, alert_id, failure, at)
        delivered += not failure
    return delivered


def _call(url: str, content: dict[str, str]) -> str:
    """Why a webhook did not take an alert; empty if it did. The alert's id tells it repetitions."""
    headers = {"Idempotency-Key": content["id"], "Content-Type": "application/json"}
    try:
        answer = httpx.post(url, content=json.dumps(content), headers=headers, timeout=_TIMEOUT_S)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return str(error) or type(error).__name__
    return "" if answer.is_success else f"it answered {answer.status_code}"


def _drop(mail: Path, address: str, alert_id: UUID, content: dict[str, str]) -> str:
    """Write an e-mail under the alert's id, whole or not at all, so that a repetition changes nothing."""
    message = EmailMessage()
    message["To"], message["Subject"] = address, f"Compute Hub: {content['kind']} alert"
    message["Message-ID"] = f"<{alert_id}@compute-hub>"
    message.set_content(content["sentence"])
    try:
        mail.mkdir(parents=True, exist_ok=True)
        part = mail / f".{alert_id}.part"
        part.write_bytes(bytes(message))
        part.rename(mail / f"{alert_id}.eml")
    except OSError as error:
        return str(error)
    return ""
