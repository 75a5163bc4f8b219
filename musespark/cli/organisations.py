"""`musespark org` and `musespark project`: organisations, their projects and service accounts."""

from __future__ import annotations

from typing import Annotated

import typer

from musespark.cli.state import JsonOption, StateOption, open_accounts, print_json, print_table, shown

org_app = typer.Typer(help="Organisations: customers, and the operator's own.", no_args_is_help=True)
project_app = typer.Typer(help="Projects of an organisation, and their service accounts.", no_args_is_help=True)
IdArgument = Annotated[str, typer.Argument(help="The id that `list` shows.")]
OrgOption = Annotated[str, typer.Option("--org", help="The organisation's id.")]


@org_app.command("create")
def create_organisation(
    name: Annotated[str, typer.Argument(help="What it is called.")],
    internal: Annotated[bool, typer.Option("--internal", help="Of those who run the server.")] = False,
    state_dir: StateOption = None,
) -> None:
    """Make an organisation with a project "default", and print its id."""
    from musespark.accounts import organisations
    from musespark.accounts.actor import machine

    with open_accounts(state_dir) as accounts:
        print(organisations.create_organisation(accounts.database, machine(), name, internal=internal).id)


@org_app.command("list")
def list_organisations(state_dir: StateOption = None, as_json: JsonOption = False) -> None:
    """Show all organisations, oldest first."""
    from musespark.accounts import organisations

    with open_accounts(state_dir) as accounts:
        found = organisations.list_organisations(accounts.database)
    if as_json:
        print_json(found)
        return
    rows = [(o.id, o.name, "yes" if o.internal else "", shown(o.created_at), shown(o.suspended_at)) for o in found]
    print_table(("id", "name", "internal", "created (UTC)", "suspended"), rows)


@org_app.command("rename")
def rename_organisation(organisation_id: IdArgument, name: str, state_dir: StateOption = None) -> None:
    """Give an organisation another name."""
    _update(organisation_id, state_dir, name=name)


@org_app.command("suspend")
def suspend_organisation(organisation_id: IdArgument, state_dir: StateOption = None) -> None:
    """Stop all keys of an organisation and sign its people out."""
    _update(organisation_id, state_dir, suspended=True)


@org_app.command("resume")
def resume_organisation(organisation_id: IdArgument, state_dir: StateOption = None) -> None:
    """Let a suspended organisation work again."""
    _update(organisation_id, state_dir, suspended=False)


@project_app.command("create")
def create_project(
    name: Annotated[str, typer.Argument(help="What it is called.")], org: OrgOption, state_dir: StateOption = None
) -> None:
    """Make a project and print its id."""
    from musespark.accounts import organisations
    from musespark.accounts.actor import machine

    with open_accounts(state_dir) as accounts:
        print(organisations.create_project(accounts.database, machine(), org, name).id)


@project_app.command("list")
def list_projects(
    org: Annotated[str | None, typer.Option("--org", help="One organisation; all if left out.")] = None,
    state_dir: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show projects, oldest first."""
    from musespark.accounts import organisations

    with open_accounts(state_dir) as accounts:
        found = organisations.list_projects(accounts.database, org)
    if as_json:
        print_json(found)
        return
    rows = [(p.id, p.name, p.organisation_id, shown(p.created_at), shown(p.archived_at)) for p in found]
    print_table(("id", "name", "organisation", "created (UTC)", "archived"), rows)


@project_app.command("archive")
def archive_project(project_id: IdArgument, org: OrgOption, state_dir: StateOption = None) -> None:
    """Stop all keys of a project."""
    from musespark.accounts import organisations
    from musespark.accounts.actor import machine

    with open_accounts(state_dir) as accounts:
        organisations.update_project(accounts.database, machine(), org, project_id, archived=True)
    print(f"{project_id} is archived")


@project_app.command("service-account")
def create_service_account(
    name: Annotated[str, typer.Argument(help="What it does.")],
    org: OrgOption,
    project: Annotated[str, typer.Option(help="The project that it works in.")],
    state_dir: StateOption = None,
) -> None:
    """Make an owner of keys that is not a person, and print its id."""
    from musespark.accounts import service_accounts
    from musespark.accounts.actor import machine

    with open_accounts(state_dir) as accounts:
        print(service_accounts.create_service_account(accounts.database, machine(), org, project, name).id)


def _update(
    organisation_id: str, state_dir: StateOption, *, name: str | None = None, suspended: bool | None = None
) -> None:
    from musespark.accounts import organisations
    from musespark.accounts.actor import machine

    with open_accounts(state_dir) as accounts:
        changed = organisations.update_organisation(
            accounts.database, machine(), organisation_id, name=name, suspended=suspended
        )
    print(f"{changed.id} ({changed.name}) is {'active' if changed.suspended_at is None else 'suspended'}")
