"""What processes say of themselves."""

import json
import subprocess
import sys

PROGRAM = """
import structlog
from kernel.logs import configure_logs

configure_logs("part")

def fail(secret):
    raise ValueError("the reason")

try:
    fail("correct horse")
except ValueError:
    structlog.get_logger().exception("failed", job="j")
"""


def test_an_error_is_told_with_its_place_and_never_with_what_variables_held() -> None:
    said = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True).stderr
    line = json.loads(said)
    assert (line["event"], line["process"], line["level"]) == ("failed", "part", "error")
    (told,) = line["exception"]
    assert (told["exc_type"], told["exc_value"]) == ("ValueError", "the reason")
    assert [frame["name"] for frame in told["frames"]] == ["<module>", "fail"]
    assert "correct horse" not in said
    assert "locals" not in said
