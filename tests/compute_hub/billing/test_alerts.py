"""Alerts: told once when a line is crossed, delivered for real, and tried again when nobody listens."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from compute_hub.billing.alerting import AlertProjectMisplaced, end_alert_rule, set_alert_rule
from compute_hub.workers.alerts import alert_once
from kernel.database import transaction
from kernel.ids import new_id
from tests.compute_hub.billing.house import HOUR_MS, NOW, YUAN, House
from vouchers.restoration import restore_charge
from vouchers.wallets import deposit, set_budget


@contextmanager
def webhook(heard: list[dict[str, str]]) -> Iterator[str]:
    class Ear(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Ear)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


def watch(house: House, kind: str, yuan: int, target: str, project: str | None = None) -> None:
    channel = "webhook" if "://" in target else "email"
    with transaction(house.engine) as session:
        set_alert_rule(
            session,
            house.tenant,
            kind=kind,
            project=project,
            threshold_micros=yuan * YUAN,
            channel=channel,
            target=target,
            by=new_id(),
            at=NOW,
        )


def test_a_balance_that_falls_is_told_once_and_again_after_it_had_risen(house: House, tmp_path: Path) -> None:
    heard: list[dict[str, str]] = []
    with webhook(heard) as url:
        watch(house, "balance", 980, url)
        assert alert_once(house.engine, tmp_path, NOW) == 0
        house.admit(house.submit())
        assert [alert_once(house.engine, tmp_path, NOW) for _ in range(2)] == [1, 0]
        with transaction(house.engine) as session:
            deposit(session, house.tenant, 100 * YUAN, "more", NOW)
        assert alert_once(house.engine, tmp_path, NOW) == 0
        house.keep(house.sql("SELECT id FROM jobs")[0][0], 6 * HOUR_MS)
        assert alert_once(house.engine, tmp_path, NOW) == 1
    assert [one["kind"] for one in heard] == ["balance", "balance"]
    assert heard[0]["tenant_id"] == str(house.tenant)


def test_spending_is_told_by_mail_and_what_cannot_be_delivered_is_tried_again(
    house: House, tmp_path: Path
) -> None:
    watch(house, "spending", 10, "books@example.org")
    watch(house, "spending", 10, "http://127.0.0.1:9/")
    job_id = house.submit()
    house.admit(job_id)
    house.meter(house.record(job_id, 0, HOUR_MS // 2, final=True))
    house.bill()
    assert alert_once(house.engine, tmp_path, NOW) == 1
    assert alert_once(house.engine, tmp_path, NOW + timedelta(seconds=1)) == 0
    (mail,) = tmp_path.glob("*.eml")
    assert b"To: books@example.org" in mail.read_bytes()
    assert house.sql("SELECT tries, sent_at IS NULL, failure <> '' FROM alerts ORDER BY tries") == [
        (1, False, False),
        (2, True, True),
    ]
    with transaction(house.engine) as session:
        for (rule_id,) in house.sql("SELECT id FROM alert_rules"):
            end_alert_rule(session, rule_id, NOW)
    assert house.sql("SELECT count(*) FROM alert_rules WHERE ended_at IS NULL") == [(0,)]


def test_what_was_given_back_is_not_spent(house: House, tmp_path: Path) -> None:
    watch(house, "spending", 17, "boss@works.example")
    job_id = house.submit(limit_ms=HOUR_MS, models=("sim-a",))
    house.admit(job_id)
    house.meter(house.record(job_id, 0, HOUR_MS, final=True))
    house.end(job_id)
    house.bill()
    ((charge_id,),) = house.sql("SELECT id FROM charges")
    for lost_ms in (HOUR_MS * 3 // 4, None):
        with transaction(house.engine) as session:
            restore_charge(session, charge_id, reason="the node failed", by="o", at=NOW, lost_ms=lost_ms)
        assert alert_once(house.engine, tmp_path, NOW) == 0
    second = house.submit(limit_ms=HOUR_MS, models=("sim-a",))
    house.admit(second, at=NOW + timedelta(hours=2))
    house.meter(house.record(second, 0, HOUR_MS // 2, final=True))
    house.end(second)
    house.bill()
    assert alert_once(house.engine, tmp_path, NOW) == 1


def allow(house: House, yuan: int, starts_at: datetime, reference: str) -> None:
    with transaction(house.engine) as session:
        set_budget(
            session,
            house.tenant,
            "lab",
            starts_at=starts_at,
            ends_at=starts_at + timedelta(days=30),
            amount_micros=yuan * YUAN,
            reference=reference,
            by="head",
            at=NOW,
        )


def test_a_projects_budget_that_runs_low_is_told_by_webhook_and_mail_and_anew_in_its_next_period(
    house: House, tmp_path: Path
) -> None:
    heard: list[dict[str, str]] = []
    following = NOW + timedelta(days=30)
    with webhook(heard) as url:
        for target in (url, "lab@works.example"):
            watch(house, "budget", 40, target, project="lab")
        assert alert_once(house.engine, tmp_path, NOW) == 0  # nothing limits the project yet
        allow(house, 100, NOW, "this period")
        allow(house, 39, following, "the next")
        job_id = house.submit(limit_ms=2 * HOUR_MS, project="lab")
        house.admit(job_id)
        assert alert_once(house.engine, tmp_path, NOW) == 0  # an hour is held, more than 60 are left
        house.keep(job_id, HOUR_MS)
        assert [alert_once(house.engine, tmp_path, NOW) for _ in range(2)] == [2, 0]
        allow(house, 100, NOW, "more")
        assert alert_once(house.engine, tmp_path, NOW) == 0
        assert alert_once(house.engine, tmp_path, following) == 2
    assert [one["kind"] for one in heard] == ["budget", "budget"]
    assert "project lab" in heard[0]["sentence"]
    assert len(list(tmp_path.glob("*.eml"))) == 2


def test_a_budget_rule_and_only_that_names_a_project(house: House) -> None:
    for kind, project in (("budget", None), ("balance", "lab")):
        with pytest.raises(AlertProjectMisplaced, match=kind):
            watch(house, kind, 1, "books@works.example", project=project)
