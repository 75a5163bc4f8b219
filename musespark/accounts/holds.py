"""Holds: money set aside before work is done. Opening one, letting it grow while an answer is generated.

A hold covers the request's input and its next few output tokens, all at the dearest rate that they could have. It grows
in steps, and each step first re-computes what the tokens so far have really cost. When the free money is less than a
step, exactly the tokens that it pays for are granted. When it pays for none, the request waits if other requests hold
money that they may not need, and is told to stop for good if none does. Resolving a hold is in settlement.py.

The functions run inside a transaction; ledger.py is the door.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from musespark.accounts.lines import Lines
from musespark.accounts.prices import PriceSnapshot
from musespark.accounts.purse import Purse, Scope
from musespark.accounts.tables.ledger import USED
from musespark.accounts.tables.prices import PRICE_UNITS
from musespark.accounts.transactions import Transaction
from musespark.accounts.transfers import Transfer, begin_spending, count_spending, write
from musespark.errors import LedgerConflict, NotFound

HOLD_TTL_S = 300  # an open hold that nobody touches for so long is resolved without its owner, who must have died


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Hold:
    """A request that was let in. `granted_output` tokens are paid for; `final`: there will be no more.

    `outage`: it was let in while the database was away, by the plan's policy; the database learns of it later.
    """

    id: str
    request_id: str
    attempt: int
    scope: Scope
    price: PriceSnapshot
    granted_output: int
    final: bool
    opened_at: int
    outage: bool = False

    @property
    def organisation_id(self) -> str:
        return self.scope.organisation_id


@dataclass(frozen=True, slots=True)
class Grant:
    """The answer to `extend`: output tokens paid for in total, and what to do when they are used up.

    Neither `final` nor `waiting`: go on and ask again. `waiting`: nothing could be added now, ask again soon. `final`:
    stop there; `code` and `message` say which limit it was.
    """

    granted_output: int
    final: bool = False
    waiting: bool = False
    code: str | None = None
    message: str | None = None


@dataclass(frozen=True, slots=True)
class HoldRow:
    """A hold as the database has it."""

    hold: Hold
    state: str
    outcome: str | None
    held: int
    granted_output: int
    extensions: int
    used: Lines


_COLUMNS = (
    "id, request_id, attempt, organisation_id, project_id, key_id, period, model, price_version, "
    + ", ".join(f"price_{unit}" for unit in PRICE_UNITS)
    + ", request_fee, opened_at, state, outcome, held, granted_output, extensions, "
    + ", ".join(USED)
)
_SELECT = f"SELECT {_COLUMNS} FROM holds WHERE id = ?"
_INSERT = (
    "INSERT INTO holds (id, request_id, attempt, organisation_id, project_id, key_id, period, model, price_version, "
    + ", ".join(f"price_{unit}" for unit in PRICE_UNITS)
    + ", request_fee, opened_at, state, held, granted_output, owner, expires_at, resolved_at) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING"
)


def hold_id(request_id: str, attempt: int) -> str:
    return f"{request_id}/{attempt}"


def read_hold(tx: Transaction, id: str, *, lock: bool = False) -> HoldRow | None:
    row = tx.row(_SELECT + (tx.for_update if lock else ""), (id,))
    if row is None:
        return None
    request_id, attempt, organisation_id, project_id, key_id, period, model, version = row[1:9]
    price = PriceSnapshot(model, version, "", *row[9:15])
    scope = Scope(organisation_id, project_id, key_id, period)
    opened_at, state, outcome, held, granted, extensions = row[15:21]
    hold = Hold(id, request_id, attempt, scope, price, granted, False, opened_at)
    return HoldRow(hold, state, outcome, held, granted, extensions, Lines(*row[21:26]))


def insert_hold(tx: Transaction, hold: Hold, held: int, owner: str, now: float, *, resolved: bool = False) -> bool:
    """False if the hold exists already."""
    price = hold.price
    values = (
        *(hold.id, hold.request_id, hold.attempt, *hold.scope.ids, hold.scope.period, price.model, price.version),
        *(*price.units, price.request_fee, hold.opened_at, "posted" if resolved else "open", held),
        *(hold.granted_output, owner, int(now) + HOLD_TTL_S, int(now) if resolved else None),
    )
    return tx.execute(_INSERT, values) == 1


def open_hold(tx: Transaction, asked: Hold, text_in: int, image_in: int, owner: str, now: float) -> Hold:
    """Hold the input and up to `asked.granted_output` output tokens; fewer if that is all that the money pays for.

    Raises SpendLimit, and then nothing is held, where it does not pay for the input and one output token.
    """
    purse = Purse.open(tx, asked.scope, now)
    price, wanted = asked.price, asked.granted_output
    base = price.most_for_input(text_in, image_in)
    granted, final = wanted, False
    if base + wanted * price.most_per_output > max(purse.free, 0):
        granted = min((purse.free - base) // price.most_per_output if price.most_per_output else -1, wanted)
        needed = base + min(wanted, 1) * price.most_per_output
        if granted < min(wanted, 1) or purse.free < base:
            existing = read_hold(tx, asked.id)
            if existing is not None:
                return replace(existing.hold, price=price)
            raise purse.refusal(needed, held_by_others=purse.others_may_free(needed, asked.id))
        final = not purse.others_may_free(base + wanted * price.most_per_output, asked.id)
    held = base + granted * price.most_per_output
    hold = Hold(asked.id, asked.request_id, asked.attempt, asked.scope, price, granted, final, asked.opened_at)
    if not insert_hold(tx, hold, held, owner, now):
        existing = read_hold(tx, asked.id)
        assert existing is not None
        return replace(existing.hold, price=price)
    if held:
        write(tx, hold.organisation_id, [Transfer(f"{hold.id}/hold", "wallet", "held", held, "hold")], now, hold.id)
    begin_spending(tx, hold.scope.ids, hold.scope.period, held, 0)
    return hold


def extend(
    tx: Transaction, id: str, used: Lines, more: int, now: float, *, granted: int = 0, give_up: bool = False
) -> Grant:
    """Let a hold grow by up to `more` output tokens, `used` having been computed so far.

    `granted` is what the request was promised in total: more than the row says where the database was away meanwhile.
    Raises NotFound for an unknown hold and LedgerConflict if less is reported used than before.
    """
    row = read_hold(tx, id, lock=True)
    if row is None:
        raise NotFound(f"there is no hold {id!r}")
    if row.state != "open":
        return Grant(row.granted_output, final=True, code="hold_resolved", message=f"the hold is {row.state}")
    # Their sums only grow; whether a token is reasoning may turn out some tokens later.
    if used.input_total < row.used.input_total or used.output_total < row.used.output_total:
        raise LedgerConflict(f"the hold {id} had {row.used} and now reports {used}")
    purse = Purse.open(tx, row.hold.scope, now)
    price = row.hold.price
    per_token = price.most_per_output
    promised = max(row.granted_output, granted)
    unused = max(promised - used.output_total, 0)
    # Before the first output token the input may not be computed yet: what was held for it stays.
    base = price.cost(used) if used.output_total else row.held - row.granted_output * per_token
    back = row.held - base - unused * per_token  # what it held at the dearest rate and turned out cheaper
    free = purse.free + back
    added = more if more * per_token <= max(free, 0) else max(free, 0) // per_token
    final = waiting = False
    code = message = None
    if added < more:
        # What it has not used yet is held at the dearest rate: the cheaper tokens among it will bring some back.
        may_return = unused + added > 0 and price.output != price.reasoning
        final = give_up or not (may_return or purse.others_may_free(more * per_token - back, id))
        waiting = added == 0 and not final
        refusal = purse.refusal(more * per_token, held_by_others=not final)
        code, message = refusal.code, refusal.message
    # What was promised without the database may be more than the money pays for: then all that there is, is held.
    held = min(base + (unused + added) * per_token, row.held + max(purse.free, 0))
    # Used up and without a grant, it can't free anything: others need not wait for it.
    idle = int(added == 0 and unused == 0)
    _grow(tx, row, held, promised + added, idle, used, now)
    return Grant(promised + added, final, waiting, code, message)


def _grow(tx: Transaction, row: HoldRow, held: int, granted: int, idle: int, used: Lines, now: float) -> None:
    scope, change = row.hold.scope, held - row.held
    if change:
        sides = ("wallet", "held") if change > 0 else ("held", "wallet")
        transfer = Transfer(f"{row.hold.id}/extend{row.extensions + 1}", *sides, abs(change), "extend")
        write(tx, scope.organisation_id, [transfer], now, row.hold.id)
        count_spending(tx, scope.ids, scope.period, change, 0)
    tx.execute(
        "UPDATE holds SET held = ?, granted_output = ?, extensions = ?, waiting = ?, expires_at = ?, "
        + ", ".join(f"{name} = ?" for name in USED)
        + " WHERE id = ?",
        (held, granted, row.extensions + 1, idle, int(now) + HOLD_TTL_S, *used.counts, row.hold.id),
    )


def keep(tx: Transaction, ids: list[str], now: float) -> None:
    """Put off the expiry of holds whose requests are alive."""
    for id in ids:
        tx.execute("UPDATE holds SET expires_at = ? WHERE id = ? AND state = 'open'", (int(now) + HOLD_TTL_S, id))
