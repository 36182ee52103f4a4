"""What stands on an invoice, in words of one language; the PDF and the workbook only differ in how they show it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from compute_hub.billing.domain.days import local_date
from compute_hub.billing.domain.rate_cards import SLOT_MS_PER_CARD_HOUR
from compute_hub.billing.domain.terms import Seller
from compute_hub.billing.tables import InvoiceLineRow, InvoiceRow
from kernel.clock import unix_ms
from kernel.money import format_yuan

Language = Literal["zh", "en"]

_WORDS: Final[dict[str, tuple[str, str]]] = {
    "invoice": ("算力服务账单", "Invoice for Computing Services"),
    "credit_note": ("红字账单", "Credit Note"),
    "number": ("账单编号", "Number"),
    "refers": ("对应账单", "Refers to"),
    "month": ("账期", "Billing month"),
    "issued": ("开具日期", "Issued on"),
    "due": ("付款截止日", "Due on"),
    "buyer": ("购买方", "Buyer"),
    "code": ("统一社会信用代码", "Unified social credit code"),
    "seller": ("销售方", "Seller"),
    "line": ("序号", "No."),
    "model": ("加速卡型号", "Accelerator"),
    "service_month": ("使用月份", "Used in"),
    "window": ("时段", "Time of day"),
    "hours": ("卡时", "Card-hours"),
    "price": ("单价（元/卡时）", "CNY per card-hour"),
    "amount": ("金额（元）", "Amount (CNY)"),
    "gross": ("合计（价税合计）", "Total, tax included"),
    "forgone": ("另：免收", "Used and not charged"),
    "voucher": ("其中：算力券抵扣", "Paid by compute vouchers"),
    "rounding": ("中心承担的尾差", "Rounding borne by the centre"),
    "fen": ("分位取整", "Rounding to the fen"),
    "payable": ("应付金额（价税合计）", "Payable, tax included"),
    "capitals": ("（大写）", ""),
    "bank": ("开户行及账号", "Bank and account"),
    "net": ("不含税金额", "Net amount"),
    "vat": ("增值税", "VAT"),
    "prepaid": ("已由预付款支付", "Paid from the prepaid balance"),
    "credit": ("信用额度使用，待付", "Used on credit, to be paid"),
    "reason": ("说明", "Reason"),
    "adjustment": ("（往期调整）", " (adjustment)"),
    "all": ("全天", "all day"),
    "workdays": ("工作日", "workdays"),
    "weekends": ("休息日", "days off"),
    "note": (
        "使用量由节点计量器按毫秒记录；每一行均可追溯到作业、计量记录与设备。本账单不是增值税发票，发票另行开具。",
        (
            "Usage is metered by the millisecond on the node; every line leads to its jobs, records and devices. "
            "This bill is not a VAT invoice (fapiao), which is issued separately."
        ),
    ),
}


@dataclass(frozen=True)
class Content:
    """Headings, rows and totals, ready to be shown."""

    title: str
    facts: tuple[tuple[str, str], ...]
    parties: tuple[tuple[str, str, str], ...]
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    totals: tuple[tuple[str, str, bool], ...]
    note: str


def content_of(
    row: InvoiceRow, lines: Sequence[InvoiceLineRow], language: Language, *, seller: Seller, refers_to: str = ""
) -> Content:
    """An invoice in one language; `refers_to` is the number of the invoice that a credit note takes back from."""

    def word(name: str) -> str:
        return _WORDS[name][language == "en"]

    sign = "-" if row.kind == "credit_note" else ""
    facts = [(word("number"), row.number), (word("month"), row.month), (word("issued"), _day(row.issued_at))]
    facts.append((word("refers"), refers_to) if refers_to else (word("due"), _day(row.due_at)))
    if row.reason:
        facts.append((word("reason"), row.reason))
    return Content(
        title=word(row.kind),
        facts=tuple(facts),
        parties=(
            (
                word("seller"),
                seller.name,
                "\n".join(
                    f"{word(name)}: {text}"
                    for name, text in (("code", seller.credit_code), ("bank", seller.bank))
                    if text
                ),
            ),
            (word("buyer"), str(row.buyer["name"]), f"{word('code')}: {row.buyer['credit_code']}"),
        ),
        headings=tuple(
            word(name) for name in ("line", "model", "service_month", "window", "hours", "price", "amount")
        ),
        rows=tuple(
            (
                str(line.line),
                line.model,
                line.month + (word("adjustment") if line.month < row.month else ""),
                _window(line.window, language),
                card_hours(line.slot_ms),
                yuan(line.price_micros),
                sign + yuan(line.amount_micros),
            )
            for line in lines
        ),
        totals=_totals(row, sum(line.forgone_micros for line in lines), language, sign),
        note=word("note"),
    )


def _totals(row: InvoiceRow, forgone: int, language: Language, sign: str) -> tuple[tuple[str, str, bool], ...]:
    """Label, amount and whether it is what the eye should find; lines of nothing are left out."""
    percent = f"{row.vat_ppm / 10_000:g} %"
    figures = [
        ("gross", row.gross_micros, False),
        ("voucher", -row.voucher_micros, False),
        ("rounding", -row.rounding_micros, False),
        ("fen", row.fen_micros, False),
        ("payable", row.payable_micros, True),
        ("net", row.payable_micros - row.vat_micros, False),
        ("vat", row.vat_micros, False),
        ("prepaid", row.prepaid_micros, False),
        ("credit", row.credit_micros, False),
        ("forgone", forgone, False),
    ]
    always = {"gross", "payable", "net", "vat"}
    found = []
    for name, micros, strong in figures:
        if micros or name in always:
            label = _WORDS[name][language == "en"] + (f" {percent}" if name == "vat" else "")
            text = yuan(abs(micros))
            found.append((label, f"-{text}" if (micros < 0) != bool(sign) and micros else text, strong))
        if name == "payable" and language == "zh":
            found.append((_WORDS["capitals"][0], ("负" if sign else "") + in_capitals(micros), False))
    return tuple(found)


_DIGITS: Final = "零壹贰叁肆伍陆柒捌玖"
_PLACES: Final = ("", "拾", "佰", "仟")
_MYRIADS: Final = ("", "万", "亿", "万亿")
_FEN_PER_YUAN: Final = 100


def in_capitals(micros: int) -> str:
    """An amount in whole fen as banks want it written, in the characters that cannot be altered: 壹佰元零伍分."""
    yuan_part, fen = divmod(abs(micros) // 10_000, _FEN_PER_YUAN)
    jiao, fen = divmod(fen, 10)
    text = f"{_whole(yuan_part)}元" if yuan_part or not (jiao or fen) else ""
    if jiao:
        text += f"{_DIGITS[jiao]}角"
    elif fen and text:
        text += "零"
    return text + (f"{_DIGITS[fen]}分" if fen else "整")


def _whole(number: int) -> str:
    """A whole number in groups of four digits; one zero stands for all that are skipped between two digits."""
    text, skipped = "", False
    for place, digit in zip(range(len(str(number)) - 1, -1, -1), map(int, str(number)), strict=True):
        myriad, within = divmod(place, len(_PLACES))
        if digit:
            text += ("零" if skipped and text else "") + _DIGITS[digit] + _PLACES[within]
        skipped = not digit
        if within == 0 and number // 10**place % 10_000:
            text += _MYRIADS[myriad]
    return text or "零"


def yuan(micros: int) -> str:
    """An amount with thousands, to the fen where that says all and to the micro-yuan where it does not."""
    text = format_yuan(micros)
    whole, places = text.split(".")
    shown = places[:2] if places.endswith("0000") else places
    return f"{int(whole):,}.{shown}"


def card_hours(slot_ms: int) -> str:
    """Card time in hours with six places, rounded half up."""
    micro = (2 * slot_ms * 1_000_000 + SLOT_MS_PER_CARD_HOUR) // (2 * SLOT_MS_PER_CARD_HOUR)
    return f"{micro // 1_000_000:,}.{micro % 1_000_000:06d}"


def _window(label: str, language: Language) -> str:
    if not label:
        return _WORDS["all"][language == "en"]
    days, hours = label.split(" ")
    return hours if days == "all" else f"{_WORDS[days][language == 'en']} {hours}"


def _day(at: datetime) -> str:
    return local_date(unix_ms(at)).isoformat()
