import json
from pathlib import Path
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.grafana.boards import BOARDS
from deploy.grafana.panels import DATASOURCE, TAG, Board, as_json
from tests.deploy.rules import ROOT, declared, named_in

DASHBOARDS = ROOT / "deploy" / "grafana" / "dashboards"
EVERY = pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)


def content(board: Board) -> dict[str, Any]:
    return dict(json.loads((DASHBOARDS / f"{board.uid}.json").read_text(encoding="utf-8")))


def lost(written: Any, read: Any, at: str = "") -> set[str]:  # noqa: ANN401 - JSON
    """Where what was written is not in what was read; what reading fills in is not looked at."""
    if isinstance(written, dict) and isinstance(read, dict):
        return {
            place
            for key, value in written.items()
            for place in (lost(value, read[key], f"{at}/{key}") if key in read else {f"{at}/{key}"})
        }
    if isinstance(written, list) and isinstance(read, list) and len(written) == len(read):
        return {
            place for one, other in zip(written, read, strict=True) for place in lost(one, other, f"{at}/*")
        }
    return set() if written == read else {at}


def is_chinese(text: str) -> bool:
    return any("\u4e00" <= letter <= "\u9fff" for letter in text)


def test_what_grafana_is_given_is_what_the_boards_say() -> None:
    assert {file.name for file in DASHBOARDS.iterdir()} == {f"{board.uid}.json" for board in BOARDS}
    for board in BOARDS:
        stored = Path(DASHBOARDS / f"{board.uid}.json").read_text(encoding="utf-8")
        assert stored == as_json(board), "run: python -m deploy.grafana"


@EVERY
def test_grafanas_schema_knows_everything_a_board_says(board: Board) -> None:
    register_default_plugins()
    read = json.loads(json.dumps(Dashboard.from_json(content(board)), cls=JSONEncoder))
    # The schema's builders do not know how an annotation's text is made; Grafana does.
    formats = {"/annotations/list/*/titleFormat", "/annotations/list/*/textFormat"}
    assert lost(content(board), read) == formats


@EVERY
def test_every_title_is_chinese_and_english_and_every_panel_has_a_unit(board: Board) -> None:
    titles = [
        (board.zh, board.en),
        *((p.zh, p.en) for p in board.panels),
        *((v.zh, v.en) for v in board.variables),
    ]
    assert all(is_chinese(zh) or "p99" in zh for zh, _ in titles)
    assert not any(is_chinese(en) for _, en in titles)
    assert all(zh in content(board)["title"] or zh != board.zh for zh, _ in titles)
    for panel in content(board)["panels"]:
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["targets"]


@EVERY
def test_panels_name_only_series_that_exist_and_only_our_datasource(board: Board) -> None:
    known = declared()
    for panel in content(board)["panels"]:
        assert panel["datasource"]["uid"] == DATASOURCE.uid
        for target in panel["targets"]:
            assert named_in(target["expr"]) <= known, target["expr"]
    for variable in board.variables:
        assert named_in(variable.query) <= known


@EVERY
def test_boards_link_to_each_other_and_mark_alerts_and_drains(board: Board) -> None:
    made = content(board)
    assert made["tags"] == [TAG]
    assert [link["tags"] for link in made["links"]] == [[TAG]]
    assert {note["expr"] for note in made["annotations"]["list"]} == {
        'ALERTS{alertstate="firing"}',
        'hub_nodes{state="draining"} > 0',
    }


def test_panels_lie_beside_each_other_and_never_on_each_other() -> None:
    for board in BOARDS:
        taken: set[tuple[int, int]] = set()
        for panel in content(board)["panels"]:
            place = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert not cells & taken, (board.uid, panel["title"])
            assert all(x < 24 for x, _ in cells)
            taken |= cells
