"""`musespark usage` and `musespark limit` on a state folder with real charges."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from musespark.accounts.accounts import Accounts
from musespark.accounts.lines import Lines
from musespark.cli import app
from musespark.errors import InvalidRequest, NotFound


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def key(state_dir: Path) -> tuple[str, str]:
    """The ids of an organisation and of its key, under which two requests were made."""
    with Accounts.open(state_dir) as accounts:
        new = accounts.create_key("laptop")
        identity = accounts.verify(new.secret)
        for number in range(2):
            price = accounts.ledger.price("nano")
            hold = accounts.ledger.open_hold(
                f"req_{number}",
                identity.organisation_id,
                identity.project_id,
                identity.key_id,
                price,
                text_in=9,
                output=5,
            )
            accounts.ledger.settle(hold, Lines(text_in=9, output=5))
        return identity.organisation_id, identity.key_id


def run(state_dir: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--state-dir", str(state_dir)])


def test_usage_shows_what_was_used(state_dir: Path, key: tuple[str, str]) -> None:
    [row] = json.loads(run(state_dir, "usage", key[0], "--json").stdout)
    assert (row["requests"], row["text_in"], row["output"], row["amount_nano"]) == (2, 18, 10, 0)
    table = run(state_dir, "usage", key[0], "--bucket", "hour", "--group-by", "key", "--group-by", "model").stdout
    assert key[1] in table
    assert "nano" in table
    assert isinstance(run(state_dir, "usage", key[0], "--bucket", "week").exception, InvalidRequest)
    assert isinstance(run(state_dir, "usage", key[0], "--group-by", "user").exception, InvalidRequest)


def test_limits_are_set_shown_and_noted(state_dir: Path, key: tuple[str, str]) -> None:
    done = run(state_dir, "limit", "set", key[1], "--requests-per-minute", "5", "--context-tokens", "1000")
    assert done.exit_code == 0, done.output
    shown = json.loads(run(state_dir, "limit", "show", key[1], "--json").stdout)
    assert (shown["requests_per_minute"], shown["context_tokens"], shown["tokens_per_day"]) == (5, 1000, None)
    assert "requests_per_minute  5" in run(state_dir, "limit", "show", key[1]).stdout
    assert "limits.set" in run(state_dir, "audit").stdout + run(state_dir, "audit", "list").stdout
    assert isinstance(run(state_dir, "limit", "set", "key_none").exception, NotFound)
    assert isinstance(run(state_dir, "limit", "set", key[1], "--tokens-per-day", "-1").exception, InvalidRequest)
