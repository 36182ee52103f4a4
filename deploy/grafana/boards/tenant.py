"""For a firm, or for whoever advises it: its jobs, what they cost, and what is left."""

from deploy.grafana.panels import CARD_HOURS, CARDS, COUNT, YUAN, Board, Panel, Variable

_OF = '{tenant=~"$tenant"}'

TENANT = Board(
    "hub-tenant",
    "租户",
    "Tenant",
    "One enterprise, by its unified social credit code. Give a firm this board with the variable fixed.",
    (
        Panel(
            "预付余额",
            "Prepaid balance",
            "stat",
            YUAN,
            {"": f"sum(hub_tenant_prepaid_yuan{_OF})"},
            "",
            100,
            10,
            6,
            5,
        ),
        Panel(
            "算力券余额",
            "Left on vouchers",
            "stat",
            YUAN,
            {"": f"sum(hub_tenant_voucher_yuan{_OF}) or vector(0)"},
            width=6,
            height=5,
        ),
        Panel(
            "授信余额",
            "Credit left",
            "stat",
            YUAN,
            {"": f"sum(hub_tenant_credit_yuan{_OF}) or vector(0)"},
            width=6,
            height=5,
        ),
        Panel(
            "欠款",
            "Arrears",
            "stat",
            YUAN,
            {"": f"sum(hub_tenant_arrears_yuan{_OF}) or vector(0)"},
            "",
            1,
            10_000,
            6,
            5,
        ),
        Panel(
            "作业", "Jobs", "stack", COUNT, {"{{state}}": f"sum by (state) (hub_tenant_jobs{_OF}) or vector(0)"}
        ),
        Panel(
            "正在使用的卡",
            "Cards in use",
            "lines",
            CARDS,
            {"{{tenant}}": f"sum by (tenant) (hub_tenant_devices{_OF}) or vector(0)"},
        ),
        Panel(
            "花费（1 天）",
            "Spent in a day",
            "bars",
            YUAN,
            {"{{payer}}": f"sum by (payer) (increase(hub_tenant_charged_yuan_total{_OF}[1d]))"},
            "By who paid: voucher or tenant.",
        ),
        Panel(
            "花费",
            "Spending per hour",
            "stack",
            YUAN,
            {
                "{{payer}}": f"3600 * sum by (payer) (rate(hub_tenant_charged_yuan_total{_OF}[$__rate_interval]))"
            },
        ),
        Panel(
            "卡时（1 天）",
            "Card-hours in a day",
            "bars",
            CARD_HOURS,
            {
                "{{tenant}}": f"topk(20, sum by (tenant) (increase(hub_tenant_card_seconds_total{_OF}[1d]))) / 3600"
            },
        ),
        Panel(
            "余额走势",
            "Balance over time",
            "lines",
            YUAN,
            {
                "预付 prepaid": f"sum(hub_tenant_prepaid_yuan{_OF})",
                "算力券 vouchers": f"sum(hub_tenant_voucher_yuan{_OF}) or vector(0)",
            },
        ),
        Panel("企业", "Enterprises", "table", COUNT, {"": f"hub_tenant_info{_OF}"}, width=24),
    ),
    (Variable("tenant", "企业", "Enterprise", "label_values(hub_tenant_info, tenant)"),),
)
