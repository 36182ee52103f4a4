"""`hub` as its users meet it: the whole story by commands, readable tables, one sentence when refused."""

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from compute_hub.cli.main import app, main
from compute_hub.cli.waiting import exit_status
from kernel.clock import utc_now
from kernel.database import transaction
from scheduler.tables import JobRow
from tests.compute_hub.api.house import EXAMPLES, MODEL, Asker, House, Json, job, month_in_china

ROOT = Path(__file__).parents[3]


class Terminal:
    """Somebody who types `hub …` with a key in the environment."""

    def __init__(
        self, house: House, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.house = house
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def types(self, who: Asker, *words: str, status: int = 0) -> tuple[str, str]:
        """What the command prints on standard output and standard error."""
        self._monkeypatch.setenv("HUB_URL", self.house.server.url)
        self._monkeypatch.setenv("HUB_API_KEY", who.key)
        self._monkeypatch.setattr(sys, "argv", ["hub", *words])
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        printed = self._capsys.readouterr()
        assert (left.value.code or 0) == status, printed
        return printed.out, printed.err

    def gets(self, who: Asker, *words: str) -> Json:
        """The JSON a command prints."""
        return json.loads(self.types(who, *words, "--json")[0])


@pytest.fixture
def terminal(
    house: House, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Terminal]:
    with capture_logs():  # the hub in this process would write between the lines of its client
        yield Terminal(house, monkeypatch, capsys)


def test_a_name_commands_no_terminal_and_breaks_no_listing(terminal: Terminal) -> None:
    firm = terminal.house.enterprise("1000.00")
    made = firm.post("/v1/jobs", job(name="[/red][bold]x\x1b[2J\x07"))
    for words in (("job", "list"), ("job", "show", made["id"])):
        out, _ = terminal.types(firm, *words)
        assert "[/red][bold]x" in out
        assert "\x1b" not in out
        assert "\x07" not in out


@pytest.mark.slow
def test_the_story_from_programme_to_reconciliation_by_commands(terminal: Terminal, tmp_path: Path) -> None:
    house = terminal.house
    programme = f"huangyan-{house.number()}"
    document = json.loads((EXAMPLES / "huangyan.json").read_text(encoding="utf-8"))
    file = tmp_path / "rules.json"
    file.write_text(json.dumps(document | {"programme": programme}), encoding="utf-8")
    assert "¥10,000,000.00" in terminal.types(house.authority, "programme", "publish", str(file))[0]
    code = f"91331003{house.number():09d}X"
    (firm,) = terminal.gets(house.operator, "enterprise", "register", code, "Works", "--region", "331003")
    deposit = ["wallet", "deposit", firm["id"], "100.00", "--reference", f"bank {code}"]
    assert "¥100.00" in terminal.types(house.operator, *deposit)[0]
    key = terminal.gets(house.operator, "key", "make", "tenant", "Engineer", "--enterprise", firm["id"])[0]
    tenant = Asker(house.http, key["key"])

    (application,) = terminal.gets(tenant, "application", "apply", programme, "--amount", "50.00")
    review = ["application", "review", application["id"], "--reason", "complete"]
    shown, _ = terminal.types(house.reviewer, *review)
    assert "first review" in shown
    assert "cap_per_enterprise" in shown
    terminal.types(house.approver, "application", "approve", application["id"], "--amount", "40.00")
    (voucher,) = terminal.gets(house.authority, "application", "issue", application["id"])
    table, _ = terminal.types(tenant, "voucher", "list")
    assert voucher["number"] in table
    assert "¥40.00" in table
    assert terminal.gets(tenant, "voucher", "show", voucher["id"])[0]["parts"] == []
    terminal.types(tenant, "voucher", "allot", voucher["id"], "moulds", "10.00", "--reference", "r")
    assert "moulds" in terminal.types(tenant, "voucher", "show", voucher["id"])[0]
    assert "will lapse" in terminal.types(tenant, "voucher", "forecast")[0]

    submit = ["job", "submit", "--accelerator", MODEL, "--time-limit", "600"]
    quoted, _ = terminal.types(tenant, *submit, "--quote", "--", "python", "train.py")
    assert quoted.startswith("First stretch ¥6.250001: district voucher ")
    (job,) = json.loads(terminal.types(tenant, *submit, "--json", "--", "python", "train.py")[0])
    house.use(job["id"], 100_000)
    charges, _ = terminal.types(tenant, "job", "charges", job["id"])
    assert "¥0.30" in charges
    assert "100.0 s" in charges

    (claim,) = terminal.gets(house.operator, "claim", "make", programme, month_in_china())
    terminal.types(house.reviewer, "claim", "check", claim["id"], "--centre", "91331003CENTRE0001")
    terminal.types(house.reviewer, "claim", "review", claim["id"])
    terminal.types(house.approver, "claim", "approve", claim["id"])
    terminal.types(house.authority, "claim", "disburse", claim["id"], "--bank-reference", f"B {programme}")
    reconcile = ["claim", "reconcile", claim["id"], "--received", "0.30", "--statement", "S"]
    assert "reconciled" in terminal.types(house.operator, *reconcile)[0]
    lines, _ = terminal.types(house.auditor, "claim", "show", claim["id"])
    assert "Huangyan §3" in lines
    assert "automatic checks" in lines

    assert "balances sum to 0: ok" in terminal.types(house.auditor, "ledger", "audit")[0]
    (account,) = terminal.gets(house.auditor, "ledger", "accounts", f"voucher/{voucher['id']}/project")
    history, _ = terminal.types(house.auditor, "ledger", "history", account["id"])
    assert "allot_part" in history


def test_officers_change_facts_and_control_by_commands_and_see_what_was_before(terminal: Terminal) -> None:
    house = terminal.house
    firm = house.enterprise()
    who, code = str(firm.tenant_id), firm.get("/v1/enterprises")["items"][0]["credit_code"]
    change = ["enterprise", "change", who, "--size", "large", "--dishonest", "--role", "leader"]
    (now,) = terminal.gets(house.authority, *change, "--reason", "list of the court")
    assert (now["version"], now["size_class"], now["dishonest"], now["roles"]) == (2, "large", True, ["leader"])
    (now,) = terminal.gets(house.authority, "enterprise", "change", who, "--honest", "--reason", "appeal")
    assert (now["version"], now["size_class"], now["dishonest"]) == (3, "large", False)
    reasons = [one["reason"] for one in terminal.gets(firm, "enterprise", "history", who)]
    assert reasons == ["registered", "list of the court", "appeal"]
    for party in ("person-1", "person-2"):
        terminal.types(house.authority, "enterprise", "set-controller", code, party, "--reason", "extract")
    assert "person-1" not in terminal.types(house.auditor, "enterprise", "controllers")[0]
    found = terminal.gets(house.auditor, "enterprise", "controllers", "--party", code)
    assert [one["controller"] for one in found] == ["person-2", "person-1"]


@pytest.mark.slow
def test_everything_an_enterprise_asks_of_a_job_can_be_typed(
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = terminal.house
    firm = house.enterprise("1000.00")
    monkeypatch.setattr(sys, "stdin", io.StringIO("very secret\n"))
    assert terminal.gets(firm, "secret", "put", "token")[0]["size_bytes"] == len("very secret")
    file = tmp_path / "small.json"
    file.write_text(
        json.dumps({"accelerator": MODEL, "time_limit_s": 60, "priority": "low", "env": {"A": "1"}})
    )
    assert "time_limit_s" in terminal.types(firm, "template", "save", "small", str(file))[0]
    wishes = ["--hold", "--preemptible", "--retries", "2", "--retry-on", "failure", "--priority", "high"]
    wishes += ["--not-before", "2100-01-01T00:00:00Z", "--topology", "spread", "--secret", "token"]
    submit = ["job", "submit", "--template", "small", "--env", "B=2", *wishes, "--json", "--", "true"]
    (first,) = json.loads(terminal.types(firm, *submit)[0])
    assert (first["time_limit_s"], first["priority"], first["topology"]) == (60, "high", "spread")
    assert (first["held"], first["preemptible"], first["max_retries"]) == (True, True, 2)
    assert first["secrets"] == ["token"]
    plain = ["job", "submit", "--accelerator", MODEL, "--after", first["id"], "--json", "--", "true"]
    (second,) = json.loads(terminal.types(firm, *plain)[0])
    assert second["depends_on"] == [first["id"]]
    assert terminal.gets(firm, "job", "explain", second["id"])[0]["code"] == "dependency"
    assert "waiting for job" in terminal.types(firm, "job", "explain", second["id"])[0]
    assert terminal.gets(firm, "job", "depend", second["id"])[0]["depends_on"] == []
    assert terminal.gets(firm, "job", "hold", second["id"])[0]["held"]
    assert not terminal.gets(firm, "job", "release", second["id"])[0]["held"]
    many = [
        "job",
        "submit",
        "--accelerator",
        MODEL,
        "--array",
        "3",
        "--array-running",
        "1",
        "--json",
        "--",
        "true",
    ]
    (array,) = json.loads(terminal.types(firm, *many)[0])
    assert terminal.gets(firm, "job", "array", array["id"])[0]["states"] == {"queued": 3}
    assert len(terminal.gets(firm, "job", "list", "--array", array["id"], "--state", "queued")) == 3
    assert terminal.gets(firm, "job", "show", f"{array['id']}.2")[0]["array_index"] == 2
    assert "queued: 3" in terminal.types(firm, "job", "cancel", "--array", array["id"])[0]
    _, refusal = terminal.types(firm, *many[:-3], "--wait", "--", "true", status=1)
    assert refusal.startswith("hub: --wait: an array cannot be waited for")
    assert terminal.gets(firm, "job", "attempts", first["id"]) == []
    _, refusal = terminal.types(firm, "secret", "delete", "token", status=1)
    assert refusal.startswith("hub: Secret 'token' is named by job")
    assert terminal.gets(firm, "template", "delete", "small")[0]["name"] == "small"


def test_what_a_job_left_can_be_followed_listed_and_fetched(terminal: Terminal, tmp_path: Path) -> None:
    house = terminal.house
    firm = house.enterprise("1000.00")
    submitted = firm.post("/v1/jobs", job())
    with transaction(house.engine) as session:
        row = session.get_one(JobRow, UUID(submitted["id"]))
        row.state, row.attempt, row.ended_at = "succeeded", 1, utc_now()
    folder = house.settings.workspaces / str(firm.tenant_id) / submitted["id"] / "attempt-1"
    (folder / "rank-0" / "out").mkdir(parents=True)
    (folder / "rank-0" / "out" / "model").write_bytes(b"weights")
    (folder / "rank-0.log").write_text("epoch 1\n", encoding="utf-8")
    for follow in ([], ["-f"]):
        assert terminal.types(firm, "job", "logs", submitted["id"], *follow)[0] == "epoch 1\n"
    (entry,) = terminal.gets(firm, "job", "artifacts", submitted["id"], "out")
    assert (entry["path"], entry["size_bytes"]) == ("out/model", 7)
    target = tmp_path / "fetched"
    said, _ = terminal.types(firm, "job", "download", submitted["id"], "out/model", "--to", str(target))
    assert (target.read_bytes(), said) == (b"weights", f"{target}: 7 bytes\n")


@pytest.mark.slow
def test_a_programme_that_counts_card_hours_is_run_by_commands_too(terminal: Terminal) -> None:
    house = terminal.house
    programme = house.programme(
        "uk-airr",
        asset=f"card_ms:{MODEL}",
        reserve={"clause": "AIRR §9", "amount": "1"},
        review={"clause": "AIRR §6", "first_review": "panel", "final_approval": "board", "notice_days": 0},
        settlement={"clause": "AIRR §7", "direction": "centre_claims", "cycle": "month"},
        eligible={
            "clause": "AIRR §1",
            "enterprise_regions": ["any"],
            "centre_regions": ["any"],
            "cost_kinds": ["compute"],
        },
    )
    firm = house.enterprise("100.00")
    (application,) = terminal.gets(firm, "application", "apply", programme, "--amount", "20h")
    assert application["requested_card_ms"] == 72_000_000
    terminal.types(house.reviewer, "application", "review", application["id"])
    terminal.types(house.approver, "application", "approve", application["id"], "--amount", "12.5h")
    (voucher,) = terminal.gets(house.authority, "application", "issue", application["id"])
    part = [voucher["id"], "moulds"]
    assert "12.50 card-h" in terminal.types(firm, "voucher", "allot", *part, "2.5h", "--reference", "1")[0]
    terminal.types(firm, "voucher", "return-part", *part, "0.5h", "--reference", "2")
    assert "2.00 card-h" in terminal.types(firm, "voucher", "show", voucher["id"])[0]
    _, err = terminal.types(firm, "voucher", "allot", *part, "1.00", "--reference", "3", status=1)
    assert "amount_card_ms" in err
    _, err = terminal.types(firm, "voucher", "allot", *part, "0.0000001h", "--reference", "4", status=1)
    assert err == "hub: '0.0000001h' is no whole number of card-milliseconds.\n"
    reserve = ["programme", "advance-reserve", programme, "0.05h", "--reference", "1"]
    terminal.types(house.authority, *reserve)
    submit = ["job", "submit", "--accelerator", MODEL, "--time-limit", "600", "--json", "--", "x"]
    (job,) = json.loads(terminal.types(firm, *submit)[0])
    house.use(job["id"], 360_000)
    (claim,) = terminal.gets(house.operator, "claim", "make", programme, month_in_china())
    terminal.types(house.reviewer, "claim", "check", claim["id"], "--centre", "91331003CENTRE0001")
    terminal.types(house.reviewer, "claim", "review", claim["id"])
    terminal.types(house.approver, "claim", "approve", claim["id"])
    terminal.types(house.authority, "claim", "disburse", claim["id"], "--bank-reference", f"B {programme}")
    reconcile = ["claim", "reconcile", claim["id"], "--received", "0.05h", "--statement", "S"]
    assert "reconciled" in terminal.types(house.operator, *reconcile)[0]


def test_a_refusal_is_one_sentence_on_standard_error_and_exit_status_one(terminal: Terminal) -> None:
    house = terminal.house
    out, err = terminal.types(house.operator, "programme", "publish", __file__, status=1)
    assert out == ""
    assert err.startswith("hub: ")
    assert "does not hold a JSON object" in err
    _, err = terminal.types(house.auditor, "key", "make", "operator", "Me", status=1)
    assert err == "hub: A key of role 'auditor' may not do this; it takes the role operator.\n"
    _, err = terminal.types(house.auditor, "voucher", "show", "00000000-0000-0000-0000-000000000000", status=1)
    assert err == "hub: There is no voucher 00000000-0000-0000-0000-000000000000.\n"
    _, err = terminal.types(house.operator, "claim", "make", "x1", "2026-03", "--evidence", "I-7", status=1)
    assert err == "hub: --evidence: 'I-7' is not KIND=REFERENCE, such as invoice=I-7.\n"
    nobody = Asker(house.http, "hub_tenant_zzz")
    _, err = terminal.types(nobody, "wallet", "show", status=1)
    assert err.startswith("hub: The Authorization header does not hold an API key.")


LISTINGS = [
    ("auditor", ["programme", "list"]),
    ("auditor", ["application", "list"]),
    ("auditor", ["application", "notices"]),
    ("auditor", ["voucher", "list"]),
    ("auditor", ["voucher", "restored"]),
    ("auditor", ["voucher", "forecast"]),
    ("auditor", ["enterprise", "list"]),
    ("auditor", ["key", "list"]),
    ("auditor", ["claim", "list"]),
    ("auditor", ["cluster", "show"]),
    ("auditor", ["rate", "list"]),
    ("auditor", ["ledger", "accounts"]),
    ("auditor", ["job", "list"]),
    ("tenant", ["wallet", "show"]),
    ("tenant", ["wallet", "history"]),
    ("tenant", ["wallet", "budgets"]),
    ("tenant", ["secret", "list"]),
    ("tenant", ["template", "list"]),
]


@pytest.mark.parametrize(("role", "words"), LISTINGS, ids=" ".join)
def test_every_listing_is_a_table_or_json(terminal: Terminal, role: str, words: list[str]) -> None:
    house = terminal.house
    who = house.enterprise("1.00") if role == "tenant" else house.auditor
    assert isinstance(terminal.gets(who, *words), list)
    assert terminal.types(who, *words)[0].strip()


def test_every_command_says_what_it_is_for() -> None:
    for group in app.registered_groups:
        typer_app = group.typer_instance
        assert typer_app is not None
        for command in typer_app.registered_commands:
            assert command.callback is not None
            assert command.callback.__doc__, command.name


@pytest.mark.slow
def test_the_installed_program_speaks_to_a_hub(house: House) -> None:
    hub = Path(sys.executable).with_name("hub")
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
        "HUB_URL": house.server.url,
        "HUB_API_KEY": house.auditor.key,
    }

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [hub, *words], env=environment, capture_output=True, text=True, check=False, timeout=120
        )

    listed = run("rate", "list", "--json")
    assert (listed.returncode, json.loads(listed.stdout)[0]["model"]) == (0, MODEL)
    refused = run("rate", "set", MODEL, "1.00")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == "hub: A key of role 'auditor' may not do this; it takes the role operator.\n"
    environment["HUB_URL"] = "http://127.0.0.1:1"
    away = run("rate", "list")
    assert away.returncode == 1
    assert away.stderr.startswith("hub: No hub answers at http://127.0.0.1:1")


@pytest.mark.slow
def test_nodes_are_drained_reserved_and_opened_again_by_commands(terminal: Terminal) -> None:
    house = terminal.house
    operator, firm = house.operator, house.enterprise("10.00")
    why = ["--reason", "fan 3 rattles"]
    table, _ = terminal.types(operator, "node", "drain", "a", "--deadline-s", "600", *why)
    assert "drained" in table
    (node,) = terminal.gets(operator, "node", "cordon", "a", "--card", "1", *why)
    assert [device["cordoned"] for device in node["devices"]] == [False, True]
    table, _ = terminal.types(operator, "node", "list")
    assert "1: cordoned" in table
    terminal.types(operator, "node", "resume", "a", "--card", "1", *why)
    (node,) = terminal.gets(operator, "node", "resume", "a", *why)
    assert node["standing"] == "up"
    (node,) = terminal.gets(operator, "node", "label", "a", "zone=east", "switch=s1")
    assert node["labels"] == {"switch": "s1", "zone": "east"}
    span = ["--from", "2100-01-01T08:00", "--to", "2100-01-01T09:00", *why]
    (kept,) = terminal.gets(operator, "node", "reserve", "a", "--tenant", str(firm.tenant_id), *span)
    assert (kept["nodes"], kept["purpose"]) == ({"a": [0, 1]}, "tenant")
    (window,) = terminal.gets(operator, "node", "maintain", "b:1", *span)
    assert window["nodes"] == {"b": [1]}
    assert [one["id"] for one in terminal.gets(firm, "node", "reservations")] == [kept["id"]]
    _, refused = terminal.types(operator, "node", "maintain", "b:x", *span, status=1)
    assert refused == "hub: 'b:x' names no devices. Write NODE or NODE:0,2.\n"
    _, refused = terminal.types(
        operator, "node", "reserve", "a", "--tenant", "x", "--from", "soon", *span[2:], status=1
    )
    assert refused.startswith("hub: --from: 'soon' is not a time.")
    terminal.types(operator, "node", "cancel", kept["id"])
    kinds = [event["kind"] for event in terminal.gets(operator, "node", "events", "a")]
    assert kinds == [
        "reservation_cancelled", "reserved", "labelled", "resumed", "resumed", "cordoned", "draining",
    ]  # fmt: skip
    terminal.types(firm, "node", "drain", "a", *why, status=1)
    firm.post("/v1/jobs", job())
    assert MODEL in terminal.types(operator, "cluster", "demand")[0]
    assert "serve --model" in terminal.types(operator, "cluster", "environments")[0]


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        ({"state": "succeeded", "exit_code": 0}, 0),
        ({"state": "failed", "exit_code": 3}, 3),
        ({"state": "failed", "exit_code": 137}, 137),
        ({"state": "failed", "exit_code": -9}, 137),
        ({"state": "failed", "exit_code": 1000}, 255),
        ({"state": "failed", "exit_code": None}, 1),
        ({"state": "failed", "exit_code": 0}, 1),
        ({"state": "cancelled", "exit_code": 143}, 1),
        ({"state": "running", "exit_code": None}, 124),
    ],
)
def test_a_script_is_told_how_the_job_it_waited_for_ended(outcome: dict[str, Any], status: int) -> None:
    good = {"state": "succeeded", "exit_code": 0}
    assert exit_status([outcome]) == exit_status([good, outcome, good]) == status
    assert exit_status([outcome, {"state": "failed", "exit_code": 77}]) == (status or 77)


def test_jobs_are_waited_for_and_followed_with_their_status(terminal: Terminal) -> None:
    firm = terminal.house.enterprise("1000.00")
    jobs = [firm.post("/v1/jobs", job())["id"] for _ in range(2)]

    def end(job_id: str, state: str, exit_code: int) -> None:
        with transaction(terminal.house.engine) as session:
            row = session.get_one(JobRow, UUID(job_id))
            row.state, row.exit_code, row.ended_at = state, exit_code, utc_now()

    assert json.loads(terminal.types(firm, "job", "wait", *jobs, "--timeout", "0", "--json", status=124)[0])
    end(jobs[0], "succeeded", 0)
    end(jobs[1], "failed", 3)
    out, _ = terminal.types(firm, "job", "wait", *jobs, "--json", status=3)
    assert [one["state"] for one in json.loads(out)] == ["succeeded", "failed"]
    terminal.types(firm, "job", "wait", jobs[0])
    terminal.types(firm, "job", "logs", "-f", jobs[1])
    terminal.types(firm, "job", "logs", "-f", "--exit-code", jobs[1], status=3)
    terminal.types(firm, "job", "logs", "-f", "--exit-code", jobs[0])
    _, said = terminal.types(firm, "job", "logs", "--exit-code", jobs[0], status=1)
    assert "hub job wait" in said
