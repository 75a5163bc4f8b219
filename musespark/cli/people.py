"""`musespark people`: who works in an organisation, with which role, and how they come in."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from musespark.cli.state import JsonOption, StateOption, open_accounts, print_json, print_table, shown

app = typer.Typer(help="People and their roles.", no_args_is_help=True)
OrgOption = Annotated[str, typer.Option("--org", help="The organisation's id.")]
RoleOption = Annotated[str, typer.Option(help="owner, admin, developer, billing or viewer.")]
EmailArgument = Annotated[str, typer.Argument(help="Their email.")]


@app.command("invite")
def invite(email: EmailArgument, org: OrgOption, role: RoleOption = "developer", state_dir: StateOption = None) -> None:
    """Print an invitation, once: whoever has it chooses a password and is in. Good for a week."""
    from musespark.accounts import invitations
    from musespark.accounts.actor import machine

    with open_accounts(state_dir) as accounts:
        new = invitations.invite(accounts.database, accounts.pepper, machine(), org, email, role, None)
    print(new.token)
    print(
        f"{new.invitation.id} was made. Send the token above to {new.invitation.email}; they POST it to "
        "/v1/auth/invitation with a name and a password.",
        file=sys.stderr,
    )


@app.command("list")
def list_people(org: OrgOption, state_dir: StateOption = None, as_json: JsonOption = False) -> None:
    """Show who is in an organisation."""
    from musespark.accounts import people

    with open_accounts(state_dir) as accounts:
        found = people.list_members(accounts.database, org)
    if as_json:
        print_json(found)
        return
    rows = [(m.person_id, m.email, m.name, m.role, shown(m.created_at)) for m in found]
    print_table(("id", "email", "name", "role", "since (UTC)"), rows)


@app.command("role")
def change_role(
    person_id: Annotated[str, typer.Argument(help="The id that `list` shows.")],
    role: Annotated[str, typer.Argument(help="owner, admin, developer, billing or viewer.")],
    org: OrgOption,
    state_dir: StateOption = None,
) -> None:
    """Change somebody's role."""
    from musespark.accounts import people
    from musespark.accounts.actor import machine

    with open_accounts(state_dir) as accounts:
        member = people.change_role(accounts.database, machine(), org, person_id, role, None)
    print(f"{member.email} is {member.role}")


@app.command("remove")
def remove(
    person_id: Annotated[str, typer.Argument(help="The id that `list` shows.")],
    org: OrgOption,
    state_dir: StateOption = None,
) -> None:
    """Take somebody out of an organisation."""
    from musespark.accounts import people
    from musespark.accounts.actor import machine

    with open_accounts(state_dir) as accounts:
        people.remove_member(accounts.database, machine(), org, person_id, None)
    print(f"{person_id} is out")


@app.command("operator")
def add_operator(
    email: EmailArgument,
    name: Annotated[str, typer.Option(help="Their name.")] = "Operator",
    state_dir: StateOption = None,
) -> None:
    """Make a person who runs the server: all organisations and releases. The password is asked for."""
    from musespark.accounts import people
    from musespark.accounts.actor import machine

    password = _ask_password()
    with open_accounts(state_dir) as accounts:
        print(people.add_person(accounts.database, machine(), email, name, password, operator=True))


@app.command("password")
def set_password(email: EmailArgument, state_dir: StateOption = None) -> None:
    """Give somebody a new password, which is asked for, and end their sessions."""
    from musespark.accounts import people
    from musespark.accounts.actor import machine

    password = _ask_password()
    with open_accounts(state_dir) as accounts:
        people.set_password(accounts.database, machine(), email, password)
    print(f"{email} has a new password")


@app.command("disable")
def disable(
    email: EmailArgument,
    undo: Annotated[bool, typer.Option("--undo", help="Let them in again.")] = False,
    state_dir: StateOption = None,
) -> None:
    """Keep somebody out of every organisation, however they sign in; their sessions stop at once."""
    from musespark.accounts import people
    from musespark.accounts.actor import machine

    with open_accounts(state_dir) as accounts:
        people.set_disabled(accounts.database, machine(), email, not undo)
    print(f"{email} may {'' if undo else 'not '}sign in")


def _ask_password() -> str:
    """From the terminal without an echo, or one line of standard input: never an argument, which others can see."""
    if sys.stdin.isatty():
        return str(typer.prompt("password", hide_input=True, confirmation_prompt=True))
    return sys.stdin.readline().rstrip("\n")
