"""`musespark key`: keys of the API. What `list` prints is a table that never cuts an id, or JSON."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from musespark.cli.state import JsonOption, StateOption, open_accounts, print_json, print_table, shown

if TYPE_CHECKING:
    from musespark.accounts.keys import Key, NewKey

DAY_S = 86_400
HEADER = ("id", "name", "key", "access", "project", "created (UTC)", "last used", "expires", "revoked")

app = typer.Typer(help="Keys of the API.", no_args_is_help=True)
OrganisationOption = Annotated[
    str | None, typer.Option("--org", help="Organisation; the operator's own if left out.", show_default=False)
]


@app.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    org: OrganisationOption = None,
    project: Annotated[str | None, typer.Option(help="Project; the organisation's first if left out.")] = None,
    service_account: Annotated[str | None, typer.Option(help="The service account that owns it.")] = None,
    access: Annotated[str, typer.Option(help="standard, read_only, admin or operator.")] = "standard",
    model: Annotated[list[str] | None, typer.Option(help="Only for this model; may be repeated.")] = None,
    route: Annotated[
        list[str] | None, typer.Option(help="Only for these routes (chat, models, usage, …); may be repeated.")
    ] = None,
    expires_days: Annotated[int | None, typer.Option(min=1, max=36_500, help="Days until it stops working.")] = None,
    state_dir: StateOption = None,
) -> None:
    """Make a key and print it, once."""
    expires_at = None if expires_days is None else int(time.time()) + expires_days * DAY_S
    with open_accounts(state_dir) as accounts:
        new = accounts.create_key(
            name,
            organisation_id=org,
            project_id=project,
            service_account_id=service_account,
            access=access,
            models=model or None,
            routes=route or None,
            expires_at=expires_at,
        )
    _print_once(new)


@app.command("list")
def list_keys(
    org: Annotated[str | None, typer.Option("--org", help="Organisation; all if left out.")] = None,
    project: Annotated[str | None, typer.Option(help="Project; all if left out.")] = None,
    state_dir: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show every key ever made, without its secret."""
    with open_accounts(state_dir) as accounts:
        print_keys(accounts.list_keys(org, project), as_json=as_json)


@app.command("rotate")
def rotate_key(
    key_id: Annotated[str, typer.Argument(help="The id that `musespark key list` shows.")],
    overlap_hours: Annotated[
        float, typer.Option(min=0, max=90 * 24, help="How long the old key goes on working beside the new one.")
    ] = 24,
    state_dir: StateOption = None,
) -> None:
    """Make a new key like an old one, which ends after the overlap."""
    with open_accounts(state_dir) as accounts:
        new = accounts.rotate_key(key_id, overlap_s=int(overlap_hours * 3600))
    _print_once(new)
    print(f"{key_id} works for another {overlap_hours:g} hours.", file=sys.stderr)


@app.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(help="The id that `musespark key list` shows.")],
    state_dir: StateOption = None,
) -> None:
    """End a key for good; a running server stops accepting it within a second."""
    with open_accounts(state_dir) as accounts:
        key = accounts.revoke_key(key_id)
    print(f"{key.id} ({key.name}) is revoked")


def print_keys(keys: Sequence[Key], *, as_json: bool) -> None:
    if as_json:
        print_json(keys)
    else:
        print_table(HEADER, [_row(key) for key in keys])


def _row(key: Key) -> tuple[str, ...]:
    times = (key.created_at, key.last_used_at, key.expires_at, key.revoked_at)
    return (key.id, key.name, f"{key.prefix}…", key.access, key.project_id, *(shown(seconds) for seconds in times))


def _print_once(new: NewKey) -> None:
    print(new.secret)
    print(f"{new.key.id} was made. The key above is not stored and can't be shown again.", file=sys.stderr)
