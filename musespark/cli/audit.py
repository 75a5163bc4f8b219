"""`musespark audit`: who did what, when and from where."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from musespark.cli.state import JsonOption, StateOption, open_accounts, print_json, print_table, shown

app = typer.Typer(help="The audit log, which nobody can change.", no_args_is_help=True)


@app.command("list")
def list_events(
    org: Annotated[str | None, typer.Option("--org", help="Of one organisation.")] = None,
    action: Annotated[str | None, typer.Option(help="One kind of act, such as key.create.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many at most.")] = 50,
    state_dir: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show administrative acts, newest first."""
    from musespark.accounts import audit

    with open_accounts(state_dir) as accounts:
        events = audit.list_events(accounts.database, organisation_id=org, action=action, limit=limit)
    if as_json:
        print_json(events)
        return
    rows = [
        (shown(e.at), e.actor_name, e.source, e.action, e.target, json.dumps(e.details, ensure_ascii=False))
        for e in events
    ]
    print_table(("when (UTC)", "who", "from", "what", "target", "details"), rows)
