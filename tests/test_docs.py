"""The tables of the docs name exactly what the code has."""

from __future__ import annotations

import re
from pathlib import Path

import typer.main

from musespark import errors
from musespark.api.chat_request import ChatCompletionRequest
from musespark.api.settings import Settings
from musespark.cli import app

ROOT = Path(__file__).parent.parent
API = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")


def table(heading: str) -> list[list[str]]:
    """The cells of the first table under a heading of docs/api.md, without its two head rows."""
    section = API.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def names(cell: str) -> set[str]:
    return set(re.findall(r"`([A-Za-z_]+)`", cell))


def test_every_field_of_a_chat_request_is_documented() -> None:
    documented = set().union(*(names(row[0]) for row in table("Fields of a chat request")))
    assert documented == set(ChatCompletionRequest.model_fields)


def test_every_error_a_client_can_get_is_documented_with_its_status() -> None:
    documented = {(int(row[0]), row[1].strip("`")) for row in table("Errors")}
    classes = [kind for kind in vars(errors).values() if isinstance(kind, type) and kind.__module__ == errors.__name__]
    client = {(kind.status, kind.code) for kind in classes if not issubclass(kind, errors.SetupError)}
    assert documented == client


def test_every_setting_is_documented() -> None:
    documented = set().union(*(names(row[0]) for row in table("Settings")))
    variables = {f"MUSESPARK_{name.upper()}" for name in Settings.model_fields} - {"MUSESPARK_PORT"} | {"PORT"}
    assert documented == variables


def test_every_command_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    command = typer.main.get_command(app)
    for verb in command.commands:  # type: ignore[attr-defined]
        assert f"`musespark {verb} " in readme, verb


def test_the_readme_is_at_most_150_lines() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
