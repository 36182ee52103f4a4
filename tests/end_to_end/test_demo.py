import json
import os
import subprocess
import sys
from fractions import Fraction
from typing import Any

import pytest

from tests.end_to_end.conftest import ROOT, processes_mentioning

pytestmark = pytest.mark.slow

MICROS_PER_CARD_MS = Fraction(12_500_000, 3_600_000)
VOUCHER_RATIO = Fraction(30, 100)


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "examples.demo"],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert "The centre claims" in done.stdout
    assert processes_mentioning(ROOT / "var" / "demo") == []
    return dict(json.loads((ROOT / "var" / "demo" / "report.json").read_text(encoding="utf-8")))


def test_every_job_ends_as_the_story_says(report: dict[str, Any]) -> None:
    ends = {job["name"]: (job["state"], job["exit_code"]) for job in report["jobs"]}
    assert ends.pop("cancelled training")[0] == "cancelled"
    assert ends == {
        "distributed training": ("succeeded", 0),
        "digits training": ("succeeded", 0),
        "failing evaluation": ("failed", 3),
        "waiting training": ("succeeded", 0),
    }


def test_the_gang_ran_on_two_cards_of_each_of_two_nodes(report: dict[str, Any]) -> None:
    (gang,) = [job for job in report["jobs"] if job["name"] == "distributed training"]
    assert gang["nodes"] == ["node-1", "node-2"]
    assert sorted(node for node, _ in gang["devices"]) == ["node-1", "node-1", "node-2", "node-2"]


def test_no_card_was_in_two_jobs_at_once_and_one_job_had_to_wait(report: dict[str, Any]) -> None:
    held = [
        (node, index, job["started_at"], job["ended_at"])
        for job in report["jobs"]
        for node, index in job["devices"]
    ]
    for place, (node, index, start, _) in enumerate(held):
        for other_node, other_index, other_start, other_end in held[:place] + held[place + 1 :]:
            if (node, index) == (other_node, other_index):
                assert not other_start <= start < other_end
    (waited,) = [job for job in report["jobs"] if job["name"] == "waiting training"]
    (cancelled,) = [job for job in report["jobs"] if job["name"] == "cancelled training"]
    assert waited["queued_at"] < cancelled["ended_at"] <= waited["started_at"]


def test_each_cost_follows_from_card_time_and_each_share_from_the_cost(report: dict[str, Any]) -> None:
    for job in report["jobs"]:
        exact = job["card_ms"] * MICROS_PER_CARD_MS
        assert job["card_ms"] > 0
        assert job["charge_micros"] == int(exact + Fraction(1, 2))
        assert job["voucher_micros"] == int(job["charge_micros"] * VOUCHER_RATIO)
        assert job["tenant_micros"] == job["charge_micros"] - job["voucher_micros"]


def test_programme_vouchers_jobs_claim_and_ledger_agree(report: dict[str, Any]) -> None:
    vouchers, jobs = report["vouchers"], report["jobs"]
    assert report["programme"] == {
        "budget_micros": 10_000_000_000_000,
        "issued_micros": sum(voucher["face_micros"] for voucher in vouchers),
    }
    for voucher in vouchers:
        assert voucher["face_micros"] <= 200_000_000_000
        assert voucher["held_micros"] == 0
        assert voucher["face_micros"] == voucher["captured_micros"] + voucher["remaining_micros"]
        paid = sum(job["voucher_micros"] for job in jobs if job["tenant"] == voucher["tenant"])
        assert voucher["captured_micros"] == paid
    assert report["claim"]["amount_micros"] == sum(job["voucher_micros"] for job in jobs)
    assert report["claim"]["lines"] >= len([job for job in jobs if job["voucher_micros"]])
    assert report["usage"]["card_ms"] == sum(job["card_ms"] for job in jobs)
    assert report["usage"]["records"] >= len(jobs)
    assert (report["ledger"]["sum_micros"], report["ledger"]["audit"]) == (0, "ok")
    assert report["ray"]["nodes"] == 2
