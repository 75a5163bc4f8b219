"""`musespark release`: from a draft to partners, a launch date, everybody, and the end. Every change needs `--why`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from musespark.cli.state import JsonOption, StateOption, moment, open_accounts, print_json, print_table, shown

if TYPE_CHECKING:
    from musespark.accounts.release_changes import ReleaseChanges
    from musespark.accounts.release_stages import Release

app = typer.Typer(help="Releases: public names of models, their stages and dates.", no_args_is_help=True)
NameArgument = Annotated[str, typer.Argument(help="The release's name.")]
WhyOption = Annotated[str, typer.Option(help="The reason; it stays in the history.")]
MomentOption = typer.Option(parser=moment, metavar="DATE", help="2026-12-01 or 2026-12-01T09:00Z; UTC.")


@app.command("create")
def create(
    name: NameArgument,
    model: Annotated[str, typer.Option(help="The model that answers, as the server calls it.")],
    why: WhyOption,
    training: Annotated[bool, typer.Option("--training", help="Requests may be trained on.")] = False,
    retention_days: Annotated[int, typer.Option(help="For how long requests are kept.")] = 0,
    region: Annotated[str, typer.Option(help="Where it runs.")] = "local",
    state_dir: StateOption = None,
) -> None:
    """Make a release in stage draft. From now on the model answers to the names of its releases only."""
    from musespark.accounts.release_stages import DataPolicy

    with _changes(state_dir) as changes:
        _tell(changes.create(name, model, why, DataPolicy(training, retention_days, region)))


@app.command("list")
def list_releases(state_dir: StateOption = None, as_json: JsonOption = False) -> None:
    """Show all releases with their stages, dates and aliases."""
    from musespark.accounts import early_access

    with open_accounts(state_dir) as accounts:
        found = early_access.list_releases(accounts.database)
        aliases = early_access.aliases(accounts.database)
    if as_json:
        print_json(found)
        return
    rows = []
    for release in found:
        names = ", ".join(sorted(alias for alias, name in aliases.items() if name == release.name))
        dates = (shown(release.launch_at), shown(release.shutdown_at))
        ramp = f"{release.ramp_basis_points / 100:g}%" if release.ramp_basis_points else ""
        rows.append((release.name, release.model, release.stage, ramp, *dates, names))
    print_table(("name", "model", "stage", "ramp", "launch (UTC)", "shutdown", "aliases"), rows)


@app.command("show")
def show(name: NameArgument, state_dir: StateOption = None, as_json: JsonOption = False) -> None:
    """Show a release's whole history: what, when, who, why."""
    from musespark.accounts import early_access

    with open_accounts(state_dir) as accounts:
        events = early_access.events(accounts.database, name)
    if as_json:
        print_json(events)
        return
    rows = [(shown(e.at), e.kind, e.value_before or "", e.value_after or "", e.actor_name, e.why) for e in events]
    print_table(("when (UTC)", "what", "from", "to", "who", "why"), rows)


@app.command("move")
def move(
    name: NameArgument,
    to: Annotated[str, typer.Argument(help="internal, partner, waitlist, public, deprecated, retired, or draft.")],
    why: WhyOption,
    shutdown_at: Annotated[int | None, MomentOption] = None,
    replacement: Annotated[str | None, typer.Option(help="What to use instead, for deprecated.")] = None,
    state_dir: StateOption = None,
) -> None:
    """Move a release to another stage; deprecated needs --shutdown-at."""
    with _changes(state_dir) as changes:
        _tell(changes.move(name, to, why, shutdown_at=shutdown_at, replacement=replacement))


@app.command("launch")
def launch(
    name: NameArgument,
    launch_at: Annotated[int, typer.Argument(parser=moment, metavar="DATE", help="2026-12-01T09:00Z; UTC.")],
    why: WhyOption,
    state_dir: StateOption = None,
) -> None:
    """Commit to a launch date. A later one than before is recorded, and shown, as a slip."""
    with _changes(state_dir) as changes:
        _tell(changes.commit_launch(name, launch_at, why))


@app.command("ramp")
def ramp(
    name: NameArgument,
    percent: Annotated[float, typer.Argument(help="Of all organisations, 0 to 100; it never shrinks.")],
    why: WhyOption,
    state_dir: StateOption = None,
) -> None:
    """Let in a percentage of all organisations at the stage waitlist, the same ones each time."""
    with _changes(state_dir) as changes:
        _tell(changes.ramp(name, percent, why))


@app.command("invite")
def invite(
    name: NameArgument,
    org: Annotated[str, typer.Option("--org", help="The partner's organisation.")],
    why: WhyOption,
    remove: Annotated[bool, typer.Option("--remove", help="Take it from the list.")] = False,
    state_dir: StateOption = None,
) -> None:
    """Put an organisation on the invitation list, or take it off."""
    with _changes(state_dir) as changes:
        if remove:
            changes.uninvite(name, org, why)
        else:
            changes.invite(name, org, why)
    print(f"{org} is {'no longer ' if remove else ''}invited to {name}")


@app.command("admit")
def admit(
    name: NameArgument,
    why: WhyOption,
    number: Annotated[int, typer.Option("--next", min=1, help="How many from the front of the line.")] = 1,
    state_dir: StateOption = None,
) -> None:
    """Let in the first who wait for early access, and print their organisations."""
    with _changes(state_dir) as changes:
        for organisation in changes.admit(name, why, next_in_line=number):
            print(organisation)


@app.command("waiting")
def waiting(name: NameArgument, state_dir: StateOption = None, as_json: JsonOption = False) -> None:
    """Show who has applied for early access, in order."""
    from musespark.accounts import early_access

    with open_accounts(state_dir) as accounts:
        found = early_access.applications(accounts.database, name)
    if as_json:
        print_json(found)
        return
    rows = [("in" if a.admitted else str(a.place), a.organisation_id, shown(a.applied_at), a.note) for a in found]
    print_table(("place", "organisation", "applied (UTC)", "note"), rows)


@app.command("alias")
def alias(
    alias: Annotated[str, typer.Argument(help="Another name.")],
    why: WhyOption,
    name: Annotated[str | None, typer.Argument(help="The release that it means; left out, the alias goes.")] = None,
    state_dir: StateOption = None,
) -> None:
    """Let another name mean a release from now on."""
    with _changes(state_dir) as changes:
        if name is None:
            changes.remove_alias(alias, why)
            print(f"{alias} means nothing any more")
        else:
            changes.set_alias(alias, name, why)
            print(f"{alias} means {name}")


@contextmanager
def _changes(state_dir: Path | None) -> Iterator[ReleaseChanges]:
    from musespark.accounts.actor import machine
    from musespark.accounts.release_changes import ReleaseChanges

    with open_accounts(state_dir) as accounts:
        yield ReleaseChanges(accounts.database, machine())


def _tell(release: Release) -> None:
    dates = [f"launch {shown(release.launch_at)}"] if release.launch_at else []
    dates += [f"shutdown {shown(release.shutdown_at)}"] if release.shutdown_at else []
    ramp = [f"{release.ramp_basis_points / 100:g}% of organisations"] if release.ramp_basis_points else []
    print(f"{release.name}: {', '.join([release.stage, *ramp, *dates])}")
    if release.stage == "draft":
        print(f"{release.model!r} answers to the names of its releases only from now on.", file=sys.stderr)
