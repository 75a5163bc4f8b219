"""Resolving holds: post what was used, void, or expire; each at most once.

The transfer `<hold>/end` is what resolves a hold, whichever way: its id exists once. A hold that is already resolved
the same way is left as it is, so any repetition is harmless; one resolved otherwise is a LedgerConflict. Usage that
arrives after its hold expired, or of a request let in while the database was away, is billed from what is free and
otherwise written off in the books: no limit is ever exceeded, and nothing that was used is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from musespark.accounts.holds import Hold, HoldRow, insert_hold, read_hold
from musespark.accounts.lines import Lines
from musespark.accounts.lots import open_books
from musespark.accounts.prices import DEFAULT_CURRENCY, PriceSnapshot
from musespark.accounts.purse import Purse
from musespark.accounts.tables.prices import PRICE_UNITS
from musespark.accounts.transactions import Transaction
from musespark.accounts.transfers import Transfer, begin_spending, count_spending, write
from musespark.errors import LedgerConflict, NotFound


@dataclass(frozen=True, slots=True)
class Settlement:
    """What a request was billed. `pending`: it is in the journal and the database has yet to hear of it."""

    hold_id: str
    lines: Lines
    price: PriceSnapshot
    amount_nano: int
    written_off_nano: int = 0
    pending: bool = False


@dataclass(frozen=True, slots=True)
class SettledRecord:
    """A usage record just written, for what is counted in the same transaction (rollups)."""

    hold_id: str
    part: int
    request_id: str
    attempt: int
    organisation_id: str
    project_id: str
    key_id: str
    model: str
    lines: Lines
    amount_nano: int  # what was billed
    outcome: str
    opened_at: int
    settled_at: int


EXPIRED = "expired"  # the outcome of a hold, and of its usage, that nobody came back for
OnSettled = Callable[[Transaction, SettledRecord], None]


def settle(
    tx: Transaction, hold: Hold, lines: Lines, outcome: str, now: float, owner: str, listeners: Sequence[OnSettled]
) -> Settlement:
    """Bill `lines` at the hold's prices and give back the rest. Raises LedgerConflict if it was resolved otherwise."""
    row = read_hold(tx, hold.id, lock=True)
    if row is None:  # let in while the database was away, or its opening was lost in a power cut
        _insert_resolved(tx, hold, outcome, owner, now)
        return _late(tx, hold, lines, Lines(), 0, outcome, now, listeners)
    if row.state == "open":
        done = _post(tx, row, lines, outcome, now, listeners, state="posted")
        return replace(done, price=hold.price)  # the same, with its currency
    recorded = _recorded(tx, hold.id)
    before = sum_lines([part_lines for part_lines, _, _, _ in recorded])
    said_already = any(part_outcome != EXPIRED for _, _, _, part_outcome in recorded)
    if said_already and before == lines:
        billed, written_off = sum(part[1] for part in recorded), sum(part[2] for part in recorded)
        return Settlement(hold.id, lines, hold.price, billed, written_off)
    if row.state != "expired" or said_already or not lines.covers(before):
        raise LedgerConflict(f"the hold {hold.id} is {row.state} with {before}; it can't be settled with {lines}")
    done = _late(tx, replace(row.hold, price=hold.price), lines, before, len(recorded), outcome, now, listeners)
    return replace(
        done,
        amount_nano=done.amount_nano + sum(part[1] for part in recorded),
        written_off_nano=done.written_off_nano + sum(part[2] for part in recorded),
    )


def void(tx: Transaction, id: str, outcome: str, now: float) -> None:
    """Give everything back. Raises LedgerConflict if something was billed, NotFound for an unknown hold."""
    row = read_hold(tx, id, lock=True)
    if row is None:
        raise NotFound(f"there is no hold {id!r}")
    if row.state == "open":
        _give_back(tx, row, "void", outcome, now)
    elif row.state == "posted" or _recorded(tx, id):
        raise LedgerConflict(f"the hold {id} is {row.state} and has usage; it can't be voided")


def expire(tx: Transaction, id: str, now: float, listeners: Sequence[OnSettled], *, owner_died: bool = False) -> bool:
    """Resolve a hold whose owner is gone: what it last reported as used is billed, the rest given back."""
    row = read_hold(tx, id, lock=True)
    if row is None or row.state != "open":
        return False
    due = tx.row("SELECT 1 FROM holds WHERE id = ? AND expires_at <= ?", (id, int(now)))
    if due is None and not owner_died:
        return False
    if row.used.output_total:
        _post(tx, row, row.used, EXPIRED, now, listeners, state="expired")
    else:
        _give_back(tx, row, "expired", EXPIRED, now)
    return True


def sum_lines(parts: Sequence[Lines]) -> Lines:
    return Lines(*(sum(counts) for counts in zip(*(part.counts for part in parts), strict=True))) if parts else Lines()


def _post(
    tx: Transaction, row: HoldRow, lines: Lines, outcome: str, now: float, listeners: Sequence[OnSettled], *, state: str
) -> Settlement:
    hold, scope = row.hold, row.hold.scope
    cost = hold.price.cost(lines)
    billed, moves = min(cost, row.held), []
    if cost > row.held:  # it went on without a grant while the database was away
        purse = Purse.open(tx, scope, now)
        extra = min(cost - row.held, max(purse.free, 0))
        billed += extra
        if extra:
            moves.append(Transfer(f"{hold.id}/extra", "wallet", "held", extra, "extra"))
    kind = "post" if state == "posted" else "expire"
    moves.append(Transfer(f"{hold.id}/end", "held", "revenue", billed, kind))
    if row.held > billed:
        moves.append(Transfer(f"{hold.id}/release", "held", "wallet", row.held - billed, "release"))
    if cost > billed:
        moves.append(Transfer(f"{hold.id}/write_off", "written_off", "revenue", cost - billed, "write_off"))
    write(tx, scope.organisation_id, moves, now, hold.id)
    count_spending(tx, scope.ids, scope.period, -row.held, billed)
    _resolve(tx, hold.id, state, outcome, now)
    _record(tx, hold, 0, lines, cost, billed, outcome, now, listeners, fee=True)
    return Settlement(hold.id, lines, hold.price, billed, cost - billed)


def _late(
    tx: Transaction,
    hold: Hold,
    lines: Lines,
    before: Lines,
    part: int,
    outcome: str,
    now: float,
    listeners: Sequence[OnSettled],
) -> Settlement:
    """Bill what no hold covers, as far as there is free money; it may be little, and the books say so."""
    scope, rest = hold.scope, lines - before
    purse = Purse.open(tx, scope, now)
    cost = hold.price.cost(rest, fee=part == 0)
    billed = min(cost, max(purse.free, 0))
    moves = [Transfer(f"{hold.id}/late{part}", "wallet", "revenue", billed, "late")]
    if cost > billed:
        moves.append(Transfer(f"{hold.id}/late{part}_write_off", "written_off", "revenue", cost - billed, "write_off"))
    write(tx, scope.organisation_id, moves, now, hold.id)
    begin_spending(tx, scope.ids, scope.period, 0, billed)
    _record(tx, hold, part, rest, cost, billed, outcome, now, listeners, fee=part == 0)
    return Settlement(hold.id, lines, hold.price, billed, cost - billed)


def _give_back(tx: Transaction, row: HoldRow, state: str, outcome: str, now: float) -> None:
    scope = row.hold.scope
    kind = "void" if state == "void" else "expire"
    write(
        tx, scope.organisation_id, [Transfer(f"{row.hold.id}/end", "held", "wallet", row.held, kind)], now, row.hold.id
    )
    count_spending(tx, scope.ids, scope.period, -row.held, 0)
    _resolve(tx, row.hold.id, state, outcome, now)


def _resolve(tx: Transaction, id: str, state: str, outcome: str, now: float) -> None:
    tx.execute(
        "UPDATE holds SET state = ?, outcome = ?, held = 0, resolved_at = ? WHERE id = ?",
        (state, outcome, int(now), id),
    )


def _insert_resolved(tx: Transaction, hold: Hold, outcome: str, owner: str, now: float) -> None:
    """A row for a hold that the database never saw open: resolved from the start, as its `end` says."""
    open_books(tx, hold.organisation_id, hold.price.currency or DEFAULT_CURRENCY)
    insert_hold(tx, hold, 0, owner, now, resolved=True)
    end = Transfer(f"{hold.id}/end", "held", "revenue", 0, "post")
    write(tx, hold.organisation_id, [end], now, hold.id)


_RECORD = (
    "INSERT INTO usage_records (hold_id, part, request_id, organisation_id, project_id, key_id, model, period, "
    + ", ".join(PRICE_UNITS)
    + ", total_tokens, price_version, "
    + ", ".join(f"price_{unit}" for unit in PRICE_UNITS)
    + ", request_fee, amount, billed, written_off, outcome, opened_at, settled_at) VALUES ("
    + ", ".join(["?"] * 27)
    + ")"
)


def _record(
    tx: Transaction,
    hold: Hold,
    part: int,
    lines: Lines,
    cost: int,
    billed: int,
    outcome: str,
    now: float,
    listeners: Sequence[OnSettled],
    *,
    fee: bool,
) -> None:
    price, scope = hold.price, hold.scope
    values = (
        *(hold.id, part, hold.request_id, *scope.ids, price.model, scope.period, *lines.counts, lines.total),
        *(price.version, *price.units, price.request_fee if fee else 0, cost, billed, cost - billed),
        *(outcome, hold.opened_at, int(now)),
    )
    tx.execute(_RECORD, values)
    if listeners:
        record = SettledRecord(
            *(hold.id, part, hold.request_id, hold.attempt, *scope.ids, price.model),
            *(lines, billed, outcome, hold.opened_at, int(now)),
        )
        for listener in listeners:
            listener(tx, record)


def _recorded(tx: Transaction, id: str) -> list[tuple[Lines, int, int, str]]:
    columns = f"{', '.join(PRICE_UNITS)}, billed, written_off, outcome"
    rows = tx.rows(f"SELECT {columns} FROM usage_records WHERE hold_id = ? ORDER BY part", (id,))
    return [(Lines(*row[:5]), row[5], row[6], row[7]) for row in rows]
