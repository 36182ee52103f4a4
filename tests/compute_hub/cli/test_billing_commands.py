"""What a job will cost before it runs, and what an invoice is made of, as people type for it."""

import io
from datetime import timedelta
from pathlib import Path

import pytest
from openpyxl import load_workbook
from sqlalchemy import text

from kernel.clock import utc_now
from kernel.database import transaction
from kernel.ids import new_id
from tests.compute_hub.api.house import MODEL, job
from tests.compute_hub.cli.test_commands import Terminal, terminal

__all__ = ["terminal"]


def test_an_estimate_says_both_costs_who_pays_what_and_why_the_start_and_what_ends_first(
    terminal: Terminal,
) -> None:
    house = terminal.house
    firm = house.enterprise("500.00")
    voucher = house.voucher(firm, house.programme(), requested_cny="100.00")
    printed, _ = terminal.types(firm, "job", "estimate", "--accelerator", MODEL, "--environment", "digits",
                                "--time-limit", "36000")  # fmt: skip
    limit, predicted, start, *warnings = printed.splitlines()
    assert limit.startswith(f"the whole limit, 36000 s on {MODEL}: ¥360.00; ")
    assert predicted.startswith("what it will probably run, ")
    for line in (limit, predicted):
        assert f"voucher {voucher['number']} pays " in line
        assert "Huangyan §3" in line
        assert "; you pay ¥" in line
    assert start.startswith("start: ")
    assert "it would start at once" in start
    assert warnings == []
    short = house.programme(validity={"clause": "Short §5", "days": 1})
    ending = house.voucher(firm, short, requested_cny="50.00")
    printed, _ = terminal.types(firm, "job", "estimate", "--accelerator", MODEL, "--environment", "digits",
                                "--time-limit", "172800", "--voucher", ending["id"])  # fmt: skip
    assert any(
        line.startswith("warning: ") and f"{ending['number']} ends at" in line for line in printed.splitlines()
    )


def test_a_person_goes_from_an_invoices_line_to_job_records_and_devices(
    terminal: Terminal, tmp_path: Path
) -> None:
    house = terminal.house
    firm = house.enterprise("100.00")
    submitted = firm.post("/v1/jobs", job(time_limit_s=3600))
    used_at = utc_now().replace(day=1, hour=0, minute=0, second=0, microsecond=0) - timedelta(days=2)
    house.use(submitted["id"], 600_000, used_at)
    month, tenant = f"{used_at:%Y-%m}", str(firm.tenant_id)
    (invoice,) = terminal.gets(house.operator, "invoice", "close", month, "--tenant", tenant)
    (shown,) = terminal.gets(firm, "invoice", "show", invoice["id"])
    (line,) = shown["lines"]
    (found,) = terminal.gets(firm, "invoice", "explain", invoice["id"], str(line["line"]))
    assert found["job_id"] == submitted["id"]
    assert (found["where"], found["duration_ms"]) == (f"{found['node']}:{found['devices']}", line["card_ms"])
    workbook = tmp_path / "invoice.xlsx"
    terminal.types(firm, "invoice", "save", invoice["id"], str(workbook), "--language", "en")
    sheet = load_workbook(io.BytesIO(workbook.read_bytes())).active
    cells = [cell.value for row in sheet.iter_rows() for cell in row if cell.value is not None]
    assert {invoice["number"], "Payable, tax included", 6.0} <= set(cells)


@pytest.mark.slow
def test_a_holder_sees_what_became_of_its_card_time_and_what_energy_and_memory_it_took(
    terminal: Terminal,
) -> None:
    house = terminal.house
    firm, other = house.enterprise("100.00"), house.enterprise("1.00")
    submitted = firm.post("/v1/jobs", job(time_limit_s=3600))["id"]
    began, memory = utc_now() - timedelta(hours=1), {"memory_bytes_max": 4096, "device_memory_bytes_max": 512}
    energy = {"energy_mj": 7_500_000, "energy_basis": "measured"}
    house.use(submitted, 60_000, began, busy_ms=45_000, **energy, **memory)
    with transaction(house.engine) as session:
        held = {
            "run": new_id(),
            "job": submitted,
            "model": MODEL,
            "at": began,
            "until": began + timedelta(seconds=100),
        }
        for statement in (_RAN, _HELD):
            session.execute(text(statement), held)
    (shown,) = terminal.gets(firm, "meter", "held", submitted)
    assert shown == {
        "model": MODEL,
        "allocated_card_ms": 100_000,
        "metered_card_ms": 60_000,
        "unused_card_ms": 40_000,
        "busy_card_ms": 45_000,
        "idle_card_ms": 15_000,
        "energy_joules": 7_500.0,
        "energy_estimated": False,
        **memory,
    }
    (record,) = terminal.gets(firm, "meter", "records", submitted)
    assert {name: record[name] for name in ("busy_ms", *energy, *memory)} == {
        "busy_ms": 45_000,
        **energy,
        **memory,
    }
    assert other.ask("GET", f"/v1/jobs/{submitted}/held-time").status_code == 404


_RAN = (
    "INSERT INTO runs (id, job_id, attempt, rank, node, epoch, state, devices, acknowledged)"
    " VALUES (:run, :job, 1, 0, 'a', 1, 'running', '[]', false)"
)
_HELD = (
    "INSERT INTO allocations SELECT gen_random_uuid(), :run, node, index, model,"
    " int8range(number * 1000, number * 1000 + 1000), tstzrange(:at, :until)"
    " FROM devices WHERE node = 'a' AND model = :model ORDER BY index LIMIT 1"
)
