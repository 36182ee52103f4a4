"""Months: closed once, numbered without gaps, to the fen, and every line leads back to what was measured."""

import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from unicodedata import east_asian_width
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openpyxl import load_workbook
from openpyxl.utils import get_column_letter
from sqlalchemy import Engine

from compute_hub.billing.corrections import correct_charge, records_of
from compute_hub.billing.documents.content import content_of, in_capitals
from compute_hub.billing.documents.pdf import render_pdf
from compute_hub.billing.documents.workbook import render_workbook
from compute_hub.billing.domain.invoices import (
    FEN_MICROS,
    Standing,
    add_up,
    debts,
    outstanding,
    standing,
    to_fen,
)
from compute_hub.billing.domain.rate_cards import RateCard
from compute_hub.billing.domain.terms import NoTaxRate, NoWorkday, Seller, TaxRate, Terms
from compute_hub.billing.invoicing import (
    LaterMonthClosed,
    MonthClosed,
    MonthNotOver,
    NothingToInvoice,
    charges_of_line,
    close_month,
    credit_invoice,
    draft_invoice,
    lines_of,
)
from compute_hub.billing.owing import owed_micros
from compute_hub.billing.rates import Setting, set_card
from compute_hub.billing.statements import daily_statement
from compute_hub.billing.tables import InvoiceRow
from kernel.clock import from_unix_ms
from kernel.database import transaction
from kernel.ids import new_id
from ledger.audit import audit
from tests.compute_hub.billing.house import HOUR_MS, NOW, YUAN, House
from vouchers.enterprises import enterprise_facts, record_controller
from vouchers.restoration import restore_charge
from vouchers.wallets import bind_affiliate, deposit, grant_credit, repay_credit

APRIL = datetime(2026, 4, 1, tzinfo=UTC)  # 08:00 at the centre
MICROS = st.integers(0, 10**12)
SELLER = Seller("智能计算中心", "91331003MA0CENTRE1", "中国工商银行黄岩支行 6222 0001")


def run(house: House, ms: int, *, started: datetime = NOW, model: str = "sim-a") -> UUID:
    job_id = house.submit(limit_ms=ms, models=(model,))
    assert house.admit(job_id, model, started) is None
    house.meter(house.record(job_id, 0, ms, started_unix_ms=int(started.timestamp() * 1000), final=True))
    house.end(job_id)
    house.bill()
    return job_id


def close(house: House, month: str = "2026-03", at: datetime = APRIL) -> InvoiceRow:
    with transaction(house.engine) as session:
        return close_month(session, house.tenant, month, by=new_id(), at=at)


@given(MICROS, MICROS, st.integers(0, 300_000))
def test_what_is_payable_is_in_whole_fen_and_contains_its_tax(prepaid: int, credit: int, vat_ppm: int) -> None:
    totals = add_up(
        gross_micros=prepaid + credit,
        voucher_micros=0,
        rounding_micros=0,
        prepaid_micros=prepaid,
        credit_micros=credit,
        vat_ppm=vat_ppm,
    )
    assert totals.payable_micros % FEN_MICROS == totals.vat_micros % FEN_MICROS == 0
    assert abs(totals.fen_micros) <= FEN_MICROS // 2
    assert abs(totals.vat_micros * (10**6 + vat_ppm) - totals.payable_micros * vat_ppm) <= 5001 * (
        10**6 + vat_ppm
    )
    assert totals.net_micros + totals.vat_micros == totals.payable_micros == to_fen(prepaid + credit)


@given(st.lists(MICROS, min_size=1, max_size=3), MICROS)
def test_who_pays_what_an_invoice_asks_for_owes_nothing_more(lent: list[int], prepaid: int) -> None:
    fen = to_fen(prepaid + sum(lent)) - prepaid - sum(lent)
    owed = debts({UUID(int=n): micros for n, micros in enumerate(lent)}, fen)
    assert sum(owed.values()) == max(0, sum(lent) + fen)
    assert all(micros >= 0 for micros in owed.values())


@given(st.lists(MICROS, max_size=8), MICROS)
def test_repayments_settle_the_oldest_first_and_never_more_than_is_owed(lent: list[int], repaid: int) -> None:
    owed = outstanding(lent, repaid)
    assert sum(owed) == max(0, sum(lent) - repaid)
    open_from = next((n for n, one in enumerate(owed) if one), len(owed))
    assert owed[open_from + 1 :] == lent[open_from + 1 :]


@pytest.mark.parametrize(
    ("owed", "days", "expected"),
    [(0, 99, Standing.PAID), (1, 30, Standing.OPEN), (1, 31, Standing.OVERDUE), (1, 61, Standing.IN_DEFAULT)],
)
def test_an_invoice_stands_where_its_date_and_its_payments_put_it(
    owed: int, days: int, expected: Standing
) -> None:
    assert standing(owed, NOW + timedelta(days=30), NOW + timedelta(days=days)) == expected


KINDS = Terms(
    rates=(
        TaxRate("general", date(2016, 5, 1), 60_000),
        TaxRate("general", date(2026, 3, 31), 50_000),
        TaxRate("small-scale", date(2023, 1, 1), 10_000),
    ),
    due_days=30,
    holidays=frozenset({date(2026, 5, 1), date(2026, 5, 4), date(2026, 5, 5)}),
    workdays=frozenset({date(2026, 5, 9)}),
)


@pytest.mark.parametrize(
    ("kind", "day", "ppm"),
    [
        ("general", date(2026, 3, 30), 60_000),
        ("general", date(2026, 3, 31), 50_000),
        ("small-scale", date(2026, 3, 31), 10_000),
    ],
)
def test_tax_follows_from_the_kind_of_taxpayer_and_the_day(kind: str, day: date, ppm: int) -> None:
    assert replace(KINDS, tax_kind=kind).vat_ppm(day) == ppm


def test_a_day_without_a_rate_is_refused_by_its_kind() -> None:
    with pytest.raises(NoTaxRate, match="small-scale"):
        replace(KINDS, tax_kind="small-scale").vat_ppm(date(2022, 12, 31))


@pytest.mark.parametrize(
    ("issued", "due"),
    [
        (date(2026, 4, 1), date(2026, 5, 6)),  # a Friday of the holidays, the weekend and two more holidays
        (date(2026, 4, 9), date(2026, 5, 9)),  # a Saturday that is worked
        (date(2026, 4, 10), date(2026, 5, 11)),  # a Sunday
        (date(2026, 3, 2), date(2026, 4, 1)),
    ],
)
def test_an_invoice_is_due_at_the_end_of_a_day_on_which_people_work(issued: date, due: date) -> None:
    end = from_unix_ms(KINDS.due_ms(issued)).astimezone(ZoneInfo("Asia/Shanghai"))
    assert (end.date(), (end + timedelta(milliseconds=1)).date()) == (due, due + timedelta(days=1))


def test_a_calendar_without_workdays_is_refused() -> None:
    every = frozenset(date(2026, 1, 1) + timedelta(days=n) for n in range(365))
    with pytest.raises(NoWorkday, match="2026-02-01"):
        replace(KINDS, holidays=every, workdays=frozenset()).due_ms(date(2026, 1, 2))


def test_a_month_is_taxed_at_its_last_days_rate_and_its_credit_note_at_the_invoices(house: House) -> None:
    run(house, HOUR_MS)
    with transaction(house.engine) as session:
        row = close_month(session, house.tenant, "2026-03", by=new_id(), at=APRIL, terms=KINDS)
        assert (row.vat_ppm, row.vat_micros) == (50_000, 1_710_000)
        assert row.due_at == from_unix_ms(KINDS.due_ms(date(2026, 4, 1)))
    ((charge_id,),) = house.sql("SELECT id FROM charges")
    with transaction(house.engine) as session:
        restore_charge(session, charge_id, reason="the node failed", by="operator", at=APRIL)
        later = replace(KINDS, tax_kind="small-scale")
        note = credit_invoice(session, row.id, reason="r", by=new_id(), at=APRIL, terms=later)
        assert (note.vat_ppm, note.payable_micros, note.vat_micros) == (50_000, 36 * YUAN, 1_710_000)


def test_nothing_in_the_workbook_is_cut_off_by_what_stands_beside_it(house: House) -> None:
    run(house, 100 * HOUR_MS)
    row = close(house)
    with transaction(house.engine) as session:
        lines = lines_of(session, row.id)
    for language in ("zh", "en"):
        content = content_of(row, lines, language, seller=SELLER)  # type: ignore[arg-type]
        sheet = load_workbook(io.BytesIO(render_workbook(content))).active
        for line in sheet.iter_rows():
            for cell, beside in pairwise(line):
                text = f"{cell.value:,.6f}" if isinstance(cell.value, float) else str(cell.value or "")
                shown = sum(2 if east_asian_width(letter) in "WF" else 1 for letter in text)
                room = sheet.column_dimensions[get_column_letter(cell.column)].width
                assert shown <= room or beside.value is None, text


def test_a_month_is_closed_once_and_its_invoice_adds_up_to_charges_ledger_and_usage(house: House) -> None:
    first, second = run(house, 123_457), run(house, 98_765, model="sim-b")
    with transaction(house.engine) as session:
        draft = draft_invoice(session, house.tenant, "2026-03")
    row = close(house)
    assert (row.number, row.kind, row.gross_micros) == ("INV-2026-000001", "invoice", house.charged()[1])
    assert draft.totals.payable_micros == row.payable_micros == to_fen(house.charged()[1])
    with transaction(house.engine) as session:
        lines = lines_of(session, row.id)
        assert sum(line.amount_micros for line in lines) == row.gross_micros
        assert sum(line.slot_ms for line in lines) == house.charged()[0]
        ((charge, job, slot_ms, _),) = charges_of_line(session, lines[0], after=None, limit=10)
        (record,) = records_of(session, charge)
        assert (job, slot_ms, record.job_id, record.node) == (first, 123_457_000, first, "n")
        assert charges_of_line(session, lines[1], after=None, limit=10)[0][1] == second
        assert not audit(session).differences
    revenue = "SELECT credits_posted - debits_posted FROM accounts WHERE name LIKE '%/revenue'"
    assert house.sql(revenue) == [(row.payable_micros,)]
    with pytest.raises(MonthClosed, match="INV-2026-000001"):
        close(house)
    with pytest.raises(MonthNotOver):
        close(house, "2026-04", APRIL)


def test_an_invoice_on_credit_is_settled_by_paying_what_it_asks_for(engine: Engine) -> None:
    house = House(engine, prepaid_yuan=0)
    with transaction(engine) as session:
        grant_credit(session, house.tenant, 1_000 * YUAN, "line", NOW)
    run(house, 123_457, model="sim-a")
    row = close(house)
    assert (row.credit_micros, row.payable_micros) == (1_234_570, 1_230_000)
    with transaction(engine) as session:
        assert owed_micros(session, row.id) == 1_230_000
        repay_credit(session, house.tenant, row.payable_micros, "paid", APRIL)
        assert owed_micros(session, row.id) == 0


def test_an_affiliates_invoice_on_its_payers_credit_is_settled_by_the_payer(engine: Engine) -> None:
    house = House(engine, prepaid_yuan=1)
    with transaction(engine) as session:
        payer = house.world.enterprise(session)
        codes = [enterprise_facts(session, one).credit_code for one in (house.tenant, payer)]
        record_controller(session, *codes, by="officer", at=NOW)
        bind_affiliate(session, payer, house.tenant, by="boss", at=NOW)
        for one in (house.tenant, payer):
            grant_credit(session, one, 38 * YUAN, f"line of {one}", NOW)
    run(house, HOUR_MS, model="sim-a")
    run(house, HOUR_MS, model="sim-a", started=NOW + timedelta(hours=2))
    row = close(house)
    assert (row.prepaid_micros, row.credit_micros) == (YUAN, 71 * YUAN)

    def owed() -> int:
        with transaction(engine) as session:
            return owed_micros(session, row.id)

    for paying, reference, left in ((house.tenant, "affiliate", 33), (payer, "payer", 0)):
        assert owed() > left * YUAN
        with transaction(engine) as session:
            repay_credit(session, paying, 38 * YUAN, reference, APRIL)
        assert owed() == left * YUAN


def test_a_charge_stands_once_in_a_line_also_where_it_passed_a_volume_step_of_the_same_price(
    house: House,
) -> None:
    steps = [{"from_card_hours": hours, "factor": "1"} for hours in (0, 1)]
    card = RateCard.from_json({"price_cny_per_card_hour": "36", "volume": steps})
    with transaction(house.engine) as session:
        own = Setting("sim-a", card, NOW, tenant_id=house.tenant, agreement="KH-7")
        set_card(session, own, by=new_id(), at=NOW)
    run(house, 2 * HOUR_MS)
    row = close(house)
    with transaction(house.engine) as session:
        (line,) = lines_of(session, row.id)
        ((charge, _, slot_ms, cost),) = charges_of_line(session, line, after=None, limit=1)
        assert (slot_ms, cost) == (line.slot_ms, 72 * YUAN)
        assert charges_of_line(session, line, after=charge, limit=1) == []


def test_two_who_close_a_month_at_once_make_one_invoice(house: House) -> None:
    run(house, 60_000)

    def attempt(_: int) -> str:
        try:
            return close(house).number
        except MonthClosed:
            return "refused"

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(attempt, range(2))) == ["INV-2026-000001", "refused"]


def test_usage_reported_after_closing_stands_on_the_next_invoice_under_its_own_month(house: House) -> None:
    run(house, 60_000)
    close(house)
    run(house, 30_000, started=NOW + timedelta(days=1))
    with pytest.raises(MonthClosed):
        close(house)
    row = close(house, "2026-04", APRIL + timedelta(days=31))
    with transaction(house.engine) as session:
        assert [(line.month, line.slot_ms) for line in lines_of(session, row.id)] == [("2026-03", 30_000_000)]
    with pytest.raises(LaterMonthClosed):
        close(house, "2026-02", APRIL + timedelta(days=31))
    with pytest.raises(NothingToInvoice):
        close(house, "2026-05", APRIL + timedelta(days=70))


def test_a_correction_after_closing_becomes_a_credit_note_and_the_right_charge_an_adjustment(
    house: House,
) -> None:
    run(house, HOUR_MS)
    invoice = close(house)
    ((charge_id,),) = house.sql("SELECT id FROM charges")
    with transaction(house.engine) as session:
        with pytest.raises(NothingToInvoice):
            credit_invoice(session, invoice.id, reason="r", by=new_id(), at=APRIL)
        card = RateCard.from_json({"price_cny_per_card_hour": "30.000001"})
        cheap = Setting("sim-a", card, APRIL, tenant_id=house.tenant, agreement="KH-7")
        rate_id = set_card(session, cheap, by=new_id(), at=APRIL).id
    with transaction(house.engine) as session:
        correct_charge(session, charge_id, rate_id, reason="signed late", by=new_id(), at=APRIL)
    with transaction(house.engine) as session:
        note = credit_invoice(session, invoice.id, reason="signed late", by=new_id(), at=APRIL)
        assert (note.number, note.payable_micros, note.refers_to) == ("CN-2026-000001", 36 * YUAN, invoice.id)
        with pytest.raises(NothingToInvoice):
            credit_invoice(session, invoice.id, reason="again", by=new_id(), at=APRIL)
    row = close(house, "2026-04", APRIL + timedelta(days=31))
    assert (row.tenant_micros, row.fen_micros, row.payable_micros) == (30 * YUAN + 1, -1, 30 * YUAN)
    with transaction(house.engine) as session:
        assert not audit(session).differences
        assert [line.month for line in lines_of(session, row.id)] == ["2026-03"]


def test_a_day_shows_balances_before_and_after_and_what_moved_them(house: House) -> None:
    job_id = run(house, HOUR_MS)
    with transaction(house.engine) as session:
        grant_credit(session, house.tenant, 5 * YUAN, "line", NOW)
        grant_credit(session, house.tenant, YUAN, "more", NOW + timedelta(days=1))
        day = daily_statement(session, house.tenant, date(2026, 3, 10))
        after = daily_statement(session, house.tenant, date(2026, 3, 11))
    assert [(job.job_id, job.cost_micros) for job in day.jobs] == [(job_id, 36 * YUAN)]
    assert (day.prepaid_before_micros, day.prepaid_after_micros) == (0, 964 * YUAN)
    assert (
        day.prepaid_before_micros + sum(m.micros for m in day.movements if m.account == "prepaid") == 964 * YUAN
    )
    assert (after.jobs, after.credit_before_micros, after.credit_after_micros) == ((), 5 * YUAN, 6 * YUAN)


def test_a_past_day_never_changes_and_what_is_reported_late_stands_on_the_day_it_is_charged(
    house: House,
) -> None:
    job_id = house.submit(limit_ms=2 * HOUR_MS)
    house.admit(job_id)
    house.meter(house.record(job_id, 0, HOUR_MS))
    house.bill()
    tenth, next_morning = date(2026, 3, 10), NOW + timedelta(days=1)
    with transaction(house.engine) as session:
        over = daily_statement(session, house.tenant, tenth)
    house.meter(house.record(job_id, 1, HOUR_MS // 2, offset_ms=HOUR_MS, final=True), at=next_morning)
    house.end(job_id)
    house.bill(next_morning)
    with transaction(house.engine) as session:
        assert daily_statement(session, house.tenant, tenth) == over
        late = daily_statement(session, house.tenant, date(2026, 3, 11))
    assert [(job.job_id, job.slot_ms) for job in late.jobs] == [(job_id, HOUR_MS // 2 * 1000)]
    assert late.prepaid_before_micros == over.prepaid_after_micros


def test_a_days_balances_and_movements_agree_when_clocks_differ_at_midnight(house: House) -> None:
    evening, midnight = NOW.replace(hour=15, minute=59, second=59), NOW.replace(hour=16)
    with transaction(house.engine) as session:
        deposit(session, house.tenant, 7 * YUAN, "by the clock that is ahead", midnight)
        deposit(session, house.tenant, 5 * YUAN, "by the clock that is behind", evening)
        deposit(session, house.tenant, 3 * YUAN, "after both", midnight + timedelta(seconds=1))
        days = [daily_statement(session, house.tenant, date(2026, 3, day)) for day in (9, 10, 11)]
    for day in days:
        moved = sum(movement.micros for movement in day.movements if movement.account == "prepaid")
        assert day.prepaid_after_micros == day.prepaid_before_micros + moved
    for day, following in pairwise(days):
        assert day.prepaid_after_micros == following.prepaid_before_micros
    assert days[-1].prepaid_after_micros - days[-1].prepaid_before_micros == 10 * YUAN


@pytest.mark.parametrize(
    ("fen", "words"),
    [
        (0, "零元整"),
        (3, "叁分"),
        (50, "伍角整"),
        (105, "壹元零伍分"),
        (100_000_00, "壹拾万元整"),
        (86_419_753, "捌拾陆万肆仟壹佰玖拾柒元伍角叁分"),
        (1_000_500_000, "壹仟万零伍仟元整"),
        (10_000_000_100, "壹亿零壹元整"),
        (200_030_040_070, "贰拾亿零叁拾万零肆佰元柒角整"),
    ],
)
def test_an_amount_is_written_in_capitals_as_banks_want_it(fen: int, words: str) -> None:
    assert in_capitals(fen * FEN_MICROS) == words


def test_an_invoice_is_typeset_in_both_languages_and_its_workbook_adds_up(house: House) -> None:
    run(house, 123_457)
    run(house, 98_765, model="sim-b")
    row = close(house)
    with transaction(house.engine) as session:
        lines = lines_of(session, row.id)
    for language, title in (("zh", "算力服务账单"), ("en", "Invoice for Computing Services")):
        content = content_of(row, lines, language, seller=SELLER)  # type: ignore[arg-type]
        assert content.title == title
        assert render_pdf(content).startswith(b"%PDF-")
        sheet = load_workbook(io.BytesIO(render_workbook(content))).active
        cells = [[cell.value for cell in line] for line in sheet.iter_rows()]
        assert cells[0][0] == title
        assert [cell for line in cells for cell in line if cell and "6222 0001" in str(cell)]
        assert sheet.page_setup.fitToWidth == 1
        heading = int(sheet.freeze_panes[1:]) - 1
        assert sheet.print_title_rows == f"${heading}:${heading}"
        formats = {sheet.cell(heading + 1, column).number_format for column in (5, 6, 7)}
        assert formats <= {"#,##0.00", "#,##0.000000"}
        amounts = [line[6] for line in cells if line[0] in {1, 2}]
        assert sum(round(amount * YUAN) for amount in amounts) == row.gross_micros
