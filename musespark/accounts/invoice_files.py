"""An invoice as a page, as a PDF, and as an export that its receiver can check."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, select_autoescape

from musespark.accounts import verify_invoice
from musespark.accounts.invoices import USAGE_COLUMNS, Invoice, InvoiceLine
from musespark.errors import SetupError

NANO = 10**9
LINE_NAMES = {
    "tokens": "Tokens",
    "request_fee": "Request fees",
    "not_charged": "Not charged",
    "plan_fee": "Monthly fee",
    "plan_credit": "Unused part of a monthly fee",
}
ACCOUNT_NAMES = {
    "fee": "Monthly fees",
    "fee_credit": "Unused parts of monthly fees",
    "overage": "Used beyond credit",
    "payment": "Payments",
    "adjustment": "Adjustments",
}


def money(nano: int) -> str:
    """All nine digits where they are needed, two otherwise: 1.25, 0.000004250."""
    whole, rest = divmod(abs(nano), NANO)
    digits = f"{rest:09}"
    return f"{'-' if nano < 0 else ''}{whole:,}.{digits[:2] if digits[2:] == '0000000' else digits}"


def as_json(invoice: Invoice) -> str:
    return json.dumps(asdict(invoice), indent=1, ensure_ascii=False) + "\n"


def as_html(invoice: Invoice) -> str:
    """One page without scripts and without anything from outside; names are escaped."""
    folder = Path(__file__).parent / "templates"
    page = Environment(loader=FileSystemLoader(folder), autoescape=select_autoescape(), trim_blocks=True)
    return page.get_template("invoice.html").render(
        invoice=invoice, money=money, names=LINE_NAMES, account_names=ACCOUNT_NAMES
    )


def as_pdf(invoice: Invoice) -> bytes:
    """A4. Its typeface has the letters of western Europe; others become question marks, so prefer the page for them.

    Raises SetupError without fpdf2.
    """
    try:
        from fpdf import FPDF
    except ModuleNotFoundError:
        raise SetupError("a PDF needs fpdf2: pip install -e '.[invoices]'; the page and the export don't") from None
    pdf = FPDF()
    pdf.set_creation_date(datetime.fromtimestamp(invoice.ends_at, UTC))  # the same invoice gives the same bytes
    pdf.add_page()
    pdf.set_font("Helvetica", "B", 16)
    title = f"{'Invoice' if invoice.final else 'Draft invoice'} {invoice.number}"
    pdf.cell(0, 10, _latin(title), new_x="LMARGIN", new_y="NEXT")
    pdf.set_font("Helvetica", size=10)
    for text in (
        f"For {invoice.organisation} ({invoice.organisation_id})",
        f"Month {invoice.period}, UTC. Amounts in {invoice.currency}.",
    ):
        pdf.cell(0, 6, _latin(text), new_x="LMARGIN", new_y="NEXT")
    pdf.ln(4)
    heading = ("What", "Unit", "Quantity", "Each, nano", "Amount")
    _table(
        pdf,
        (80, 24, 28, 26, 32),
        heading,
        [_cells(line) for line in invoice.lines],
        ("Total", "", "", "", money(invoice.total_nano)),
    )
    rows = [("Owed before", money(invoice.owed_before_nano))]
    rows += [(ACCOUNT_NAMES.get(kind, kind), money(amount)) for kind, amount in invoice.account]
    _table(pdf, (120, 70), ("Account", "Amount"), rows, ("Owed at the end of the month", money(invoice.owed_nano)))
    return bytes(pdf.output())


def write_export(invoice: Invoice, usage: list[dict[str, Any]], folder: Path) -> None:
    """invoice.json, invoice.html, usage.csv with every request, and verify_invoice.py, which computes it all again."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "invoice.json").write_text(as_json(invoice), encoding="utf-8")
    (folder / "invoice.html").write_text(as_html(invoice), encoding="utf-8")
    file = io.StringIO()
    writer = csv.DictWriter(file, USAGE_COLUMNS)
    writer.writeheader()
    writer.writerows(usage)
    (folder / "usage.csv").write_text(file.getvalue(), encoding="utf-8", newline="")
    shutil.copyfile(verify_invoice.__file__, folder / "verify_invoice.py")


def _cells(line: InvoiceLine) -> tuple[str, ...]:
    what = f"{LINE_NAMES[line.kind]}: {line.what}"
    return what, line.unit, f"{line.quantity:,}", f"{line.nano_each:,}", money(line.amount_nano)


def _table(
    pdf: Any, widths: tuple[int, ...], heading: tuple[str, ...], rows: Sequence[tuple[str, ...]], last: tuple[str, ...]
) -> None:
    from fpdf.fonts import FontFace

    align = tuple("LEFT" if i == 0 or (len(widths) > 2 and i == 1) else "RIGHT" for i in range(len(widths)))
    pdf.set_font("Helvetica", size=8)
    with pdf.table(col_widths=widths, text_align=align, line_height=5, borders_layout="HORIZONTAL_LINES") as table:
        for cells in (heading, *rows):
            row = table.row()
            for cell in cells:
                row.cell(_latin(cell))
        row = table.row(style=FontFace(emphasis="BOLD"))
        for cell in last:
            row.cell(_latin(cell))
    pdf.ln(6)


def _latin(text: str) -> str:
    return text.encode("latin-1", "replace").decode("latin-1")
