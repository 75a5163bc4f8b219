"""`musespark usage` and `musespark limit`: what was used, and how much may be."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer

from musespark.cli.state import JsonOption, StateOption, moment, open_accounts, print_table, shown

limit_app = typer.Typer(help="Limits of organisations, projects and keys.", no_args_is_help=True)
SubjectArgument = Annotated[str, typer.Argument(help="Id of an organisation, a project or a key.")]
DateOption = typer.Option(parser=moment, metavar="DATE", help="2026-12-01 or 2026-12-01T09:00Z; UTC.")


def show_usage(
    org: Annotated[str, typer.Argument(help="The organisation's id.")],
    bucket: Annotated[str, typer.Option(help="hour or day.")] = "day",
    start: Annotated[int | None, DateOption] = None,
    end: Annotated[int | None, DateOption] = None,
    group_by: Annotated[list[str] | None, typer.Option(help="model, project or key; may be given again.")] = None,
    state_dir: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """What an organisation has used: requests, tokens of each kind, and money in nano-units."""
    from musespark.accounts import usage
    from musespark.errors import InvalidRequest

    if bucket not in usage.SECONDS:
        raise InvalidRequest(f"--bucket is {bucket[:40]!r}; it must be hour or day", param="bucket")
    first, last = usage.default_range(bucket)  # type: ignore[arg-type]
    groups = usage.groupings(group_by or [])
    query = usage.Query(org, bucket, first if start is None else start, last if end is None else end, groups)  # type: ignore[arg-type]
    with open_accounts(state_dir) as accounts:
        rows = usage.report(accounts.database, query)
    if as_json:
        print(json.dumps(rows))
        return
    names = ("start", *groups, *usage.NUMBERS)
    print_table(names, [[shown(row["start"]), *(str(row[name]) for name in names[1:])] for row in rows])


@limit_app.command("show")
def show_limits(subject: SubjectArgument, state_dir: StateOption = None, as_json: JsonOption = False) -> None:
    """The limits that were set for an organisation, a project or a key; its plan may add more."""
    from musespark.accounts.limits import NO_LIMITS
    from musespark.accounts.limits_config import read_limits

    with open_accounts(state_dir) as accounts:
        found = dataclasses.asdict(read_limits(accounts.database, [subject]).get(subject, NO_LIMITS))
    if as_json:
        print(json.dumps(found))
        return
    print_table(("limit", "value"), [(name, "–" if value is None else f"{value:,}") for name, value in found.items()])


@limit_app.command("set")
def set_limits(
    subject: SubjectArgument,
    requests_per_minute: int | None = None,
    requests_per_day: int | None = None,
    tokens_per_minute: int | None = None,
    tokens_per_day: int | None = None,
    images_per_minute: int | None = None,
    images_per_day: int | None = None,
    concurrent_requests: int | None = None,
    context_tokens: int | None = None,
    state_dir: StateOption = None,
) -> None:
    """Replace all limits of an organisation, a project or a key; what is left out is no limit."""
    from musespark.accounts import limits_config
    from musespark.accounts.actor import machine
    from musespark.accounts.limits import Limits
    from musespark.accounts.witness import Witness, owner_of

    new = Limits(
        requests_per_minute=requests_per_minute,
        requests_per_day=requests_per_day,
        tokens_per_minute=tokens_per_minute,
        tokens_per_day=tokens_per_day,
        images_per_minute=images_per_minute,
        images_per_day=images_per_day,
        concurrent_requests=concurrent_requests,
        context_tokens=context_tokens,
    )
    with open_accounts(state_dir) as accounts:
        owner = owner_of(accounts.database, subject)
        given = {name: value for name, value in dataclasses.asdict(new).items() if value is not None}
        witness = Witness(accounts.database, machine(), "limits.set", subject, organisation_id=owner, **given)
        limits_config.set_limits(witness, subject, new)
    print(f"limits of {subject} are set; they hold within half a second")
