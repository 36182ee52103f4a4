"""A small month through the whole hub on simulated nodes, counted again to the last micro-yuan."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scheduler.simulator.generator import WorkloadShape, generate
from tests.end_to_end.conftest import ROOT

pytestmark = pytest.mark.slow

JOBS = 40


def small_trace(file: Path) -> None:
    """A month of the seeded generator, with fractions and gangs, in the hub's own columns."""
    with file.open("w", encoding="utf-8", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["job_id", "submitted_s", "duration_s", "tenant", "nodes", "devices", "slots_milli"])
        for job, duration_ms in generate(WorkloadShape(jobs=JOBS, nodes=4, load_percent=60), 7):
            firm = ("一号精工", "二号医化", "三号电机")[int(job.id[-3:]) % 3]
            devices = (job.devices_per_node, job.slots_milli)
            rows.writerow([job.id, job.submitted_ms // 1000, duration_ms / 1000, firm, job.nodes, *devices])


def test_a_replayed_month_differs_nowhere_from_its_recount(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    small_trace(trace)
    hub = Path(sys.executable).with_name("hub")
    options = {
        "--trace": trace,
        "--format": "csv",
        "--programme": ROOT / "examples" / "programmes" / "huangyan.json",
        "--speed": 8640,
        "--nodes": 6,
        "--out": tmp_path / "out",
    }
    words = [str(word) for pair in options.items() for word in pair]
    done = subprocess.run(
        [str(hub), "replay", *words],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert report["differences"] == []
    assert report["compared"] > 4 * JOBS
    assert sum(firm["jobs"] for firm in report["firms"]) == JOBS
    assert all(firm["gross"] == firm["voucher"] + firm["own"] for firm in report["firms"])
    assert sum(firm["claimed"] for firm in report["firms"]) > 0
    assert "0 differ" in done.stdout
