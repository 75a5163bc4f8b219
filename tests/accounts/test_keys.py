"""Making, listing, revoking and checking keys, as the command line and the API do."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from musespark.accounts import organisations, scopes, service_accounts, verify
from musespark.accounts.accounts import Accounts
from musespark.accounts.actor import machine
from musespark.accounts.database import Database
from musespark.accounts.secret import create_pepper, new_secret
from musespark.accounts.verify import KeyVerifier
from musespark.errors import (
    Conflict,
    DatabaseUnavailable,
    InsufficientScope,
    InvalidApiKey,
    InvalidRequest,
    NotFound,
    RevokedApiKey,
    StateError,
)


def test_the_first_start_makes_one_key_and_later_starts_make_none(state_dir: Path) -> None:
    with Accounts.open(state_dir) as accounts:
        new = accounts.create_first_key()
        assert new is not None
        assert accounts.create_first_key() is None
    with Accounts.open(state_dir) as accounts:
        assert accounts.create_first_key() is None
        assert accounts.verify(new.secret).key_id == new.key.id


def test_no_first_key_is_made_where_a_person_made_one(accounts: Accounts) -> None:
    accounts.revoke_key(accounts.create_key("laptop").key.id)
    assert accounts.create_first_key() is None


def test_a_key_is_listed_without_its_secret(accounts: Accounts) -> None:
    before = int(time.time())
    new = accounts.create_key("  laptop ", expires_at=before + 1000)
    [key] = accounts.list_keys()
    assert key == new.key
    assert (key.name, key.prefix, key.expires_at) == ("laptop", new.secret[:12], before + 1000)
    assert before <= key.created_at <= time.time()
    assert (key.last_used_at, key.revoked_at) == (None, None)
    assert new.secret not in repr(key) + repr(new) + repr(accounts.verify(new.secret))


@pytest.mark.parametrize("name", ["", "   ", "a\nb", "\x1b[31m", "x" * 201])
def test_an_unusable_name_is_refused(accounts: Accounts, name: str) -> None:
    with pytest.raises(InvalidRequest, match="1 to 200 printable characters"):
        accounts.create_key(name)


def test_the_longest_name_is_accepted(accounts: Accounts) -> None:
    assert accounts.create_key("x" * 200).key.name == "x" * 200


def test_an_expiry_in_the_past_is_refused(accounts: Accounts) -> None:
    with pytest.raises(InvalidRequest, match="in the past"):
        accounts.create_key("late", expires_at=int(time.time()) - 1)


def test_two_keys_of_one_organisation_share_a_salt_that_another_server_does_not(
    accounts: Accounts, tmp_path: Path
) -> None:
    one, two = (accounts.verify(accounts.create_key(name).secret) for name in ("one", "two"))
    assert one.key_id != two.key_id
    assert one.cache_salt == two.cache_salt
    assert len(one.cache_salt) == 32
    with Accounts.open(tmp_path / "other") as other:
        assert other.verify(other.create_key("one").secret).cache_salt != one.cache_salt


@pytest.mark.parametrize("secret", ["", "sk-muse-", "Bearer", "sk-muse-" + "0" * 49, "ключ", "\x00" * 57])
def test_what_is_not_a_key_is_refused_without_being_repeated(accounts: Accounts, secret: str) -> None:
    with pytest.raises(InvalidApiKey) as caught:
        accounts.verify(secret)
    assert not secret or caught.value.message.count(secret) == (1 if secret == "sk-muse-" else 0)


def test_a_forged_key_with_a_right_checksum_is_refused(accounts: Accounts) -> None:
    accounts.create_key("real")
    forged = new_secret()
    with pytest.raises(InvalidApiKey, match="not known here") as caught:
        accounts.verify(forged)
    assert forged[8:] not in caught.value.message


def test_a_stored_digest_does_not_authenticate(accounts: Accounts, state_dir: Path, database_url: str | None) -> None:
    accounts.create_key("real")
    database = Database.open(state_dir, database_url)
    with database.read() as connection:
        digest = connection.exec_driver_sql("SELECT digest FROM keys").scalar_one()
    database.close()
    with pytest.raises(InvalidApiKey):
        accounts.verify(digest.hex())


def test_a_revoked_key_ends_at_once_and_stays_in_the_list(accounts: Accounts) -> None:
    new = accounts.create_key("laptop")
    assert accounts.verify(new.secret) == accounts.remembered(new.secret)
    revoked = accounts.revoke_key(new.key.id)
    assert accounts.remembered(new.secret) is None
    with pytest.raises(InvalidApiKey, match="was revoked"):
        accounts.verify(new.secret)
    assert revoked.revoked_at is not None
    assert accounts.list_keys() == [accounts.revoke_key(new.key.id)]


def test_revoking_an_unknown_key_says_how_to_find_the_ids(accounts: Accounts) -> None:
    with pytest.raises(NotFound, match="musespark keys list"):
        accounts.revoke_key("key_unknown")


def test_a_revocation_by_another_process_works_within_a_second(
    accounts: Accounts, state_dir: Path, database_url: str | None
) -> None:
    new = accounts.create_key("laptop")
    accounts.verify(new.secret)
    code = (
        "import pathlib; from musespark.accounts.accounts import Accounts\n"
        f"with Accounts.open(pathlib.Path({str(state_dir)!r}), {database_url!r}) as accounts:\n"
        f"    accounts.revoke_key({new.key.id!r})"
    )
    accounts.verify(new.secret)
    subprocess.run([sys.executable, "-c", code], check=True)
    deadline = time.monotonic() + 1.0
    while time.monotonic() < deadline:
        try:
            accounts.remembered(new.secret) or accounts.verify(new.secret)
        except InvalidApiKey:
            return
        time.sleep(0.02)
    pytest.fail("the key still works a second after its revocation")


def test_a_key_expires_even_while_it_is_remembered(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "CACHE_S", 3600)
    with Accounts.open(state_dir) as accounts:
        expiry = int(time.time()) + 1000
        secret = accounts.create_key("short", expires_at=expiry).secret
    clock = [expiry - 1.0]
    database = Database.open(state_dir)
    verifier = KeyVerifier(database, create_pepper(state_dir / "pepper"), now=lambda: clock[0])
    assert verifier.verify(secret) == verifier.remembered(secret)
    clock[0] = float(expiry)
    assert verifier.remembered(secret) is None
    with pytest.raises(InvalidApiKey, match="has expired"):
        verifier.verify(secret)
    database.close()


def test_last_use_is_noted_once_a_minute(state_dir: Path) -> None:
    with Accounts.open(state_dir) as accounts:
        secret = accounts.create_key("laptop").secret
        clock = [1_000_000.0]
        database = Database.open(state_dir)
        verifier = KeyVerifier(database, create_pepper(state_dir / "pepper"), now=lambda: clock[0])

        def last_used_after(seconds: float) -> int | None:
            clock[0] += seconds
            verifier.forget_all()
            verifier.verify(secret)
            return accounts.list_keys()[0].last_used_at

        assert last_used_after(0) == 1_000_000
        assert last_used_after(59) == 1_000_000
        assert last_used_after(1) == 1_000_060
        database.close()


def test_a_key_works_while_another_process_holds_the_write_lock(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Accounts.open(state_dir) as accounts:
        secret = accounts.create_key("laptop").secret
    monkeypatch.setattr("musespark.accounts.database.BUSY_TIMEOUT_MS", 50)
    with Accounts.open(state_dir) as impatient:
        raw = sqlite3.connect(state_dir / "musespark.db", isolation_level=None)
        raw.execute("BEGIN IMMEDIATE")
        assert impatient.verify(secret).key_id.startswith("key_")
        raw.execute("ROLLBACK")
        raw.close()


def test_the_cache_has_a_bound(accounts: Accounts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "CACHE_ENTRIES", 2)
    secrets = [accounts.create_key(name).secret for name in "abc"]
    for secret in secrets:
        accounts.verify(secret)
    assert [accounts.remembered(secret) is not None for secret in secrets] == [False, True, True]


def test_a_lost_pepper_stops_the_start_while_keys_exist(state_dir: Path) -> None:
    Accounts.open(state_dir).close()
    (state_dir / "pepper").unlink()
    with Accounts.open(state_dir) as accounts:  # no keys yet: nothing is lost
        accounts.create_key("laptop")
    (state_dir / "pepper").unlink()
    with pytest.raises(StateError, match=r"pepper is gone, .* restore it from a backup"):
        Accounts.open(state_dir)


def test_a_pepper_of_another_server_stops_the_start(state_dir: Path) -> None:
    with Accounts.open(state_dir) as accounts:
        accounts.create_key("laptop")
    (state_dir / "pepper").write_bytes(b"x" * 32)
    with pytest.raises(StateError, match="is not the one that the keys"):
        Accounts.open(state_dir)


def test_the_secret_is_nowhere_in_the_state_folder(state_dir: Path) -> None:
    with Accounts.open(state_dir) as accounts:
        secret = accounts.create_key("laptop").secret
        accounts.verify(secret)
        files = [file.read_bytes() for file in state_dir.iterdir()]
    files += [file.read_bytes() for file in state_dir.iterdir()]
    assert not any(secret[12:].encode() in content for content in files)


# Scopes, rotation, and what ends with its owner.


def test_each_way_to_be_wrong_has_its_own_code(accounts: Accounts, state_dir: Path) -> None:
    revoked, rotated = accounts.create_key("a"), accounts.create_key("b")
    accounts.revoke_key(revoked.key.id)
    accounts.rotate_key(rotated.key.id, overlap_s=0)
    codes = {}
    for what, secret in {
        "forged": new_secret(),
        "truncated": rotated.secret[:-1],
        "mistyped": rotated.secret[:20] + ("a" if rotated.secret[20] != "a" else "b") + rotated.secret[21:],
        "revoked": revoked.secret,
        "expired": rotated.secret,
    }.items():
        with pytest.raises(InvalidApiKey) as caught:
            accounts.verify(secret)
        codes[what] = caught.value.code
    assert codes == {
        "forged": "invalid_api_key",
        "truncated": "malformed_api_key",
        "mistyped": "malformed_api_key",
        "revoked": "revoked_api_key",
        "expired": "expired_api_key",
    }


def test_a_rotated_key_works_beside_the_new_one_until_its_overlap_is_over(accounts: Accounts) -> None:
    old = accounts.create_key("laptop", access="read_only", models=["nano"], routes=["models", "usage"])
    new = accounts.rotate_key(old.key.id, overlap_s=3600)
    before, after = accounts.verify(old.secret), accounts.verify(new.secret)
    assert (before.permissions, before.models) == (after.permissions, after.models)
    assert new.key.replaces == old.key.id
    [rotated] = [key for key in accounts.list_keys() if key.id == old.key.id]  # of one second, in any order
    assert rotated.expires_at is not None
    assert abs(rotated.expires_at - time.time() - 3600) < 60
    accounts.revoke_key(old.key.id)
    assert accounts.verify(new.secret).key_id == new.key.id


@pytest.mark.parametrize("overlap_s", [-1, 90 * 86_400 + 1])
def test_an_overlap_out_of_range_is_refused(accounts: Accounts, overlap_s: int) -> None:
    key_id = accounts.create_key("laptop").key.id
    with pytest.raises(InvalidRequest, match="from 0 to 7,776,000"):
        accounts.rotate_key(key_id, overlap_s=overlap_s)


def test_a_key_that_has_ended_is_not_rotated(accounts: Accounts) -> None:
    key_id = accounts.create_key("laptop").key.id
    accounts.revoke_key(key_id)
    with pytest.raises(Conflict, match="has ended already"):
        accounts.rotate_key(key_id, overlap_s=0)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"access": "root"}, "access"),
        ({"models": []}, "models"),
        ({"models": ["a b"]}, "models"),
        ({"models": [f"m{i}" for i in range(101)]}, "models"),
        ({"routes": []}, "routes"),
        ({"routes": ["everything"]}, "routes"),
    ],
)
def test_an_unusable_scope_is_refused(accounts: Accounts, options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        accounts.create_key("laptop", **options)
    assert caught.value.param == field


def test_scopes_only_take_away(accounts: Accounts) -> None:
    everything = accounts.verify(accounts.create_key("all").secret).permissions
    for options in ({"access": "read_only"}, {"routes": ["chat"]}, {"access": "read_only", "routes": ["chat"]}):
        assert accounts.verify(accounts.create_key("less", **options).secret).permissions < everything


@pytest.mark.parametrize("held", [*scopes.ROLE_PERMISSIONS.values(), scopes.ACCESS_PERMISSIONS["admin"]])
@pytest.mark.parametrize("access", scopes.ACCESSES)
def test_nobody_makes_a_key_that_can_do_more_than_they_can(
    accounts: Accounts, held: frozenset[str], access: scopes.Access
) -> None:
    extra = scopes.ACCESS_PERMISSIONS[access] - held - scopes.STANDARD  # what every ordinary key has, anybody may give
    if extra:
        with pytest.raises(InsufficientScope, match="more than you have yourself"):
            accounts.create_key("more", access=access, held=held)
    else:
        accounts.create_key("enough", access=access, held=held)


def test_an_operators_key_belongs_to_the_operators_own_organisation(accounts: Accounts) -> None:
    customer = organisations.create_organisation(accounts.database, machine(), "Customer").id
    with pytest.raises(InvalidRequest, match="internal organisation"):
        accounts.create_key("root", access="operator", organisation_id=customer)
    assert accounts.verify(accounts.create_key("root", access="operator").secret).operates


def test_a_customer_that_came_first_does_not_get_the_operators_first_key(accounts: Accounts) -> None:
    customer = organisations.create_organisation(accounts.database, machine(), "Customer").id
    new = accounts.create_first_key()
    assert new is not None
    assert accounts.verify(new.secret).organisation_id != customer
    assert accounts.verify(new.secret).internal


def test_keys_of_another_organisation_do_not_exist(accounts: Accounts) -> None:
    mine, theirs = (organisations.create_organisation(accounts.database, machine(), name).id for name in "ab")
    key = accounts.create_key("theirs", organisation_id=theirs).key
    assert accounts.list_keys(organisation_id=mine) == []
    with pytest.raises(NotFound):
        accounts.revoke_key(key.id, organisation_id=mine)
    with pytest.raises(NotFound):
        accounts.rotate_key(key.id, overlap_s=0, organisation_id=mine)
    with pytest.raises(NotFound):
        accounts.create_key("foreign", organisation_id=mine, project_id=key.project_id)


def test_keys_end_with_their_service_account_project_and_organisation(accounts: Accounts) -> None:
    database = accounts.database
    mine = organisations.create_organisation(database, machine(), "Mine").id
    project = organisations.create_project(database, machine(), mine, "bots").id
    account = service_accounts.create_service_account(database, machine(), mine, project, "crawler").id
    secret = accounts.create_key("crawler", organisation_id=mine, service_account_id=account).secret
    assert accounts.verify(secret).project_id == project

    def works() -> bool:
        accounts.forget_keys()
        try:
            accounts.verify(secret)
        except RevokedApiKey:
            return False
        return True

    for archived in (True, False):
        organisations.update_project(database, machine(), mine, project, archived=archived)
        assert works() is not archived
        if archived:
            with pytest.raises(Conflict, match="is archived"):
                accounts.create_key("again", organisation_id=mine, project_id=project)
    for suspended in (True, False):
        organisations.update_organisation(database, machine(), mine, suspended=suspended)
        assert works() is not suspended
    service_accounts.disable_service_account(database, machine(), mine, account)
    assert not works()
    with pytest.raises(Conflict, match="is disabled"):
        accounts.create_key("again", organisation_id=mine, service_account_id=account)


def test_a_known_key_works_for_a_while_without_the_database(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Accounts.open(state_dir) as accounts:
        known, unknown = accounts.create_key("known").secret, accounts.create_key("unknown").secret
    monkeypatch.setattr(verify, "CACHE_S", 0.0)
    database = Database.open(state_dir)
    verifier = KeyVerifier(database, create_pepper(state_dir / "pepper"))
    verifier.verify(known)

    def away() -> None:
        raise sa.exc.OperationalError("SELECT", {}, OSError("connection refused"))

    monkeypatch.setattr(database, "read", away)
    assert verifier.verify(known).key_id.startswith("key_")
    with pytest.raises(DatabaseUnavailable) as caught:
        verifier.verify(unknown)
    assert caught.value.status == 503
    monkeypatch.setattr(verify, "OUTAGE_S", 0.0)
    with pytest.raises(DatabaseUnavailable):
        verifier.verify(known)
    database.close()


@pytest.mark.parametrize("text", ["'; DROP TABLE keys; --", '" OR ""="', "%", "a\\'b", "Robert'); DELETE FROM keys"])
def test_sql_in_a_name_is_a_name(accounts: Accounts, text: str) -> None:
    accounts.create_key(text)
    assert [key.name for key in accounts.list_keys()] == [text]
    with pytest.raises(NotFound):
        accounts.revoke_key(text)
    assert accounts.list_keys(organisation_id=text) == []


def test_the_table_of_permissions_in_the_docs_is_the_one_of_the_code() -> None:
    text = (Path(__file__).parents[2] / "docs" / "accounts.md").read_text(encoding="utf-8")
    lines = [line for line in text.split("## Who may do what")[1].splitlines() if line.startswith("| `")]
    documented = {line.split("`")[1]: [cell.strip() == "✓" for cell in line.split("|")[2:-1]] for line in lines}
    holders = [*scopes.ACCESS_PERMISSIONS.values(), *scopes.ROLE_PERMISSIONS.values()]
    assert documented == {name: [name in held for held in holders] for name in scopes.OPERATOR}
