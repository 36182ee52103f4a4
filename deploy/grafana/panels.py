"""What a board is made of, in few words, and how it becomes Grafana's JSON.

Every title is Chinese and English. Every panel has a unit. Boards find each other by their tag and keep time and
variables when one goes from one to another; alerts and drains are marked on all of them.
"""

import json
from dataclasses import dataclass
from typing import Any, Final, Literal

from grafana_foundation_sdk.builders import bargauge, common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.builders import statetimeline as states
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as common_model
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models import prometheus as prometheus_model

TAG: Final = "compute-hub"
DATASOURCE: Final = model.DataSourceRef(type_val="prometheus", uid="compute-hub-prometheus")

YUAN: Final = "currency:¥"
CARD_HOURS: Final = "suffix: 卡时"
PFLOPS: Final = "suffix: PFLOPS"
PFLOPS_HOURS: Final = "suffix: PFLOPS·h"
CARDS: Final = "suffix: 卡"
SHARE: Final = "percentunit"
SECONDS: Final = "s"
COUNT: Final = "none"
PER_SECOND: Final = "reqps"
BYTES: Final = "bytes"
CELSIUS: Final = "celsius"
WATTS: Final = "watt"
KWH: Final = "kwatth"

Kind = Literal["stat", "lines", "stack", "bars", "states", "table"]


@dataclass(frozen=True)
class Panel:
    """One panel: its queries by legend, and from which values on it turns yellow and red (or the other way round)."""

    zh: str
    en: str
    kind: Kind
    unit: str
    queries: dict[str, str]
    note: str = ""
    yellow: float | None = None
    red: float | None = None
    width: int = 12
    height: int = 8


@dataclass(frozen=True)
class Variable:
    """A choice at the top of a board: the values of a label."""

    name: str
    zh: str
    en: str
    query: str


@dataclass(frozen=True)
class Board:
    """One board for one kind of reader."""

    uid: str
    zh: str
    en: str
    note: str
    panels: tuple[Panel, ...]
    variables: tuple[Variable, ...] = ()


def both(zh: str, en: str) -> str:
    """A title in both languages."""
    return f"{zh} · {en}"


def as_json(board: Board) -> str:
    """The board as Grafana's JSON, the same in every run."""
    made = (
        dashboard.Dashboard(both(board.zh, board.en))
        .uid(board.uid)
        .description(board.note)
        .tags([TAG])
        .timezone("browser")
        .refresh("30s")
        .time("now-6h", "now")
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .link(
            dashboard.DashboardLink(both("其他看板", "Other boards"))
            .type(model.DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .as_dropdown(as_dropdown=True)
            .include_vars(include_vars=True)
            .keep_time(keep_time=True)
        )
    )
    for variable in board.variables:
        made.with_variable(
            dashboard.QueryVariable(variable.name)
            .label(both(variable.zh, variable.en))
            .query(variable.query)
            .datasource(DATASOURCE)
            .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(model.VariableSort.ALPHABETICAL_ASC)
            .multi(multi=True)
            .include_all(include_all=True)
            .all_value(".*")
        )
    for name, expression, color in (
        (both("告警", "Alerts"), 'ALERTS{alertstate="firing"}', "red"),
        (both("排空", "Drains"), 'hub_nodes{state="draining"} > 0', "orange"),
    ):
        made.annotation(
            dashboard.AnnotationQuery()
            .name(name)
            .datasource(DATASOURCE)
            .enable(enable=True)
            .icon_color(color)
            .expr(expression)
        )
    for panel in board.panels:
        made.with_panel(_panel(panel))
    content = json.loads(json.dumps(made.build(), cls=JSONEncoder))
    for panel in content["panels"]:
        panel["options"] = panel["options"] or {}  # Grafana fills in what an object leaves out, but not in null
    for annotation in content["annotations"]["list"]:
        annotation["titleFormat"] = "{{alertname}}{{state}}"  # the builders know no format of annotations
        annotation["textFormat"] = "{{severity}} {{node}} {{programme}} {{model}}"
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _panel(panel: Panel) -> Any:  # noqa: ANN401 - the builders of panels share no type
    made = _BUILDERS[panel.kind]()
    made.title(both(panel.zh, panel.en)).description(panel.note).datasource(DATASOURCE)
    made.unit(panel.unit).span(panel.width).height(panel.height).no_value("–")
    if panel.unit == SHARE and panel.kind in {"lines", "bars"}:
        made.min(0)
    if panel.yellow is not None and panel.red is not None:
        made.thresholds(_thresholds(panel.yellow, panel.red))
    for number, (legend, expression) in enumerate(panel.queries.items()):
        query = prometheus.Dataquery().expr(expression).legend_format(legend).ref_id(chr(ord("A") + number))
        if panel.kind in {"stat", "bars", "table"}:
            query.instant()
        if panel.kind == "table":
            query.format(prometheus_model.PromQueryFormat.TABLE)
        made.with_target(query)
    return made


def _thresholds(yellow: float, red: float) -> dashboard.ThresholdsConfig:
    if yellow < red:
        steps: tuple[tuple[float | None, str], ...] = ((None, "green"), (yellow, "yellow"), (red, "red"))
    else:
        steps = ((None, "red"), (red, "yellow"), (yellow, "green"))
    return (
        dashboard.ThresholdsConfig()
        .mode(model.ThresholdsMode.ABSOLUTE)
        .steps([model.Threshold(value, color) for value, color in steps])
    )


def _lines() -> timeseries.Panel:
    legend = common.VizLegendOptions().show_legend(show_legend=True)
    return timeseries.Panel().legend(
        legend.display_mode(common_model.LegendDisplayMode.TABLE)
        .placement(common_model.LegendPlacement.BOTTOM)
        .calcs(["lastNotNull", "max"])
    )


def _stack() -> timeseries.Panel:
    return _lines().fill_opacity(40).stacking(common.StackingConfig().mode(common_model.StackingMode.NORMAL))


def _bars() -> bargauge.Panel:
    return (
        bargauge.Panel()
        .orientation(common_model.VizOrientation.HORIZONTAL)
        .display_mode(common_model.BarGaugeDisplayMode.GRADIENT)
        .value_mode(common_model.BarGaugeValueMode.TEXT)
    )


_BUILDERS: Final[dict[Kind, Any]] = {
    "stat": stat.Panel,
    "lines": _lines,
    "stack": _stack,
    "bars": _bars,
    "states": states.Panel,
    "table": table.Panel,
}
