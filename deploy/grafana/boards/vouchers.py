"""For the authority: where its money is, who got it, and what will lapse."""

from deploy.grafana.panels import COUNT, SECONDS, SHARE, YUAN, Board, Panel, Variable

_OF = '{programme=~"$programme"}'
_FIRMS = '{programme=~"$programme", size=~"$size", industry=~"$industry"}'

VOUCHERS = Board(
    "hub-vouchers",
    "算力券",
    "Vouchers",
    "From the pool to the disbursement, by programme, size of firm and industry.",
    (
        Panel(
            "资金漏斗",
            "Funnel",
            "bars",
            YUAN,
            {
                "1 预算 budget": f"sum(hub_voucher_budget_yuan{_OF})",
                "2 可发放 pool": f"sum(hub_voucher_pool_yuan{_OF})",
                "3 已发放 issued": f"sum(hub_voucher_issued_yuan{_OF})",
                "4 预扣 held": f"sum(hub_voucher_held_yuan{_OF})",
                "5 已核销 captured": f"sum(hub_voucher_captured_yuan{_OF})",
                "6 申请兑付 claimed": f"sum(hub_voucher_claimed_yuan{_OF} + hub_voucher_payable_yuan{_OF})",
                "7 已拨付 disbursed": f"sum(hub_voucher_disbursed_yuan{_OF})",
            },
            width=24,
            height=10,
        ),
        Panel(
            "资金漏斗：所选企业",
            "Funnel of the firms chosen above",
            "bars",
            YUAN,
            {
                "1 已发放 issued": f"sum(hub_voucher_firm_issued_yuan{_FIRMS})",
                "2 预扣 held": f"sum(hub_voucher_firm_held_yuan{_FIRMS})",
                "3 已核销 captured": f"sum(hub_voucher_firm_captured_yuan{_FIRMS})",
                "4 申请兑付 claimed": f"sum(hub_voucher_firm_claimed_yuan{_FIRMS})",
                "5 已拨付 disbursed": f"sum(hub_voucher_firm_disbursed_yuan{_FIRMS})",
            },
            "By the firms' size and industry, from the issue on; a pool belongs to nobody yet.",
            width=24,
        ),
        Panel(
            "剩余资金比例",
            "Pool left",
            "bars",
            SHARE,
            {"{{programme}}": f"programme:hub_voucher_pool:ratio{_OF}"},
            "What each programme can still issue.",
            0.2,
            0.1,
        ),
        Panel(
            "即将过期",
            "Expiry forecast",
            "bars",
            YUAN,
            {"{{within}}": f"sum by (within) (hub_voucher_expiring_yuan{_OF})"},
            "What is left on vouchers that end within 30, 60 and 90 days.",
        ),
        Panel(
            "发放：企业规模",
            "Issued by size of firm",
            "bars",
            YUAN,
            {"{{size}}": f"sum by (size) (hub_voucher_firm_issued_yuan{_FIRMS})"},
        ),
        Panel(
            "核销：企业规模",
            "Captured by size of firm",
            "bars",
            YUAN,
            {"{{size}}": f"sum by (size) (hub_voucher_firm_captured_yuan{_FIRMS})"},
        ),
        Panel(
            "发放：行业",
            "Issued by industry",
            "bars",
            YUAN,
            {"{{industry}}": f"topk(20, sum by (industry) (hub_voucher_firm_issued_yuan{_FIRMS}))"},
        ),
        Panel(
            "核销：行业",
            "Captured by industry",
            "bars",
            YUAN,
            {"{{industry}}": f"topk(20, sum by (industry) (hub_voucher_firm_captured_yuan{_FIRMS}))"},
        ),
        Panel(
            "券的状态", "Vouchers by state", "bars", COUNT, {"{{state}}": f"sum by (state) (hub_vouchers{_OF})"}
        ),
        Panel(
            "申领",
            "Applications by state",
            "bars",
            COUNT,
            {"{{state}}": f"sum by (state) (hub_voucher_applications{_OF})"},
        ),
        Panel(
            "兑付申请", "Claims by state", "bars", YUAN, {"{{state}}": f"sum by (state) (hub_claims_yuan{_OF})"}
        ),
        Panel(
            "最早未兑付",
            "Oldest open claim",
            "stat",
            SECONDS,
            {"{{programme}}": f"max by (programme) (hub_claim_oldest_seconds{_OF})"},
            "",
            15 * 86400,
            30 * 86400,
        ),
        Panel(
            "余额与退回",
            "Left and returned",
            "lines",
            YUAN,
            {
                "剩余 remaining": f"sum(hub_voucher_remaining_yuan{_OF})",
                "退回 returned": f"sum(hub_voucher_returned_yuan{_OF})",
                "备用金 reserve": f"sum(hub_voucher_reserve_yuan{_OF})",
            },
        ),
        Panel(
            "核销进度",
            "Captured over time",
            "lines",
            YUAN,
            {"{{programme}}": f"sum by (programme) (hub_voucher_captured_yuan{_OF})"},
        ),
    ),
    (
        Variable("programme", "计划", "Programme", "label_values(hub_voucher_budget_yuan, programme)"),
        Variable("size", "企业规模", "Size of firm", "label_values(hub_voucher_firm_issued_yuan, size)"),
        Variable("industry", "行业", "Industry", "label_values(hub_voucher_firm_issued_yuan, industry)"),
    ),
)
