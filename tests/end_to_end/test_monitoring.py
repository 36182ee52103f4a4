"""The real Prometheus and Alertmanager beside a running hub: every query answered, figures checked, alerts fired."""

import json
import math
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any, Final

import httpx
import psutil
import pytest
from sqlalchemy import Engine, text

from compute_hub.settings import Settings
from compute_hub.stack.database import application_url, private_server
from deploy.grafana.boards import BOARDS
from kernel.clock import boottime_ms, utc_now
from kernel.database import open_engine, transaction
from kernel.postgres import OWNER_ROLE
from tests.compute_hub.api.house import month_in_china
from tests.deploy.rules import ROOT, alerts, rules
from tests.end_to_end.conftest import RunningHub
from tests.vouchers.world import World
from vouchers.claims import make_claim
from vouchers.reading import programme_totals

pytestmark = pytest.mark.slow
PATIENCE_S: Final = 150
YUAN: Final = 1_000_000
MODEL: Final = "MLU370-X8"
WHERE_OFFERED: Final = ("hub-nodes/最高温度", "hub-nodes/功率")


@pytest.fixture(scope="module")
def engine(hub: RunningHub) -> Iterator[Engine]:
    """The hub's own database, as its application sees it."""
    engine = open_engine(application_url(Settings(state_directory=hub.state)))
    yield engine
    engine.dispose()


@pytest.fixture(scope="module")
def programme(hub: RunningHub, engine: Engine) -> str:
    """A workload: a voucher, jobs it pays for and jobs it does not, and a claim."""
    world, now = World(engine), utc_now()
    with transaction(engine) as session:
        tenant = session.scalar(text("SELECT id FROM enterprises WHERE credit_code = '91331003MA0EXAMPL0'"))
        made = world.programme(session, at=now - timedelta(days=1))
        world.voucher(session, tenant, made, 500 * YUAN, now)
    for words in (("--wait", "--", "sleep", "3"), ("--wait", "--devices", "2", "--", "sleep", "2")):
        done = hub.command("job", "submit", "--accelerator", MODEL, *words)
        assert done.returncode == 0, done.stderr + done.stdout
    until(lambda: captured(engine, made) > 0)
    with transaction(engine) as session:
        make_claim(session, made, month_in_china(), by="officer", at=utc_now())
    return made


@pytest.fixture(scope="module")
def prometheus(hub: RunningHub) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{hub.prometheus}/api/v1", timeout=60) as client:
        yield client


def captured(engine: Engine, programme: str) -> int:
    with transaction(engine) as session:
        return programme_totals(session, programme).captured


def until(holds: Callable[[], object], seconds: float = PATIENCE_S) -> None:
    never, deadline = threading.Event(), boottime_ms() + seconds * 1000
    while not holds():
        assert boottime_ms() < deadline, f"not within {seconds} s"
        never.wait(0.5)


def asked(prometheus: httpx.Client, expression: str) -> list[dict[str, Any]]:
    answer = prometheus.post("/query", data={"query": expression}).json()
    assert answer["status"] == "success", (expression, answer)
    assert answer["data"]["resultType"] == "vector", (expression, answer)
    return list(answer["data"]["result"])


def figure(prometheus: httpx.Client, expression: str) -> float:
    found = asked(prometheus, expression)
    return float(found[0]["value"][1]) if found else math.nan


def panel_queries() -> dict[str, str]:
    """Every query of every board as Grafana would send it, by the panel it is on."""
    queries = {}
    for board in BOARDS:
        file = ROOT / "deploy" / "grafana" / "dashboards" / f"{board.uid}.json"
        content = json.loads(file.read_text(encoding="utf-8"))
        for panel in content["panels"]:
            for target in panel["targets"]:
                filled = re.sub(r"\$(programme|size|industry|tenant|node)\b", ".*", target["expr"])
                queries[f"{board.uid}/{panel['title']}/{target['refId']}"] = filled.replace(
                    "$__rate_interval", "30s"
                )
    return queries


def test_prometheus_finds_and_scrapes_every_process(hub: RunningHub, prometheus: httpx.Client) -> None:
    assert hub.process.poll() is None
    expected = {"hub-centre", "hub-api", "hub-biller", "hub-controller", "hub-keeper", "hub-node"}
    until(lambda: {found["metric"]["job"] for found in asked(prometheus, "up == 1")} == expected)


@pytest.mark.usefixtures("programme")
def test_every_query_of_every_panel_has_an_answer(prometheus: httpx.Client) -> None:
    left = panel_queries()
    assert len(left) > 90
    for name in [name for name in left if name.startswith(WHERE_OFFERED)]:
        assert asked(prometheus, left.pop(name)) == []  # simulated cards have no sensors

    def all_answered() -> bool:
        for name, expression in list(left.items()):
            if asked(prometheus, expression):
                del left[name]
        return not left

    never, deadline = threading.Event(), boottime_ms() + PATIENCE_S * 1000
    while not all_answered():
        assert boottime_ms() < deadline, f"no data: {left}"
        never.wait(1)


@pytest.mark.usefixtures("programme")
def test_every_rule_is_evaluated_without_an_error_and_every_record_has_data(prometheus: httpx.Client) -> None:
    groups = prometheus.get("/rules").json()["data"]["groups"]
    loaded = [rule for group in groups for rule in group["rules"]]
    assert {rule["name"] for rule in loaded} == {rule.get("record") or rule["alert"] for rule in rules()}
    until(
        lambda: all(
            rule["health"] == "ok"
            for group in prometheus.get("/rules").json()["data"]["groups"]
            for rule in group["rules"]
        )
    )
    until(lambda: all(asked(prometheus, rule["record"]) for rule in rules() if "record" in rule))


def test_figures_are_those_of_the_database(engine: Engine, prometheus: httpx.Client, programme: str) -> None:
    def sql(query: str) -> float:
        with transaction(engine) as session:
            return float(session.scalar(text(query)) or 0)

    def voucher(stage: str) -> float:
        with transaction(engine) as session:
            return float(getattr(programme_totals(session, programme), stage)) / YUAN

    # Asked anew with every look: the last records of a job are charged a little after its end.
    expected: dict[str, Callable[[], float]] = {
        "sum(hub_devices)": lambda: sql("SELECT count(*) FROM devices"),
        "sum(hub_jobs_ended_total)": lambda: sql("SELECT count(*) FROM jobs WHERE ended_at IS NOT NULL"),
        "sum(hub_used_card_seconds_total)": lambda: sql("SELECT sum(slot_ms) / 1e6 FROM usage_records"),
        'sum(hub_energy_joules_total{basis="estimated"})': lambda: sql(
            "SELECT sum((least(busy_ms * 1000, slot_ms) * 250 + (slot_ms - least(busy_ms * 1000, slot_ms)) * 30) "
            "/ 1000) / 1e3 FROM usage_records"
        ),
        "sum(hub_charged_yuan_total)": lambda: sql(
            "SELECT sum(amount_micros + forgone_micros) / 1e6 FROM charges"
        ),
        "sum(hub_tenant_charged_yuan_total)": lambda: sql(
            "SELECT sum(voucher_micros + tenant_micros) / 1e6 FROM charges"
        ),
        "sum(hub_tenant_prepaid_yuan)": lambda: sql(
            "SELECT sum(credits_posted - debits_posted - debits_pending) / 1e6 FROM accounts "
            "WHERE name::text LIKE 'enterprise/%/prepaid'"
        ),
        f'hub_voucher_captured_yuan{{programme="{programme}"}}': lambda: voucher("captured"),
        f'sum(hub_voucher_firm_captured_yuan{{programme="{programme}"}})': lambda: voucher("captured"),
        f'sum(hub_voucher_firm_claimed_yuan{{programme="{programme}"}})': lambda: voucher("claimed"),
        f'sum(hub_voucher_firm_held_yuan{{programme="{programme}"}})': lambda: voucher("held"),
        f'hub_voucher_remaining_yuan{{programme="{programme}"}}': lambda: voucher("remaining"),
        f'hub_voucher_pool_yuan{{programme="{programme}"}}': lambda: voucher("pool"),
        "sum(hub_metering_gaps)": lambda: 0,
        "max(hub_ledger_audit_differences)": lambda: 0,
        "max(hub_ledger_checkpoint_age_seconds) < bool 60": lambda: 1,
        "sum(hub_collector_failed)": lambda: 0,
        'sum(hub_http_requests_total{route="/v1/jobs",method="POST",status="201"}) > bool 0': lambda: 1,
    }
    for expression, value in expected.items():
        until(lambda e=expression, v=value: math.isclose(figure(prometheus, e), v(), abs_tol=1e-6))


def test_requests_leave_exemplars_with_trace_ids(prometheus: httpx.Client) -> None:
    wanted = {"query": "hub_http_request_duration_seconds_bucket", "start": 0, "end": 4e9}
    found = prometheus.get("/query_exemplars", params=wanted).json()["data"]
    assert found
    assert all(len(e["labels"]["trace_id"]) == 32 for series in found for e in series["exemplars"])


def firing(hub: RunningHub) -> set[str]:
    active = httpx.get(f"{hub.alertmanager}/api/v2/alerts", timeout=60).json()
    return {alert["labels"]["alertname"] for alert in active}


def test_a_false_balance_a_stopped_biller_and_a_killed_node_reach_the_alertmanager(
    hub: RunningHub, prometheus: httpx.Client
) -> None:
    assert {"HubLedgerAuditFailed", "HubBillerDown", "HubNodeLost"} <= set(alerts())
    # One scrape that a busy machine was too slow for sets one off, too; it passes.
    until(lambda: not firing(hub) & {"HubLedgerAuditFailed", "HubBillerDown", "HubNodeLost"})
    settings = Settings(state_directory=hub.state)
    owner = open_engine(private_server(settings).url("hub", OWNER_ROLE), pool_size=1)
    billers = hub.children("biller")
    hub.process.send_signal(signal.SIGSTOP)  # whoever would start the node again
    try:
        for process in reversed(node_processes(hub, "node-2")):
            with suppress(psutil.NoSuchProcess):  # some end as soon as another does
                process.kill()
        shift_a_balance(owner, +1)
        until(lambda: "HubLedgerAuditFailed" in firing(hub))
        shift_a_balance(owner, -1)
        for biller in billers:
            biller.send_signal(signal.SIGSTOP)
        until(lambda: {"HubBillerDown", "HubNodeLost"} <= firing(hub))
    finally:
        for biller in billers:
            biller.send_signal(signal.SIGCONT)
        hub.process.send_signal(signal.SIGCONT)
        owner.dispose()
    until(lambda: figure(prometheus, "sum(hub_node_up)") == 2)
    until(lambda: figure(prometheus, "max(hub_ledger_audit_differences)") == 0)


def shift_a_balance(owner: Engine, micros: int) -> None:
    with transaction(owner) as session:
        session.execute(
            text("UPDATE accounts SET credits_posted = credits_posted + :n WHERE name = 'bank'"),
            {"n": micros},
        )


def node_processes(hub: RunningHub, name: str) -> list[psutil.Process]:
    """A node's process and everything below it."""
    (top,) = [
        child
        for child in psutil.Process(hub.process.pid).children()
        if "node" in child.cmdline() and name in child.cmdline()
    ]
    return [top, *top.children(recursive=True)]
