"""`musespark invoice`: a month of an organisation as text, page, PDF or export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from musespark.cli.state import StateOption, open_accounts, print_table

app = typer.Typer(help="Invoices, computed from the ledger.", no_args_is_help=True)
OrganisationArgument = Annotated[str, typer.Argument(help="The organisation's id.")]
PeriodArgument = Annotated[str, typer.Argument(help="A month, such as 2026-11 (UTC).")]


@app.command("show")
def show(
    org: OrganisationArgument,
    period: PeriodArgument,
    to: Annotated[Literal["table", "json", "html", "pdf"], typer.Option(help="How to show it.")] = "table",
    out: Annotated[Path | None, typer.Option(help="File to write; a PDF needs one.")] = None,
    state_dir: StateOption = None,
) -> None:
    """What an organisation was charged in a month; a draft while the month runs."""
    from musespark.accounts import invoice_files
    from musespark.accounts.invoices import make_invoice

    if to == "pdf" and out is None:
        raise typer.BadParameter("name a file with --out; a PDF is no text")
    with open_accounts(state_dir) as accounts:
        invoice = make_invoice(accounts.database, org, period)
    if to == "pdf":
        assert out is not None
        out.write_bytes(invoice_files.as_pdf(invoice))
    elif to == "table":
        money = invoice_files.money
        rows: list[tuple[str, ...]] = [
            (line.kind, line.what, line.unit, f"{line.quantity:,}", money(line.amount_nano)) for line in invoice.lines
        ]
        rows += [("total", "", "", "", money(invoice.total_nano)), ("owed", "", "", "", money(invoice.owed_nano))]
        print_table(("kind", "what", "unit", "quantity", invoice.currency), rows)
    else:
        text = invoice_files.as_json(invoice) if to == "json" else invoice_files.as_html(invoice)
        print(text, end="") if out is None else out.write_text(text, encoding="utf-8")


@app.command("export")
def export(
    org: OrganisationArgument,
    period: PeriodArgument,
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    state_dir: StateOption = None,
) -> None:
    """The invoice with every request of the month, and a script with which its receiver computes it again."""
    from musespark.accounts.invoice_files import write_export
    from musespark.accounts.invoices import make_invoice, usage_rows

    with open_accounts(state_dir) as accounts:
        invoice = make_invoice(accounts.database, org, period)
        write_export(invoice, usage_rows(accounts.database, invoice), out)
    print(f"{out} is written; check it with: python {out / 'verify_invoice.py'} {out}")
