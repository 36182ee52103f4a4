"""`make demo`: starts the hub, plays the story, prints the report, writes `var/demo/report.json`, stops the hub."""

import json
import shutil
import sys
from pathlib import Path
from typing import Final

from compute_hub.settings import Settings
from compute_hub.stack.ports import free_port
from compute_hub.stack.up import LocalStack
from examples.demo.display import Display
from examples.demo.report import build_report, faults, print_report
from examples.demo.story import Story
from kernel.clock import boottime_ms
from kernel.errors import HubError

FOLDER: Final = Path("var/demo")
METER_INTERVAL_MS: Final = 2000


def main() -> int:
    """Play the demo; 0 when every job ended as the story says and all sums agree."""
    began = boottime_ms()
    state = FOLDER / "state"
    shutil.rmtree(state, ignore_errors=True)
    ports = {"api_port": free_port(), "ray_port": free_port()}
    chosen = Settings(state_directory=state, meter_interval_ms=METER_INTERVAL_MS, **ports)
    variables = {
        "HUB_STATE_DIRECTORY": str(state.resolve()),
        "HUB_METER_INTERVAL_MS": str(METER_INTERVAL_MS),
        "HUB_API_PORT": str(ports["api_port"]),
        "HUB_RAY_PORT": str(ports["ray_port"]),
    }
    seconds: dict[str, float] = {}
    try:
        with Display() as display:
            with LocalStack(chosen, variables, display.step) as stack:
                seconds["start"] = _since(began)
                story = Story(stack, display)
                story.play()
                seconds["story"] = _since(began) - seconds["start"]
                report = build_report(story)
                display.step("stopping everything")
            seconds["total"] = _since(began)
    except HubError as refusal:
        sys.stderr.write(f"demo: {refusal}\n")
        return 1
    report["seconds"] = {name: round(value, 1) for name, value in seconds.items()}
    path = FOLDER / "report.json"
    path.write_text(json.dumps(report, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    print_report(report, path)
    found = faults(report)
    for fault in found:
        sys.stderr.write(f"demo: {fault}\n")
    return 1 if found else 0


def _since(began_ms: int) -> float:
    return (boottime_ms() - began_ms) / 1000


if __name__ == "__main__":
    sys.exit(main())
