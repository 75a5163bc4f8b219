"""`musespark price`, `plan` and `credit`: what models cost, what organisations pay, and what they may spend.

Amounts are integer nano-units: a price of $1.25 per million tokens is 1250 per token, a dollar is 1000000000.
"""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from musespark.cli.state import JsonOption, StateOption, moment, open_accounts, print_json, print_table, shown

price_app = typer.Typer(help="Prices of models, in versions.", no_args_is_help=True)
plan_app = typer.Typer(help="Plans, and who has which.", no_args_is_help=True)
credit_app = typer.Typer(help="Balances, credit and monthly caps.", no_args_is_help=True)
OrgArgument = Annotated[str, typer.Argument(help="The organisation's id.")]
NanoOption = typer.Option(help="Nano-units per token.", show_default=False)
DateOption = typer.Option(parser=moment, metavar="DATE", help="2026-12-01 or 2026-12-01T09:00Z; UTC.")


@price_app.command("set")
def set_price(
    model: Annotated[str, typer.Argument(help="The release, or the model where there is none.")],
    text_in: Annotated[int, NanoOption],
    output: Annotated[int, NanoOption],
    image_in: Annotated[int | None, NanoOption] = None,
    cached_in: Annotated[int | None, NanoOption] = None,
    reasoning: Annotated[int | None, NanoOption] = None,
    request_fee: Annotated[int, typer.Option(help="Nano-units per request.")] = 0,
    currency: Annotated[str, typer.Option(help="Of the amounts.")] = "USD",
    effective_from: Annotated[int | None, DateOption] = None,
    state_dir: StateOption = None,
) -> None:
    """Add a version of a price, from now on or from a date; never in the past."""
    from musespark.accounts import prices
    from musespark.accounts.actor import machine
    from musespark.accounts.witness import Witness

    values: dict[str, Any] = {
        "text_in": text_in,
        "output": output,
        "image_in": image_in,
        "cached_in": cached_in,
        "reasoning": reasoning,
        "request_fee": request_fee,
        "currency": currency,
        "effective_from": effective_from,
    }
    with open_accounts(state_dir) as accounts:
        witness = Witness(accounts.database, machine(), "price.set", model, **values)
        made = prices.set_price(witness, model, **values)
    print(f"version {made.version} of the price of {model} begins {shown(made.effective_from)} UTC")


@price_app.command("list")
def list_prices(
    model: Annotated[str | None, typer.Argument(help="One model; all if left out.")] = None,
    state_dir: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show every version of every price, in nano-units per token."""
    from musespark.accounts import prices

    with open_accounts(state_dir) as accounts:
        found = prices.list_prices(accounts.database, model)
    if as_json:
        print_json(found)
        return
    units = ("text_in", "image_in", "cached_in", "output", "reasoning", "request_fee")
    rows = [
        (p.model, str(p.version), p.currency, *(str(getattr(p, unit)) for unit in units), shown(p.effective_from))
        for p in found
    ]
    print_table(("model", "version", "currency", *units, "from (UTC)"), rows)


@plan_app.command("create")
def create_plan(
    plan_id: Annotated[str, typer.Argument(help="Its id, such as starter-2026; an existing one gets a new version.")],
    name: Annotated[str, typer.Option(help="What customers see.")],
    kind: Annotated[str, typer.Option(help="standard, trial or partner.")] = "standard",
    currency: Annotated[str, typer.Option(help="Of the amounts.")] = "USD",
    monthly_fee: Annotated[int, typer.Option(help="Nano-units.")] = 0,
    included: Annotated[int, typer.Option(help="Credit of each month, in nano-units.")] = 0,
    overage_limit: Annotated[int, typer.Option(help="Billed beyond all credit up to this; 0 stops there.")] = 0,
    outage_bound: Annotated[int, typer.Option(help="Let in while the database is away up to this; 0 refuses.")] = 0,
    trial_days: Annotated[int | None, typer.Option(help="For a trial.")] = None,
    next_plan: Annotated[str | None, typer.Option(help="What a trial turns into.")] = None,
    state_dir: StateOption = None,
) -> None:
    """Add a plan, or a new version of one; who has it keeps theirs."""
    from musespark.accounts import plans
    from musespark.accounts.actor import machine
    from musespark.accounts.witness import Witness

    values: dict[str, Any] = {
        "name": name,
        "kind": kind,
        "currency": currency,
        "monthly_fee_nano": monthly_fee,
        "included_nano": included,
        "overage": "bill" if overage_limit else "stop",
        "overage_limit_nano": overage_limit,
        "outage": "allow" if outage_bound else "refuse",
        "outage_bound_nano": outage_bound,
        "trial_days": trial_days,
        "next_plan": next_plan,
    }
    with open_accounts(state_dir) as accounts:
        witness = Witness(accounts.database, machine(), "plan.create", plan_id, **values)
        made = plans.create_plan(witness, plans.Plan(plan_id, **values))
    print(f"version {made.version} of {plan_id}")


@plan_app.command("list")
def list_plans(state_dir: StateOption = None, as_json: JsonOption = False) -> None:
    """Show all plans; amounts in nano-units."""
    from musespark.accounts import plans

    with open_accounts(state_dir) as accounts:
        found = plans.list_plans(accounts.database)
    if as_json:
        print_json(found)
        return
    rows = [
        (p.id, str(p.version), p.name, p.kind, p.currency, str(p.monthly_fee_nano), str(p.included_nano), p.overage)
        for p in found
    ]
    print_table(("id", "version", "name", "kind", "currency", "fee", "included", "overage"), rows)


@plan_app.command("assign")
def assign_plan(
    org: OrgArgument,
    plan_id: Annotated[str | None, typer.Argument(help="The plan; left out, the subscription ends.")] = None,
    state_dir: StateOption = None,
) -> None:
    """Move an organisation to a plan at once; what is unused of the old one is credited."""
    from musespark.accounts import subscriptions
    from musespark.accounts.actor import machine
    from musespark.accounts.witness import Witness, owner_of

    with open_accounts(state_dir) as accounts:
        owner_of(accounts.database, org)
        action = "plan.cancel" if plan_id is None else "plan.subscribe"
        witness = Witness(accounts.database, machine(), action, plan_id or org, organisation_id=org)
        if plan_id is None:
            subscriptions.cancel(witness, org)
            print(f"{org} has no plan")
        else:
            plan = subscriptions.subscribe(witness, org, plan_id)
            print(f"{org} has {plan.id}, version {plan.version}")


@credit_app.command("add")
def add_credit(
    org: OrgArgument,
    amount: Annotated[int, typer.Argument(help="Nano-units: a dollar is 1000000000.")],
    reference: Annotated[str, typer.Option(help="What for, such as a payment's number; the same again adds nothing.")],
    grant: Annotated[bool, typer.Option("--grant", help="Given away, not paid.")] = False,
    currency: Annotated[str, typer.Option(help="Of the amount.")] = "USD",
    expires: Annotated[int | None, DateOption] = None,
    state_dir: StateOption = None,
) -> None:
    """Add prepaid or granted credit to an organisation."""
    from musespark.accounts import credits
    from musespark.accounts.actor import machine
    from musespark.accounts.witness import Witness

    details: dict[str, Any] = {"amount_nano": amount, "source": "grant" if grant else "top_up", "expires_at": expires}
    with open_accounts(state_dir) as accounts:
        witness = Witness(accounts.database, machine(), "credit.add", reference, organisation_id=org, **details)
        added = credits.top_up(
            witness,
            org,
            amount,
            reference,
            expires_at=expires,
            source="grant" if grant else "top_up",
            currency=currency,
        )
    print(f"{amount} nano-{currency} were added" if added else f"{reference} was added before; nothing has changed")


@credit_app.command("show")
def show_balance(org: OrgArgument, state_dir: StateOption = None, as_json: JsonOption = False) -> None:
    """Show what an organisation can spend, what is held, owed, and spent this month; in nano-units."""
    from musespark.accounts.witness import owner_of

    with open_accounts(state_dir) as accounts:
        owner_of(accounts.database, org)
        balance, spending = accounts.ledger.balance(org), accounts.ledger.spending(org)
    if as_json:
        print_json([balance, spending])
        return
    cap = "none" if spending.cap_nano is None else f"{spending.cap_nano:,}"
    for name, value in (
        ("currency", balance.currency),
        ("available", f"{balance.available_nano:,}"),
        ("held", f"{balance.held_nano:,}"),
        ("owed", f"{balance.owed_nano:,}"),
        (f"spent in {spending.period}", f"{spending.posted_nano:,}"),
        ("monthly cap", cap),
    ):
        print(f"{name:<18} {value}")


@credit_app.command("cap")
def set_cap(
    subject: Annotated[str, typer.Argument(help="An organisation, a project or a key.")],
    monthly: Annotated[int | None, typer.Argument(help="Nano-units a month (UTC); left out, the cap goes.")] = None,
    state_dir: StateOption = None,
) -> None:
    """Set how much an organisation, a project or a key may spend in a month."""
    from musespark.accounts import statements
    from musespark.accounts.actor import machine
    from musespark.accounts.witness import Witness, owner_of

    with open_accounts(state_dir) as accounts:
        owner = owner_of(accounts.database, subject)
        details: dict[str, Any] = {"monthly_nano": monthly}
        witness = Witness(accounts.database, machine(), "cap.set", subject, organisation_id=owner, **details)
        witness.transact(lambda tx: statements.set_cap(tx, subject, monthly, time.time()))
    print(f"{subject} may spend {'any amount' if monthly is None else f'{monthly:,} nano-units'} a month")
