"""For the operator: every node's cards, health and isolation."""

from deploy.grafana.panels import CARDS, COUNT, SHARE, Board, Panel, Variable

_OF = '{node=~"$node"}'
_SHARE = f"sum by (node) (hub_node_devices_allocated{_OF}) / (sum by (node) (hub_node_devices{_OF}) > 0)"

NODES = Board(
    "hub-nodes",
    "节点",
    "Nodes",
    "One row per node. Temperature and power join when nodes report them.",
    (
        Panel(
            "节点状态",
            "Nodes by state",
            "stat",
            COUNT,
            {"{{state}}": "sum by (state) (hub_nodes)"},
            width=12,
            height=5,
        ),
        Panel(
            "隔离级别",
            "Isolation",
            "stat",
            COUNT,
            {"{{level}}": "sum by (level) (hub_nodes_isolation)"},
            "full; user: one uid or no cgroups; process: no sandbox; unavailable: refuses jobs.",
            width=12,
            height=5,
        ),
        Panel(
            "占用热图",
            "Heat map of allocation",
            "states",
            SHARE,
            {"{{node}}": _SHARE},
            "Share of each node's healthy cards that is given out.",
            0.5,
            0.95,
            24,
            12,
        ),
        Panel(
            "在线",
            "Answering",
            "states",
            COUNT,
            {"{{node}}": f"max by (node) (hub_node_up{_OF})"},
            "",
            1,
            0.5,
            24,
            10,
        ),
        Panel(
            "卡：状态",
            "Cards by state",
            "stack",
            CARDS,
            {"{{model}} {{state}}": "sum by (model, state) (hub_devices)"},
        ),
        Panel(
            "故障的卡",
            "Broken cards",
            "lines",
            CARDS,
            {"{{node}}": f"sum by (node) (hub_node_devices_unhealthy{_OF}) or vector(0)"},
            "",
            1,
            4,
        ),
    ),
    (Variable("node", "节点", "Node", "label_values(hub_node_up, node)"),),
)
