"""The commands about accounts and releases, as a newcomer uses them one after the other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from musespark.accounts.accounts import Accounts
from musespark.cli import app
from musespark.errors import InvalidRequest, MoveNotAllowed, MuseSparkError, NotFound


class Shell:
    """`musespark …` in this process, on one state folder."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir

    def run(self, *arguments: str, stdin: str | None = None) -> Result:
        options = ["--state-dir", str(self.state_dir)]
        return CliRunner().invoke(app, [*arguments, *options], input=stdin)

    def __call__(self, *arguments: str, stdin: str | None = None) -> str:
        """What it prints; fails the test if the command fails."""
        result = self.run(*arguments, stdin=stdin)
        assert result.exit_code == 0, result.output + repr(result.exception)
        return result.stdout.strip()

    def json(self, *arguments: str) -> list[dict[str, object]]:
        return json.loads(self(*arguments, "--json"))

    def refusal(self, *arguments: str, stdin: str | None = None) -> MuseSparkError:
        result = self.run(*arguments, stdin=stdin)
        assert isinstance(result.exception, MuseSparkError), result.output
        return result.exception


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path / "state")


def test_a_newcomer_lets_a_partner_in_and_launches(shell: Shell) -> None:
    partner = shell("org", "create", "Acme Health")
    key = shell("key", "create", "laptop", "--org", partner, "--model", "muse", "--route", "chat")
    assert shell("release", "create", "muse-2", "--model", "nano", "--why", "the next one") == "muse-2: draft"
    for stage in ("internal", "partner"):
        shell("release", "move", "muse-2", stage, "--why", "as planned")
    shell("release", "launch", "muse-2", "2030-12-15T17:00Z", "--why", "press is booked")
    shell("release", "launch", "muse-2", "2031-01-15", "--why", "bugs surfaced in testing")
    shell("release", "invite", "muse-2", "--org", partner, "--why", "first partner")
    shell("release", "alias", "muse", "muse-2", "--why", "short")
    [release] = shell.json("release", "list")
    assert (release["stage"], release["launch_at"]) == ("partner", 1926201600)  # date -u -d 2031-01-15 +%s
    kinds = [event["kind"] for event in shell.json("release", "show", "muse-2")]
    assert kinds == ["created", "moved", "moved", "launch_committed", "launch_slipped", "invited", "alias_set"]
    with Accounts.open(shell.state_dir) as accounts:
        identity = accounts.verify(key)
        assert accounts.releases.current().admit(identity, "muse", {"nano"}, 1_800_000_000).name == "muse-2"
    for line in shell("release", "list").splitlines()[1:]:
        assert line.split() == ["muse-2", "nano", "partner", "2031-01-15", "00:00", "–", "muse"]


def test_the_ramp_and_the_line(shell: Shell) -> None:
    shell("release", "create", "muse-2", "--model", "nano", "--why", "the next one")
    for stage in ("internal", "partner", "waitlist"):
        shell("release", "move", "muse-2", stage, "--why", "as planned")
    assert "25% of organisations" in shell("release", "ramp", "muse-2", "25", "--why", "slowly")
    assert isinstance(shell.refusal("release", "ramp", "muse-2", "10", "--why", "back"), MoveNotAllowed)
    assert shell.json("release", "waiting", "muse-2") == []
    assert shell("release", "admit", "muse-2", "--next", "5", "--why", "whoever") == ""


def test_keys_are_rotated_and_revoked(shell: Shell) -> None:
    shell("key", "create", "laptop", "--access", "read_only", "--expires-days", "10")
    [key] = shell.json("keys", "list")  # the first name of the command still works
    new = shell("key", "rotate", str(key["id"]), "--overlap-hours", "2")
    assert new.startswith("sk-muse-")
    [old, fresh] = sorted(shell.json("key", "list"), key=lambda row: row["replaces"] is not None)
    assert (fresh["replaces"], fresh["access"]) == (key["id"], "read_only")
    assert old["expires_at"] < key["expires_at"]  # type: ignore[operator]
    assert "is revoked" in shell("key", "revoke", str(key["id"]))
    assert new[12:] not in shell("key", "list")


def test_people_are_invited_and_operators_made(shell: Shell) -> None:
    acme = shell("org", "create", "Acme")
    token = shell("people", "invite", "ann@acme.example", "--org", acme, "--role", "owner")
    with Accounts.open(shell.state_dir) as accounts:
        person = accounts.sign_in.accept_invitation(token, "Ann", "correct horse battery", "192.0.2.7").person_id
    [ann] = shell.json("people", "list", "--org", acme)
    assert (ann["email"], ann["role"]) == ("ann@acme.example", "owner")
    assert "last owner" in shell.refusal("people", "role", person, "viewer", "--org", acme).message
    shell("people", "password", "ann@acme.example", stdin="another long password\n")
    with Accounts.open(shell.state_dir) as accounts:
        accounts.sign_in.with_password("ann@acme.example", "another long password", "192.0.2.7")
    assert shell("people", "disable", "ann@acme.example") == "ann@acme.example may not sign in"
    shell("people", "disable", "ann@acme.example", "--undo")
    shell("people", "operator", "root@muse.example", stdin="yet another password\n")
    assert isinstance(shell.refusal("people", "operator", "x@muse.example", stdin="short\n"), InvalidRequest)


def test_projects_service_accounts_and_suspension(shell: Shell) -> None:
    acme = shell("org", "create", "Acme")
    project = shell("project", "create", "site", "--org", acme)
    account = shell("project", "service-account", "crawler", "--org", acme, "--project", project)
    shell("key", "create", "crawler", "--org", acme, "--service-account", account)
    assert [row["name"] for row in shell.json("project", "list", "--org", acme)] == ["default", "site"]
    assert shell.json("key", "list", "--project", project)[0]["service_account_id"] == account
    assert "suspended" in shell("org", "suspend", acme)
    assert "active" in shell("org", "resume", acme)
    assert "(Acme Ltd)" in shell("org", "rename", acme, "Acme Ltd")
    shell("project", "archive", project, "--org", acme)
    assert [row["name"] for row in shell.json("org", "list")] == ["Acme Ltd"]


def test_the_audit_log_names_the_user_and_the_machine(shell: Shell) -> None:
    acme = shell("org", "create", "Acme")
    [event] = shell.json("audit", "list", "--action", "organisation.create")
    assert (event["target"], event["actor_kind"]) == (acme, "machine")
    assert str(event["source"]).startswith("command line on ")
    assert "organisation.create" in shell("audit", "list", "--org", acme)


def test_what_does_not_exist_is_said(shell: Shell) -> None:
    for command in (
        ("key", "revoke", "key_none"),
        ("org", "suspend", "org_none"),
        ("people", "list", "--org", "org_none"),
        ("release", "show", "none"),
        ("project", "create", "x", "--org", "org_none"),
    ):
        assert isinstance(shell.refusal(*command), NotFound), command


@pytest.mark.parametrize("date", ["tomorrow", "2026-13-01", "1800000000000", ""])
def test_a_date_is_written_like_one(shell: Shell, date: str) -> None:
    result = shell.run("release", "launch", "muse-2", date, "--why", "x")
    assert result.exit_code == 2
    assert "2026-12-01T09:00Z" in result.output


def test_prices_plans_credit_and_caps(shell: Shell) -> None:
    acme = shell("org", "create", "Acme")
    said = shell("price", "set", "muse-2", "--text-in", "1250", "--output", "4250", "--cached-in", "150")
    assert said.startswith("version 1 of the price of muse-2 begins 20")
    [price] = shell.json("price", "list", "muse-2")
    assert (price["text_in"], price["image_in"], price["cached_in"], price["reasoning"]) == (1250, 1250, 150, 4250)
    assert "version 1" in shell("plan", "create", "starter", "--name", "Starter", "--included", "500")
    assert shell("plan", "assign", acme, "starter") == f"{acme} has starter, version 1"
    assert "were added" in shell("credit", "add", acme, "1000", "--reference", "payment-1")
    assert "nothing has changed" in shell("credit", "add", acme, "1000", "--reference", "payment-1")
    assert "available          1,500" in shell("credit", "show", acme)
    shell("credit", "cap", acme, "700")
    assert "monthly cap        700" in shell("credit", "show", acme)
    assert shell("plan", "assign", acme) == f"{acme} has no plan"
    assert [row["id"] for row in shell.json("plan", "list")] == ["starter"]
    actions = [event["action"] for event in shell.json("audit", "list")]
    assert actions[:-1] == ["plan.cancel", "cap.set", "credit.add", "plan.subscribe", "plan.create", "price.set"]
    for command in (
        ("credit", "show", "org_none"),
        ("credit", "cap", "key_none", "5"),
        ("plan", "assign", acme, "none"),
    ):
        assert isinstance(shell.refusal(*command), MuseSparkError)
    assert isinstance(shell.refusal("price", "set", "m", "--text-in", "-1", "--output", "1"), InvalidRequest)
