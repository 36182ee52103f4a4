from pathlib import Path

from compute_hub.telemetry.reference import reference

PAGE = Path(__file__).parents[3] / "docs" / "metrics.md"


def test_the_page_of_metrics_says_what_the_code_declares() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), (
        "run: python -m compute_hub.telemetry > docs/metrics.md"
    )
