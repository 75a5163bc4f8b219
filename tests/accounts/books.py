"""A ledger with one organisation, two projects and a price list, in three lines; and the check that all books agree."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from musespark.accounts import credits
from musespark.accounts.database import Database
from musespark.accounts.ledger import Hold, Ledger
from musespark.accounts.lines import Lines
from musespark.accounts.prices import PriceSnapshot, set_price
from musespark.accounts.reconcile import verify

NOW = 1_795_600_000  # 2026-11-25 09:46:40 UTC
OUT = 4250  # nano-dollars: Muse Spark's published $4.25 per million output tokens


@dataclass
class Books:
    database: Database
    ledger: Ledger
    price: PriceSnapshot
    state_dir: Path

    def open(
        self, request_id: str, *, text_in: int = 100, output: int = 64, key: str = "key_a", now: float = NOW
    ) -> Hold:
        project = "proj_b" if key == "key_b" else "proj_a"
        return self.ledger.open_hold(
            request_id, "org_1", project, key, self.price, text_in=text_in, output=output, now=now
        )

    def credit(self, amount: int, reference: str = "start", *, expires_at: int | None = None, now: float = NOW) -> None:
        credits.top_up(self.database, "org_1", amount, reference, expires_at=expires_at, now=now)

    def wallet(self) -> dict[str, int]:
        names = "wallet, held, revenue, receivable, funding, granted, expired, written_off"
        row = self.database.transact(lambda tx: tx.row(f"SELECT {names} FROM balances WHERE organisation_id = 'org_1'"))
        assert row is not None
        return {name: value for name, value in zip(names.split(", "), row, strict=True) if value}

    def check(self) -> None:
        report = verify(self.database, self.state_dir / "journal")
        assert report.sound, report.findings
        assert report.difference == 0


def make_books(database: Database, state_dir: Path) -> Books:
    add_owners(database)
    price = set_price(database, "muse-spark", text_in=1250, image_in=1000, cached_in=150, output=OUT, now=NOW - 1)
    return Books(database, Ledger(database, state_dir), price, state_dir)


def add_owners(database: Database) -> None:
    """org_1 with proj_a (key_a) and proj_b (key_b), org_2 with nothing."""

    def insert(tx) -> None:  # type: ignore[no-untyped-def]
        for id in ("org_1", "org_2"):
            tx.execute("INSERT INTO organisations (id, name, created_at) VALUES (?, ?, 0)", (id, id))
        for letter in "ab":
            tx.execute(
                "INSERT INTO projects (id, organisation_id, name, created_at) VALUES (?, 'org_1', ?, 0)",
                (f"proj_{letter}", letter),
            )
            tx.execute(
                "INSERT INTO keys (id, project_id, name, prefix, digest, pepper_id, created_at) "
                "VALUES (?, ?, ?, '', ?, '', 0)",
                (f"key_{letter}", f"proj_{letter}", letter, letter.encode()),
            )

    database.transact(insert)


def used(output: int, *, text_in: int = 100, cached_in: int = 0, reasoning: int = 0) -> Lines:
    return Lines(text_in=text_in, cached_in=cached_in, output=output, reasoning=reasoning)
