"""An invoice as an Excel workbook whose figures are numbers, so that people can add them up themselves."""

import io
from typing import Final

from openpyxl import Workbook
from openpyxl.styles import Alignment, Border, Font, Side
from openpyxl.worksheet.properties import PageSetupProperties
from openpyxl.worksheet.worksheet import Worksheet

from compute_hub.billing.documents.content import Content

_FONT: Final = "Noto Sans CJK SC"
_WIDTHS: Final = (16, 22, 26, 24, 20, 20, 22)
_FIRST_FIGURE: Final = 4
_RULE: Final = Border(bottom=Side(style="thin", color="1F3A5F"))


def render_workbook(content: Content) -> bytes:
    """The workbook's bytes."""
    book = Workbook()
    sheet = book.active
    assert isinstance(sheet, Worksheet)  # noqa: S101 - a new workbook has one
    sheet.title = content.facts[0][1]
    sheet.sheet_view.showGridLines = False
    for number, width in enumerate(_WIDTHS):
        sheet.column_dimensions["ABCDEFG"[number]].width = width
    _put(sheet, 1, 1, content.title, size=16)
    at = 3
    for label, name, code in content.parties:
        _put(sheet, at, 1, label)
        _put(sheet, at, 2, name)
        for line in code.splitlines():
            at += 1
            _put(sheet, at, 2, line)
        at += 1
    for label, value in content.facts:
        _put(sheet, at, 1, label)
        _put(sheet, at, 2, value)
        at += 1
    at = _table(sheet, content, at + 1)
    for label, amount, strong in content.totals:
        _put(sheet, at, 5, label, bold=strong)
        if amount.removeprefix("-")[0].isascii():
            _figure(sheet, at, 7, amount, bold=strong)
        else:
            _put(sheet, at, 6, amount)
            sheet.merge_cells(start_row=at, start_column=6, end_row=at, end_column=7)
            sheet.cell(at, 6).alignment = Alignment(horizontal="right", shrink_to_fit=True)
        at += 1
    _put(sheet, at + 1, 1, content.note)
    sheet.page_setup.orientation = "landscape"
    sheet.page_setup.paperSize = 9  # A4
    sheet.print_options.horizontalCentered = True
    if sheet.oddFooter is not None and sheet.oddFooter.right is not None:
        sheet.oddFooter.right.text = f"{content.facts[0][1]} · &P / &N"
    sheet.page_setup.fitToWidth, sheet.page_setup.fitToHeight = 1, 0
    sheet.sheet_properties.pageSetUpPr = PageSetupProperties(fitToPage=True)
    buffer = io.BytesIO()
    book.save(buffer)
    return buffer.getvalue()


def _table(sheet: Worksheet, content: Content, at: int) -> int:
    for number, heading in enumerate(content.headings, 1):
        _put(sheet, at, number, heading, bold=True)
        sheet.cell(at, number).border = _RULE
        if number > _FIRST_FIGURE:
            sheet.cell(at, number).alignment = Alignment(horizontal="right")
    sheet.freeze_panes = f"A{at + 1}"
    sheet.print_title_rows = f"{at}:{at}"
    for row in content.rows:
        at += 1
        for number, value in enumerate(row, 1):
            if number == 1:
                _figure(sheet, at, 1, value)
                sheet.cell(at, 1).alignment = Alignment(horizontal="left")
            elif number > _FIRST_FIGURE:
                _figure(sheet, at, number, value)
            else:
                _put(sheet, at, number, value)
    return at + 2


def _put(sheet: Worksheet, row: int, column: int, value: str, *, bold: bool = False, size: int = 11) -> None:
    cell = sheet.cell(row, column, value)
    cell.data_type = "s"  # a name that begins with = is a name, not a formula
    cell.font = Font(name=_FONT, bold=bold, size=size)


def _figure(sheet: Worksheet, row: int, column: int, text: str, *, bold: bool = False) -> None:
    places = len(text.partition(".")[2])
    cell = sheet.cell(row, column, float(text.replace(",", "")))
    cell.number_format = f"#,##0.{'0' * places}" if places else "0"
    cell.font = Font(name=_FONT, bold=bold)
    cell.alignment = Alignment(horizontal="right")
