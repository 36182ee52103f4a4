import subprocess

import pytest

from tests.deploy.rules import PROMETHEUS, ROOT, RULE_FILES, alerts, declared, named_in, rules

RUNBOOKS = ROOT / "docs" / "runbooks"


@pytest.mark.parametrize(
    "words",
    [
        ("check", "rules", *map(str, RULE_FILES)),
        ("test", "rules", *map(str, sorted((PROMETHEUS / "tests").glob("*.test.yml")))),
    ],
    ids=["check", "test"],
)
@pytest.mark.slow
def test_promtool_is_content_with_the_rules(words: tuple[str, ...]) -> None:
    done = subprocess.run(["promtool", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_page_and_every_page_an_alert() -> None:
    assert {page.stem for page in RUNBOOKS.glob("*.md")} == set(alerts())
    for name, rule in alerts().items():
        assert rule["annotations"]["runbook"] == f"docs/runbooks/{name}.md"
        assert rule["labels"]["severity"] in {"info", "warning", "critical"}
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["summary_zh"]
        page = (RUNBOOKS / f"{name}.md").read_text(encoding="utf-8")
        assert f"Severity: {rule['labels']['severity']}." in page
        assert "## Where to look" in page
        assert "## What to do" in page


def test_every_alert_is_tested_to_fire() -> None:
    cases = (PROMETHEUS / "tests" / "rules.test.yml").read_text(encoding="utf-8")
    assert [name for name in alerts() if f"- name: {name}\n" not in cases] == []


def test_rules_name_only_series_that_exist() -> None:
    known = declared()
    for rule in rules():
        assert named_in(rule["expr"]) <= known, rule
