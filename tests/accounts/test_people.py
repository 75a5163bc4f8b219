"""People are invited, join, sign in and out, change roles and leave; and who may do that to whom."""

from __future__ import annotations

import threading

import argon2
import pytest
import sqlalchemy as sa

from musespark.accounts import audit, invitations, organisations, passwords, people, tables
from musespark.accounts.accounts import Accounts
from musespark.accounts.actor import machine
from musespark.accounts.scopes import ROLE_PERMISSIONS, ROLES
from musespark.accounts.sessions import IDLE_S, KEPT_S, LONGEST_S, Sessions
from musespark.accounts.sign_in import PER_ADDRESS, PER_EMAIL, WINDOW_S, SignIn
from musespark.errors import (
    Conflict,
    InsufficientScope,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    SignInFailed,
    TooManySignIns,
)

PASSWORD = "correct horse battery staple"
HERE = "192.0.2.7"


@pytest.fixture(autouse=True)
def _cheap_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """argon2id all the same, with a thousandth of its work: these tests sign in a hundred times."""
    monkeypatch.setattr(passwords, "_hasher", argon2.PasswordHasher(time_cost=1, memory_cost=64, parallelism=1))
    monkeypatch.setattr(passwords, "_nobody_hash", [])


@pytest.fixture
def organisation(accounts: Accounts) -> str:
    return organisations.create_organisation(accounts.database, machine(), "Acme").id


def member(accounts: Accounts, organisation: str, role: str, email: str | None = None) -> str:
    """Somebody who has accepted an invitation; returns their id."""
    email = email or f"{role}@example.com"
    new = invitations.invite(accounts.database, accounts.pepper, machine(), organisation, email, role, None)
    return accounts.sign_in.accept_invitation(new.token, role.title(), PASSWORD, HERE).person_id


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def test_an_invitation_leads_to_a_session_with_the_role(accounts: Accounts, organisation: str) -> None:
    new = invitations.invite(
        accounts.database, accounts.pepper, machine(), organisation, " Ann@Example.COM ", "owner", None
    )
    session = accounts.sign_in.accept_invitation(new.token, "Ann", PASSWORD, HERE)
    identity = accounts.sessions.verify(session.token)
    assert (identity.name, identity.organisation_id, identity.kind) == ("ann@example.com", organisation, "person")
    assert identity.permissions == ROLE_PERMISSIONS["owner"]
    assert "chat.write" not in identity.permissions
    [found] = people.list_members(accounts.database, organisation)
    assert (found.email, found.name, found.role) == ("ann@example.com", "Ann", "owner")


def test_an_invitation_works_once_and_the_newest_only(accounts: Accounts, organisation: str) -> None:
    first, second = (
        invitations.invite(
            accounts.database, accounts.pepper, machine(), organisation, "ann@example.com", "viewer", None
        )
        for _ in range(2)
    )
    with pytest.raises(SignInFailed, match="not known, was used already, or has expired"):
        accounts.sign_in.accept_invitation(first.token, "Ann", PASSWORD, HERE)
    accounts.sign_in.accept_invitation(second.token, "Ann", PASSWORD, HERE)
    with pytest.raises(SignInFailed, match="not known, was used already, or has expired"):
        accounts.sign_in.accept_invitation(second.token, "Ann", PASSWORD, HERE)


def test_a_revoked_invitation_is_over(accounts: Accounts, organisation: str) -> None:
    new = invitations.invite(
        accounts.database, accounts.pepper, machine(), organisation, "ann@example.com", "viewer", None
    )
    invitations.revoke_invitation(accounts.database, machine(), organisation, new.invitation.id)
    with pytest.raises(SignInFailed):
        accounts.sign_in.accept_invitation(new.token, "Ann", PASSWORD, HERE)
    with pytest.raises(NotFound):
        invitations.revoke_invitation(accounts.database, machine(), organisation, new.invitation.id)


def test_an_invitation_is_no_way_into_somebody_elses_account(accounts: Accounts, organisation: str) -> None:
    """Whoever owns an organisation can invite any email: accepting must still need the password of that person."""
    member(accounts, organisation, "owner", "victim@example.com")
    other = organisations.create_organisation(accounts.database, machine(), "Evil").id
    new = invitations.invite(accounts.database, accounts.pepper, machine(), other, "victim@example.com", "viewer", None)
    with pytest.raises(SignInFailed, match="you have an account already"):
        accounts.sign_in.accept_invitation(new.token, "Mallory", "mallory's own password", HERE)
    session = accounts.sign_in.accept_invitation(new.token, "Ann", PASSWORD, HERE)
    assert session.organisation_id == other
    assert len(accounts.sessions.places(session.person_id)) == 2


@pytest.mark.parametrize(
    "email", ["", "ann", "ann@", "@example.com", "a b@example.com", "ann@example", "x" * 250 + "@e.com"]
)
def test_what_is_no_email_is_refused(accounts: Accounts, organisation: str, email: str) -> None:
    with pytest.raises(InvalidRequest, match="is not an email address"):
        invitations.invite(accounts.database, accounts.pepper, machine(), organisation, email, "viewer", None)


@pytest.mark.parametrize("password", ["", "x" * 11, "x" * 257, "abababababababab"])
def test_an_unusable_password_is_refused_without_being_repeated(password: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        passwords.hash_password(password)
    assert not password or password not in caught.value.message
    assert caught.value.param == "password"


def test_passwords_are_stored_as_argon2id_with_the_parameters_of_rfc_9106(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the real hasher
    stored = passwords.hash_password(PASSWORD)
    assert stored.startswith("$argon2id$v=19$m=65536,t=3,p=4$")  # RFC 9106, section 4, second recommendation
    assert passwords.matches(stored, PASSWORD)
    assert not passwords.matches(stored, PASSWORD + "x")
    assert not passwords.matches(None, PASSWORD)


def test_signing_in_needs_the_right_email_and_password(accounts: Accounts, organisation: str) -> None:
    person = member(accounts, organisation, "owner")
    assert accounts.sign_in.with_password("OWNER@example.com", PASSWORD, HERE).person_id == person
    messages = set()
    for email, password in (("owner@example.com", "wrong"), ("nobody@example.com", PASSWORD), ("' OR 1=1 --", "x")):
        with pytest.raises(SignInFailed) as caught:
            accounts.sign_in.with_password(email, password, HERE)
        messages.add(caught.value.message)
    assert messages == {"the email or the password is wrong"}  # the same, whoever exists


def test_five_wrong_passwords_lock_an_email_for_a_while(accounts: Accounts, organisation: str) -> None:
    member(accounts, organisation, "owner")
    clock = Clock()
    sign_in = SignIn(accounts.database, accounts.pepper, accounts.sessions, clock)
    for _ in range(PER_EMAIL):
        with pytest.raises(SignInFailed):
            sign_in.with_password("owner@example.com", "wrong", HERE)
    with pytest.raises(TooManySignIns, match="try again in 15 minutes") as caught:
        sign_in.with_password("owner@example.com", PASSWORD, "198.51.100.1")
    assert caught.value.retry_after_ms == WINDOW_S * 1000
    clock.now += WINDOW_S - 1
    with pytest.raises(TooManySignIns):
        sign_in.with_password("owner@example.com", PASSWORD, HERE)
    clock.now += 1
    sign_in.with_password("owner@example.com", PASSWORD, HERE)


def test_a_right_password_forgives_the_wrong_ones_before_it(accounts: Accounts, organisation: str) -> None:
    member(accounts, organisation, "owner")
    for _ in range(3):
        for _ in range(PER_EMAIL - 1):
            with pytest.raises(SignInFailed):
                accounts.sign_in.with_password("owner@example.com", "wrong", HERE)
        accounts.sign_in.with_password("owner@example.com", PASSWORD, HERE)


def test_one_address_can_not_try_many_emails(accounts: Accounts) -> None:
    for i in range(PER_ADDRESS):
        with pytest.raises(SignInFailed):
            accounts.sign_in.with_password(f"user{i}@example.com", "wrong", HERE)
    with pytest.raises(TooManySignIns):
        accounts.sign_in.with_password("one-more@example.com", "wrong", HERE)
    with pytest.raises(SignInFailed):
        accounts.sign_in.with_password("one-more@example.com", "wrong", "198.51.100.1")


def test_guesses_at_the_same_moment_get_no_further_than_guesses_in_a_row(accounts: Accounts, organisation: str) -> None:
    member(accounts, organisation, "owner")
    outcomes: list[str] = []

    def guess() -> None:
        try:
            accounts.sign_in.with_password("owner@example.com", "wrong", HERE)
        except (SignInFailed, TooManySignIns) as error:
            outcomes.append(error.code)

    threads = [threading.Thread(target=guess) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("sign_in_failed") == PER_EMAIL
    assert outcomes.count("too_many_sign_ins") == 20 - PER_EMAIL


@pytest.fixture
def clocked(accounts: Accounts) -> tuple[Sessions, Clock]:
    clock = Clock()
    return Sessions(accounts.database, accounts.pepper, clock), clock


def test_a_session_ends_after_idle_hours_and_after_a_week_in_any_case(
    accounts: Accounts, organisation: str, clocked: tuple[Sessions, Clock]
) -> None:
    sessions, clock = clocked
    person = member(accounts, organisation, "viewer")
    idle, busy = sessions.begin(person, HERE), sessions.begin(person, HERE)
    begun = clock.now
    clock.now = begun + IDLE_S - 1
    sessions.verify(busy.token)
    clock.now = begun + IDLE_S
    with pytest.raises(SignInFailed):
        sessions.verify(idle.token)
    while clock.now < begun + LONGEST_S - 3600:
        sessions.verify(busy.token)
        clock.now += 3600 * 11
    clock.now = begun + LONGEST_S
    with pytest.raises(SignInFailed):
        sessions.verify(busy.token)


def test_sessions_of_long_ago_are_forgotten(
    accounts: Accounts, organisation: str, clocked: tuple[Sessions, Clock]
) -> None:
    sessions, clock = clocked
    person = member(accounts, organisation, "viewer")
    old = sessions.begin(person, HERE)
    clock.now += LONGEST_S + KEPT_S + 1
    new = sessions.begin(person, HERE)
    with accounts.database.read() as connection:
        ids = set(connection.scalars(sa.select(tables.sessions.c.id)))
    assert new.id in ids
    assert old.id not in ids


def test_signing_out_leaving_a_new_password_disabling_and_a_suspension_end_sessions_at_once(
    accounts: Accounts, organisation: str
) -> None:
    member(accounts, organisation, "owner")
    person = member(accounts, organisation, "viewer")

    def ended_by(act: object) -> bool:
        session = accounts.sessions.begin(person, HERE)
        accounts.sessions.verify(session.token)
        act(session)  # type: ignore[operator]
        try:
            accounts.sessions.verify(session.token)
        except SignInFailed:
            return True
        return False

    database, email = accounts.database, "viewer@example.com"
    assert ended_by(lambda session: accounts.sessions.end(session.id))
    assert ended_by(lambda _: people.set_password(database, machine(), email, "another long password"))
    assert ended_by(lambda _: people.set_disabled(database, machine(), email, True))
    with pytest.raises(SignInFailed, match="the email or the password is wrong"):
        accounts.sign_in.with_password(email, "another long password", HERE)
    people.set_disabled(database, machine(), email, False)
    accounts.sign_in.with_password(email, "another long password", HERE)
    assert ended_by(lambda _: organisations.update_organisation(database, machine(), organisation, suspended=True))
    organisations.update_organisation(database, machine(), organisation, suspended=False)
    assert ended_by(lambda _: people.remove_member(database, machine(), organisation, person, None))


def test_a_forged_session_is_refused_and_the_stored_digest_is_no_session(accounts: Accounts, organisation: str) -> None:
    session = accounts.sessions.begin(member(accounts, organisation, "viewer"), HERE)
    with accounts.database.read() as connection:
        digest = connection.scalar(sa.select(tables.sessions.c.digest).where(tables.sessions.c.id == session.id))
    for token in ("", "ses-muse-", session.token[:-1], session.id, digest.hex()):
        with pytest.raises(SignInFailed):
            accounts.sessions.verify(token)


def test_the_csrf_token_is_that_of_the_session(accounts: Accounts, organisation: str) -> None:
    person = member(accounts, organisation, "viewer")
    one, two = accounts.sessions.begin(person, HERE), accounts.sessions.begin(person, HERE)
    accounts.sessions.check_csrf(one.token, one.csrf_token)
    for given in (None, "", two.csrf_token, one.csrf_token[:-1], "ü"):
        with pytest.raises(PermissionDenied, match="x-csrf-token"):
            accounts.sessions.check_csrf(one.token, given)


# Who may do what to whom.


@pytest.mark.parametrize("mine", ROLES)
@pytest.mark.parametrize("theirs", ROLES)
def test_nobody_gives_a_role_that_can_do_more_than_their_own(
    accounts: Accounts, organisation: str, mine: str, theirs: str
) -> None:
    rank = {"viewer": 0, "billing": 1, "developer": 1, "admin": 2, "owner": 3}  # by hand
    held = ROLE_PERMISSIONS[mine]  # type: ignore[index]
    above = rank[theirs] > rank[mine] or (rank[theirs] == 1 and mine not in (theirs, "admin", "owner"))
    try:
        invitations.invite(accounts.database, accounts.pepper, machine(), organisation, "ann@example.com", theirs, held)
        refused = False
    except InsufficientScope:
        refused = True
    assert refused == above


def test_an_admin_can_not_touch_an_owner(accounts: Accounts, organisation: str) -> None:
    member(accounts, organisation, "owner")
    second = member(accounts, organisation, "owner", "second@example.com")
    held = ROLE_PERMISSIONS["admin"]
    with pytest.raises(InsufficientScope):
        people.change_role(accounts.database, machine(), organisation, second, "viewer", held)
    with pytest.raises(InsufficientScope):
        people.remove_member(accounts.database, machine(), organisation, second, held)


def test_an_organisation_keeps_an_owner(accounts: Accounts, organisation: str) -> None:
    owner = member(accounts, organisation, "owner")
    with pytest.raises(Conflict, match="last owner"):
        people.change_role(accounts.database, machine(), organisation, owner, "admin", None)
    with pytest.raises(Conflict, match="last owner"):
        people.remove_member(accounts.database, machine(), organisation, owner, None)
    member(accounts, organisation, "owner", "second@example.com")
    assert people.change_role(accounts.database, machine(), organisation, owner, "admin", None).role == "admin"


def test_a_role_changes_what_an_open_session_may_do(accounts: Accounts, organisation: str) -> None:
    member(accounts, organisation, "owner")
    person = member(accounts, organisation, "admin")
    session = accounts.sessions.begin(person, HERE)
    people.change_role(accounts.database, machine(), organisation, person, "viewer", None)
    assert accounts.sessions.verify(session.token).permissions == ROLE_PERMISSIONS["viewer"]


def test_people_of_another_organisation_do_not_exist_here(accounts: Accounts, organisation: str) -> None:
    other = organisations.create_organisation(accounts.database, machine(), "Other").id
    person = member(accounts, organisation, "viewer")
    with pytest.raises(NotFound):
        people.change_role(accounts.database, machine(), other, person, "admin", None)
    session = accounts.sessions.begin(person, HERE)
    with pytest.raises(NotFound, match="that you are in"):
        accounts.sessions.switch(session.id, person, other)


def test_an_operator_works_everywhere(accounts: Accounts, organisation: str) -> None:
    people.add_person(accounts.database, machine(), "root@example.com", "Root", PASSWORD, operator=True)
    session = accounts.sign_in.with_password("root@example.com", PASSWORD, HERE)
    identity = accounts.sessions.verify(session.token)
    assert identity.operates
    assert identity.internal  # the operator's own organisation, which the first session makes
    accounts.sessions.switch(session.id, session.person_id, organisation)
    assert accounts.sessions.verify(session.token).organisation_id == organisation


# The audit log.


def test_every_administrative_act_leaves_an_event_and_no_secret(accounts: Accounts, organisation: str) -> None:
    new = invitations.invite(
        accounts.database, accounts.pepper, machine(), organisation, "ann@example.com", "owner", None
    )
    session = accounts.sign_in.accept_invitation(new.token, "Ann", PASSWORD, HERE)
    accounts.sign_in.with_password("ann@example.com", PASSWORD, HERE)
    with pytest.raises(SignInFailed):
        accounts.sign_in.with_password("ann@example.com", "a wrong password", HERE)
    key = accounts.create_key("laptop", organisation_id=organisation)
    accounts.rotate_key(key.key.id, overlap_s=60)
    accounts.revoke_key(key.key.id)
    events = audit.list_events(accounts.database)
    assert [event.action for event in reversed(events)] == [
        "organisation.create",
        "person.invite",
        "person.join",
        "sign_in.password",
        "sign_in.fail",
        "key.create",
        "key.rotate",
        "key.revoke",
    ]
    assert {event.source for event in events if event.actor_kind == "person"} == {HERE}
    text = repr(events)
    for secret in (new.token, session.token, PASSWORD, "a wrong password", key.secret[12:]):
        assert secret not in text


@pytest.mark.parametrize("statement", ["UPDATE audit_events SET action = 'nothing'", "DELETE FROM audit_events"])
@pytest.mark.parametrize("table", ["audit_events", "release_events"])
def test_the_database_itself_refuses_to_change_history(accounts: Accounts, statement: str, table: str) -> None:
    organisations.create_organisation(accounts.database, machine(), "Acme")
    with accounts.database.write() as connection:
        connection.exec_driver_sql(
            "INSERT INTO releases (name, model, stage, stage_since, ramp_basis_points, training, retention_days,"
            " region, created_at) VALUES ('a', 'b', 'draft', 0, 0, false, 0, 'local', 0)"
        )
        connection.exec_driver_sql(
            "INSERT INTO release_events (release_name, at, kind, why, actor_kind, actor_id, actor_name)"
            " VALUES ('a', 0, 'created', 'x', 'x', 'x', 'x')"
        )
    text = statement.replace("audit_events", table).replace("action", "action" if table == "audit_events" else "why")
    with pytest.raises(sa.exc.DatabaseError, match="append-only"), accounts.database.write() as connection:
        connection.exec_driver_sql(text)


def test_events_are_read_page_by_page_newest_first(accounts: Accounts) -> None:
    for i in range(5):
        organisations.create_organisation(accounts.database, machine(), f"Org {i}")
    first = audit.list_events(accounts.database, limit=2)
    rest = audit.list_events(accounts.database, before_id=first[-1].id, limit=1000)
    assert [event.details["name"] for event in first + rest] == [f"Org {i}" for i in (4, 3, 2, 1, 0)]
    for limit in (0, 1001):
        with pytest.raises(InvalidRequest, match="from 1 to 1,000"):
            audit.list_events(accounts.database, limit=limit)
