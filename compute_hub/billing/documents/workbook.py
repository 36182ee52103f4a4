"""An invoice as an Excel workbook whose figures are numbers, so that people can add them up themselves."""

import io
from typing import Final

from openpyxl import Workbook
from openpyxl.styles import Alignment, Border, Font, PatternFill, Side
from openpyxl.worksheet.properties import PageSetupProperties
from openpyxl.worksheet.worksheet import Worksheet

from compute_hub.billing.documents.content import Content

_FONT: Final = "Noto Sans CJK SC"
_INK: Final = "1F3A5F"
_FAINT: Final = "6B6B6B"
_WIDTHS: Final = (16, 22, 26, 24, 22, 20, 22)
_HEIGHT_PT: Final = 19
_FIRST_FIGURE: Final = 4
_LAST: Final = len(_WIDTHS)
_TOTALS: Final = 5
"""The column in which facts and totals are named; their values end in the last one."""

_RULE: Final = Border(bottom=Side(style="medium", color=_INK))
_HAIR: Final = Border(bottom=Side(style="hair", color="A0A0A0"))
_DUE: Final = Border(top=Side(style="thin", color=_INK), bottom=Side(style="double", color=_INK))
_SHADE: Final = PatternFill("solid", fgColor="E9EEF5")


def render_workbook(content: Content) -> bytes:
    """The workbook's bytes."""
    book = Workbook()
    sheet = book.active
    assert isinstance(sheet, Worksheet)  # noqa: S101 - a new workbook has one
    sheet.title = content.facts[0][1]
    sheet.sheet_view.showGridLines = False
    sheet.sheet_format.defaultRowHeight = _HEIGHT_PT
    sheet.sheet_format.customHeight = True
    for number, width in enumerate(_WIDTHS):
        sheet.column_dimensions["ABCDEFG"[number]].width = width
    _put(sheet, 1, 1, content.title, size=18, color=_INK)
    sheet.row_dimensions[1].height = 2 * _HEIGHT_PT
    _underline(sheet, 1, _RULE)
    at = _table(sheet, content, max(_parties(sheet, content), _facts(sheet, content)) + 1)
    at = _totals(sheet, content, at)
    _put(sheet, at + 1, 1, content.note, size=9, color=_FAINT)
    sheet.merge_cells(start_row=at + 1, start_column=1, end_row=at + 1, end_column=_LAST)
    sheet.cell(at + 1, 1).alignment = Alignment(vertical="center", wrap_text=True)
    sheet.row_dimensions[at + 1].height = 2 * _HEIGHT_PT
    _page(sheet, content)
    buffer = io.BytesIO()
    book.save(buffer)
    return buffer.getvalue()


def _parties(sheet: Worksheet, content: Content) -> int:
    """Seller and buyer on the left; the row behind them."""
    at = 3
    for label, name, code in content.parties:
        _put(sheet, at, 1, label, color=_FAINT)
        _put(sheet, at, 2, name, bold=True)
        for line in code.splitlines():
            at += 1
            _put(sheet, at, 2, line)
        at += 1
    return at


def _facts(sheet: Worksheet, content: Content) -> int:
    """Number, month and days on the right; the row behind them."""
    at = 3
    for label, value in content.facts:
        _put(sheet, at, _TOTALS, label, color=_FAINT)
        _to_the_end(sheet, at, value)
        at += 1
    return at


def _table(sheet: Worksheet, content: Content, at: int) -> int:
    for number, heading in enumerate(content.headings, 1):
        _put(sheet, at, number, heading, bold=True, color=_INK)
        sheet.cell(at, number).fill = _SHADE
        side = "right" if number > _FIRST_FIGURE else "left"
        sheet.cell(at, number).alignment = Alignment(horizontal=side, vertical="center")
    _underline(sheet, at, _RULE)
    sheet.freeze_panes = f"A{at + 1}"
    sheet.print_title_rows = f"{at}:{at}"
    for row in content.rows:
        at += 1
        for number, value in enumerate(row, 1):
            if number == 1:
                _figure(sheet, at, 1, value)
                sheet.cell(at, 1).alignment = Alignment(horizontal="left", vertical="center")
            elif number > _FIRST_FIGURE:
                _figure(sheet, at, number, value)
            else:
                _put(sheet, at, number, value)
        _underline(sheet, at, _HAIR)
    return at + 2


def _totals(sheet: Worksheet, content: Content, at: int) -> int:
    for label, amount, strong in content.totals:
        size, color = (13, _INK) if strong else (11, "000000")
        _put(sheet, at, _TOTALS, label, bold=strong, size=size, color=color)
        if amount.removeprefix("-")[0].isascii():
            _figure(sheet, at, _LAST, amount)
            sheet.cell(at, _LAST).font = Font(name=_FONT, bold=strong, size=size, color=color)
        else:
            _to_the_end(sheet, at, amount)
        if strong:
            sheet.row_dimensions[at].height = _HEIGHT_PT * 5 // 4
            for column in range(_TOTALS, _LAST + 1):
                sheet.cell(at, column).border = _DUE
        at += 1
    return at


def _page(sheet: Worksheet, content: Content) -> None:
    """How it is printed: as wide as a page of A4, its table's heading on each, numbered."""
    sheet.page_setup.orientation = "landscape"
    sheet.page_setup.paperSize = 9  # A4
    sheet.print_options.horizontalCentered = True
    if sheet.oddFooter is not None and sheet.oddFooter.right is not None:
        sheet.oddFooter.right.text = f"{content.facts[0][1]} · &P / &N"
    sheet.page_setup.fitToWidth, sheet.page_setup.fitToHeight = 1, 0
    sheet.sheet_properties.pageSetUpPr = PageSetupProperties(fitToPage=True)


def _underline(sheet: Worksheet, row: int, border: Border) -> None:
    for column in range(1, _LAST + 1):
        sheet.cell(row, column).border = border


def _to_the_end(sheet: Worksheet, row: int, text: str) -> None:
    """Words that end where the figures end, made smaller where they are too many."""
    _put(sheet, row, _TOTALS + 1, text)
    sheet.merge_cells(start_row=row, start_column=_TOTALS + 1, end_row=row, end_column=_LAST)
    sheet.cell(row, _TOTALS + 1).alignment = Alignment(
        horizontal="right", vertical="center", shrink_to_fit=True
    )


def _put(
    sheet: Worksheet,
    row: int,
    column: int,
    value: str,
    *,
    bold: bool = False,
    size: int = 11,
    color: str = "000000",
) -> None:
    cell = sheet.cell(row, column, value)
    cell.data_type = "s"  # a name that begins with = is a name, not a formula
    cell.font = Font(name=_FONT, bold=bold, size=size, color=color)
    cell.alignment = Alignment(vertical="center")
    if row not in sheet.row_dimensions:
        sheet.row_dimensions[row].height = _HEIGHT_PT


def _figure(sheet: Worksheet, row: int, column: int, text: str) -> None:
    places = len(text.partition(".")[2])
    cell = sheet.cell(row, column, float(text.replace(",", "")))
    cell.number_format = f"#,##0.{'0' * places}" if places else "0"
    cell.font = Font(name=_FONT)
    cell.alignment = Alignment(horizontal="right", vertical="center")
