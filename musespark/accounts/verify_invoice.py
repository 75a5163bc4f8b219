"""Compute an invoice again from its export. Needs Python only, and nothing of this project:

    python verify_invoice.py FOLDER        # with invoice.json and usage.csv, as `musespark invoice export` writes them

Every request's amount from its tokens and prices, every line of tokens and request fees from the requests, the total
from the lines, and what is owed from the account. Prints `difference 0` and ends with 0, or names each difference and
ends with 1.
"""

import csv
import json
import sys
from collections import defaultdict
from pathlib import Path

UNITS = ("text_in", "image_in", "cached_in", "output", "reasoning")


def differences(invoice: dict, rows: list[dict]) -> list[tuple[str, int, int]]:
    """(what, computed, in the invoice) for everything that does not agree."""
    found = []
    lines: dict = defaultdict(lambda: [0, 0])  # (kind, what, unit, nano each) -> quantity, amount
    not_charged = 0
    for row in rows:
        what = f"{row['model']}, prices of version {row['price_version']}"
        cost = int(row["request_fee"])
        for unit in UNITS:
            count, nano = int(row[unit]), int(row[f"price_{unit}"])
            cost += count * nano
            if count:
                line = lines["tokens", what, unit, nano]
                line[0], line[1] = line[0] + count, line[1] + count * nano
        if int(row["request_fee"]):
            line = lines["request_fee", what, "request", int(row["request_fee"])]
            line[0], line[1] = line[0] + 1, line[1] + int(row["request_fee"])
        if cost != int(row["amount"]):
            found.append((f"the amount of request {row['request_id']}", cost, int(row["amount"])))
        if int(row["billed"]) + int(row["written_off"]) != int(row["amount"]):
            parts = int(row["billed"]) + int(row["written_off"])
            found.append((f"the parts of request {row['request_id']}", parts, int(row["amount"])))
        not_charged -= int(row["written_off"])
    if not_charged:
        lines["not_charged", "used beyond a limit, not charged", "total", not_charged] = [1, not_charged]
    shown: dict = defaultdict(lambda: [0, 0])
    for line in invoice["lines"]:
        if line["quantity"] * line["nano_each"] != line["amount_nano"]:
            found.append((f"the line {line['what']}", line["quantity"] * line["nano_each"], line["amount_nano"]))
        if line["kind"] in ("tokens", "request_fee", "not_charged"):
            shown[line["kind"], line["what"], line["unit"], line["nano_each"]] = [line["quantity"], line["amount_nano"]]
    for key in lines.keys() | shown.keys():
        for name, computed, said in zip(("quantity", "amount"), lines[key], shown[key], strict=True):
            if computed != said:
                found.append((f"the {name} of {key[1]}, {key[2]}", computed, said))
    total = sum(line["amount_nano"] for line in invoice["lines"])
    if total != invoice["total_nano"]:
        found.append(("the total", total, invoice["total_nano"]))
    owed = invoice["owed_before_nano"] + sum(amount for _, amount in invoice["account"])
    if owed != invoice["owed_nano"]:
        found.append(("what is owed", owed, invoice["owed_nano"]))
    return found


def main(folder: Path) -> int:
    invoice = json.loads((folder / "invoice.json").read_text(encoding="utf-8"))
    with (folder / "usage.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    found = differences(invoice, rows)
    for what, computed, said in found:
        print(f"{what}: computed {computed}, the invoice says {said}")
    print(f"{len(rows)} requests, {len(invoice['lines'])} lines; difference {sum(abs(a - b) for _, a, b in found)}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else ".")))
