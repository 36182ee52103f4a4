"""Write every board as the JSON that Grafana reads."""

from pathlib import Path

from deploy.grafana.boards import BOARDS
from deploy.grafana.panels import as_json

DASHBOARDS = Path(__file__).with_name("dashboards")

if __name__ == "__main__":
    for board in BOARDS:
        (DASHBOARDS / f"{board.uid}.json").write_text(as_json(board), encoding="utf-8")
