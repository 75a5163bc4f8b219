"""A release from draft to retired: who is let in when, what is promised, and what nobody can undo."""

from __future__ import annotations

import itertools
import statistics
import threading
import time
from dataclasses import replace
from email.utils import parsedate_to_datetime

import pytest

from musespark.accounts import early_access, organisations, release_stages
from musespark.accounts.accounts import Accounts
from musespark.accounts.actor import Actor, machine
from musespark.accounts.release_changes import ReleaseChanges
from musespark.accounts.release_stages import MOVES, STAGES, DataPolicy, Release, Stage, bucket
from musespark.accounts.releases import Catalogue, Listed, read_catalogue
from musespark.accounts.verify import Identity
from musespark.errors import (
    Conflict,
    InsufficientScope,
    InvalidRequest,
    ModelNotFound,
    ModelNotReleased,
    ModelShutdown,
    MoveNotAllowed,
    MuseSparkError,
    NotFound,
)

NOW = 1_800_000_000
DAY = 86_400
SERVED = frozenset({"nano"})
OURS = Identity("key_1", "proj_1", "org_ours", b"", internal=True)
PARTNER = Identity("key_2", "proj_2", "org_partner", b"")
STRANGER = Identity("key_3", "proj_3", "org_stranger", b"")
CALLERS = {"ours": OURS, "partner": PARTNER, "stranger": STRANGER}


def catalogue(stage: Stage, **fields: object) -> Catalogue:
    release = Release("muse-2", "nano", stage, **fields)  # type: ignore[arg-type]
    return Catalogue({"muse-2": release}, {"muse": "muse-2"}, {"muse-2": frozenset({"org_partner"})})


def answer(known: Catalogue, identity: Identity, name: str = "muse-2", now: float = NOW) -> str:
    try:
        return known.admit(identity, name, SERVED, now).name
    except MuseSparkError as error:
        return error.code


@pytest.mark.parametrize(
    ("stage", "ours", "partner", "stranger"),
    [
        ("draft", "model_not_found", "model_not_found", "model_not_found"),
        ("internal", "muse-2", "model_not_found", "model_not_found"),
        ("partner", "muse-2", "muse-2", "model_not_released"),
        ("waitlist", "muse-2", "muse-2", "model_not_released"),
        ("public", "muse-2", "muse-2", "muse-2"),
        ("deprecated", "muse-2", "muse-2", "muse-2"),
        ("retired", "model_shutdown", "model_shutdown", "model_shutdown"),
    ],
)
def test_who_is_let_in_at_each_stage(stage: Stage, ours: str, partner: str, stranger: str) -> None:
    known = catalogue(stage, shutdown_at=NOW + DAY if stage == "deprecated" else NOW - DAY)
    assert {name: answer(known, who) for name, who in CALLERS.items()} == {
        "ours": ours,
        "partner": partner,
        "stranger": stranger,
    }


def test_an_alias_answers_with_its_snapshot_and_a_key_may_be_for_either_name() -> None:
    known = catalogue("public")
    assert answer(known, STRANGER, "muse") == "muse-2"
    for models, expected in (({"muse"}, "muse-2"), ({"muse-2"}, "muse-2"), ({"other"}, "insufficient_scope")):
        scoped = replace(STRANGER, models=frozenset(models))
        assert answer(known, scoped, "muse") == expected
    only_alias = replace(STRANGER, models=frozenset({"muse"}))
    assert answer(known, only_alias, "muse-2") == "insufficient_scope"


def test_a_refusal_before_the_launch_says_the_date_and_how_to_apply() -> None:
    with pytest.raises(ModelNotReleased, match=r"launch is on 2027-01-16T08:00:00Z; apply with POST") as caught:
        catalogue("partner", launch_at=NOW + DAY).admit(STRANGER, "muse", SERVED, NOW)
    assert caught.value.details == {"launch_at": "2027-01-16T08:00:00Z"}  # `date -u -d @1800086400`
    with pytest.raises(ModelNotReleased, match="no launch date yet") as caught:
        catalogue("waitlist").admit(STRANGER, "muse-2", SERVED, NOW)
    assert caught.value.details == {"launch_at": None}
    assert caught.value.status == 403


def test_public_begins_at_the_launch_date_and_not_a_second_before() -> None:
    known = catalogue("public", launch_at=NOW)
    assert answer(known, STRANGER, now=NOW - 1) == "model_not_released"
    assert answer(known, PARTNER, now=NOW - 1) == "muse-2"
    assert answer(known, STRANGER, now=NOW) == "muse-2"


def test_deprecated_ends_at_the_shutdown_date_and_names_the_replacement() -> None:
    known = catalogue("deprecated", shutdown_at=NOW, replacement="muse-3")
    assert answer(known, STRANGER, now=NOW - 1) == "muse-2"
    with pytest.raises(ModelShutdown, match="use 'muse-3' instead") as caught:
        known.admit(STRANGER, "muse", SERVED, NOW)
    assert caught.value.details == {"shutdown_date": "2027-01-15T08:00:00Z", "replacement": "muse-3"}
    assert caught.value.status == 410


def test_deprecation_headers_are_those_of_the_rfcs() -> None:
    release = Release("muse-2", "nano", "deprecated", shutdown_at=NOW + DAY, stage_since=NOW - DAY)
    headers = release.headers(NOW)
    assert headers["deprecation"] == f"@{NOW - DAY}"  # RFC 9745: a structured date
    assert parsedate_to_datetime(headers["sunset"]).timestamp() == NOW + DAY  # RFC 8594: an HTTP date
    assert headers["x-release-stage"] == "deprecated"
    assert Release("m", "m", "public").headers(NOW) == {"x-release-stage": "public"}


def test_with_nothing_configured_the_served_model_is_public_under_its_own_name() -> None:
    assert answer(Catalogue(), STRANGER, "nano") == "nano"
    assert [item.id for item in Catalogue().visible(STRANGER, SERVED, NOW)] == ["nano"]


def test_a_release_of_a_model_takes_its_own_name_away_so_that_nobody_gets_around_the_gate() -> None:
    assert answer(catalogue("partner"), STRANGER, "nano") == "model_not_found"


def test_a_release_whose_model_is_not_here_is_not_found() -> None:
    known = Catalogue({"big": Release("big", "elsewhere", "public")})
    assert answer(known, STRANGER, "big") == "model_not_found"
    assert not known.find(STRANGER, "big", SERVED, NOW).admitted


@pytest.mark.parametrize(
    ("stage", "fields", "listed"),
    [
        ("draft", {}, set()),
        ("internal", {}, {"ours"}),
        ("partner", {}, {"ours", "partner", "stranger"}),
        ("public", {}, {"ours", "partner", "stranger"}),
        ("retired", {}, set()),
    ],
)
def test_the_list_of_models_never_shows_what_is_secret(
    stage: Stage, fields: dict[str, object], listed: set[str]
) -> None:
    known = catalogue(stage, launch_at=None if stage == "public" else NOW + DAY)
    shown = {name: [item.id for item in known.visible(who, SERVED, NOW)] for name, who in CALLERS.items()}
    assert {name for name, ids in shown.items() if ids} == listed
    assert all(ids in ([], ["muse", "muse-2"]) for ids in shown.values())


def test_a_partners_release_without_a_date_answers_by_name_and_is_not_listed() -> None:
    known = catalogue("partner")
    assert known.visible(STRANGER, SERVED, NOW) == []
    assert [item.id for item in known.visible(PARTNER, SERVED, NOW)] == ["muse", "muse-2"]
    assert not known.find(STRANGER, "muse-2", SERVED, NOW).admitted


def test_a_listed_model_says_its_stage_dates_snapshot_and_data_policy() -> None:
    listed: Listed = catalogue("waitlist", launch_at=NOW + DAY).find(STRANGER, "muse", SERVED, NOW)
    assert listed.as_object() == {
        "stage": "waitlist",
        "launch_at": "2027-01-16T08:00:00Z",
        "shutdown_date": None,
        "replacement": None,
        "alias_of": "muse-2",
        "snapshot": "muse-2",
        "admitted": False,
        "data_policy": {"training": False, "retention_days": 0, "region": "local"},
    }


def test_the_public_calendar_shows_what_is_announced_and_nothing_else() -> None:
    releases = {
        "a": Release("a", "x", "draft", launch_at=NOW + DAY),
        "b": Release("b", "x", "internal", launch_at=NOW + DAY),
        "c": Release("c", "x", "partner"),
        "d": Release("d", "x", "partner", launch_at=NOW + DAY),
        "e": Release("e", "x", "waitlist"),
        "f": Release("f", "x", "public"),
        "g": Release("g", "x", "retired", shutdown_at=NOW - DAY),
        "h": Release("h", "x", "retired"),
    }
    assert [item.id for item in Catalogue(releases).calendar(frozenset(), NOW)] == ["d", "e", "f", "g"]


# The ramp.


def test_the_ramp_only_ever_adds_organisations() -> None:
    ids = [f"org_{i}" for i in range(2000)]
    inside: set[str] = set()
    for basis_points in (0, 100, 1000, 5000, 10_000):
        release = Release("muse-2", "nano", "waitlist", ramp_basis_points=basis_points)
        now_inside = {name for name in ids if release.lets_in(name, internal=False, invited=False, now=NOW)}
        assert inside <= now_inside
        # Binomial: five standard deviations around the share.
        share = basis_points / 10_000
        assert abs(len(now_inside) - 2000 * share) <= 5 * (2000 * share * (1 - share)) ** 0.5
        inside = now_inside
    assert len(inside) == 2000


def test_each_release_draws_its_organisations_anew() -> None:
    ids = [f"org_{i}" for i in range(1000)]
    pairs = [(bucket("muse-2", name), bucket("muse-3", name)) for name in ids]
    assert abs(statistics.correlation(*zip(*pairs, strict=True))) < 0.16  # five standard deviations of 1/√1000
    assert bucket("muse-2", "org_1") == bucket("muse-2", "org_1")


# The rules, on both databases.


class Clock:
    def __init__(self) -> None:
        self.now = float(NOW)

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def changes(accounts: Accounts, clock: Clock) -> ReleaseChanges:
    changes = ReleaseChanges(accounts.database, Actor("person", "person_1", "ann@example.com", "192.0.2.7"), clock)
    changes.create("muse-2", "nano", "the next one")
    return changes


PATH: tuple[Stage, ...] = ("internal", "partner", "waitlist", "public", "deprecated", "retired")


def bring_to(changes: ReleaseChanges, clock: Clock, stage: Stage, name: str = "muse-2") -> None:
    for step in PATH[: PATH.index(stage) + 1] if stage != "draft" else ():
        if step == "retired":
            clock.now += 2 * DAY
        changes.move(name, step, "on the way", shutdown_at=int(clock.now) + DAY if step == "deprecated" else None)


def stage_of(accounts: Accounts, name: str = "muse-2") -> Stage:
    return read_catalogue(accounts.database).releases[name].stage


def test_every_move_that_is_not_in_the_table_is_refused_and_changes_nothing() -> None:
    """The table by hand: one step forward; back as long as no public promise breaks; a way out before the launch."""
    allowed = {
        ("draft", "internal"),
        ("internal", "partner"),
        ("partner", "waitlist"),
        ("partner", "public"),
        ("waitlist", "public"),
        ("public", "deprecated"),
        ("deprecated", "retired"),
        ("internal", "draft"),
        ("partner", "internal"),
        ("waitlist", "partner"),
        ("public", "waitlist"),
        ("deprecated", "public"),
        ("draft", "retired"),
        ("internal", "retired"),
        ("partner", "retired"),
        ("waitlist", "retired"),
    }
    assert {(a, b) for a, targets in MOVES.items() for b in targets} == allowed
    for before, to in itertools.product(STAGES, STAGES):
        release = Release("muse-2", "nano", before, shutdown_at=NOW - 1)
        if (before, to) in allowed:
            release_stages.check_move(release, to, NOW)
        else:
            with pytest.raises(MoveNotAllowed, match=f"in stage {before} and can't go to {to}"):
                release_stages.check_move(release, to, NOW)


def test_a_whole_life_is_in_the_history_with_who_when_and_why(
    changes: ReleaseChanges, accounts: Accounts, clock: Clock
) -> None:
    bring_to(changes, clock, "retired")
    history = early_access.events(accounts.database, "muse-2")
    moves = [(event.value_before, event.value_after) for event in history if event.kind == "moved"]
    assert moves == list(itertools.pairwise(("draft", *PATH)))
    assert {(event.actor_id, event.actor_name) for event in history} == {("person_1", "ann@example.com")}
    assert {event.why for event in history} == {"the next one", "on the way"}
    assert [event.at for event in history][-1] == NOW + 2 * DAY


@pytest.mark.parametrize("why", ["", "   ", "\x00", "x" * 2001])
def test_nothing_moves_without_a_reason(changes: ReleaseChanges, accounts: Accounts, why: str) -> None:
    with pytest.raises(InvalidRequest, match="the reason has 1 to 2,000 printable characters"):
        changes.move("muse-2", "internal", why)
    assert stage_of(accounts) == "draft"


def test_a_slipped_date_is_an_event_with_its_reason(changes: ReleaseChanges, accounts: Accounts) -> None:
    changes.commit_launch("muse-2", NOW + 10 * DAY, "partners are happy")
    changes.commit_launch("muse-2", NOW + 20 * DAY, "bugs surfaced in testing")
    changes.commit_launch("muse-2", NOW + 15 * DAY, "they were small")
    kinds = [(e.kind, e.value_after, e.why) for e in early_access.events(accounts.database, "muse-2")][1:]
    assert kinds == [
        ("launch_committed", "2027-01-25T08:00:00Z", "partners are happy"),
        ("launch_slipped", "2027-02-04T08:00:00Z", "bugs surfaced in testing"),
        ("launch_advanced", "2027-01-30T08:00:00Z", "they were small"),
    ]
    assert [event.why for event in early_access.slips(accounts.database)["muse-2"]] == ["bugs surfaced in testing"]


def test_a_launch_after_its_date_is_recorded_as_a_slip_by_itself(
    changes: ReleaseChanges, accounts: Accounts, clock: Clock
) -> None:
    changes.commit_launch("muse-2", NOW + DAY, "soon")
    bring_to(changes, clock, "waitlist")
    clock.now += 3 * DAY
    assert read_catalogue(accounts.database).releases["muse-2"].overdue_at(clock.now)
    changes.move("muse-2", "public", "infrastructure was late")
    [slip] = early_access.slips(accounts.database)["muse-2"]
    assert (slip.value_before, slip.value_after, slip.why) == (
        "2027-01-16T08:00:00Z",
        "2027-01-18T08:00:00Z",
        "infrastructure was late",
    )


def test_public_without_a_date_begins_now_and_its_date_is_history_then(changes: ReleaseChanges, clock: Clock) -> None:
    bring_to(changes, clock, "waitlist")
    assert changes.move("muse-2", "public", "go").launch_at == NOW
    with pytest.raises(MoveNotAllowed, match="launched already"):
        changes.commit_launch("muse-2", NOW + DAY, "later after all")


@pytest.mark.parametrize("launch_at", [NOW, NOW - 1, -1, NOW + 30 * 366 * DAY])
def test_a_launch_date_is_in_the_future(changes: ReleaseChanges, launch_at: int) -> None:
    with pytest.raises(InvalidRequest, match="in the next 20 years"):
        changes.commit_launch("muse-2", launch_at, "why not")
    assert changes.commit_launch("muse-2", NOW + 1, "soon").launch_at == NOW + 1


def test_deprecating_needs_a_date_that_can_only_get_later(changes: ReleaseChanges, clock: Clock) -> None:
    bring_to(changes, clock, "public")
    with pytest.raises(InvalidRequest, match="needs a shutdown date"):
        changes.move("muse-2", "deprecated", "old")
    with pytest.raises(InvalidRequest, match="in the past"):
        changes.move("muse-2", "deprecated", "old", shutdown_at=NOW)
    changes.move("muse-2", "deprecated", "old", shutdown_at=NOW + 10 * DAY)
    with pytest.raises(MoveNotAllowed, match="promised until 2027-01-25"):
        changes.move("muse-2", "retired", "too early")
    clock.now = NOW + 10.0 * DAY
    changes.move("muse-2", "retired", "as promised")


def test_a_replacement_exists_and_is_not_itself(changes: ReleaseChanges, clock: Clock) -> None:
    bring_to(changes, clock, "public")
    changes.create("muse-3", "bigger", "after it")
    for name, problem in (("muse-2", "own replacement"), ("muse-3", "in stage draft")):
        with pytest.raises(InvalidRequest, match=problem):
            changes.move("muse-2", "deprecated", "old", shutdown_at=NOW + DAY, replacement=name)
    with pytest.raises(NotFound, match="no release 'muse-9'"):
        changes.move("muse-2", "deprecated", "old", shutdown_at=NOW + DAY, replacement="muse-9")
    bring_to(changes, clock, "public", "muse-3")
    changes.set_alias("muse", "muse-3", "the newest")
    assert changes.move("muse-2", "deprecated", "o", shutdown_at=NOW + DAY, replacement="muse").replacement == "muse"


def test_the_ramp_grows_in_its_stage_only_and_never_shrinks(changes: ReleaseChanges, clock: Clock) -> None:
    bring_to(changes, clock, "partner")
    with pytest.raises(MoveNotAllowed, match="belongs to the stage waitlist"):
        changes.ramp("muse-2", 5, "too early")
    changes.move("muse-2", "waitlist", "go")
    assert changes.ramp("muse-2", 12.34, "slowly").ramp_basis_points == 1234
    with pytest.raises(MoveNotAllowed, match=r"is at 12\.34%; less would put out"):
        changes.ramp("muse-2", 12.33, "back")
    for percent in (-0.01, 100.01, 12.345, float("nan")):
        with pytest.raises(InvalidRequest, match="percent must be from 0 to 100"):
            changes.ramp("muse-2", percent, "no")
    assert changes.ramp("muse-2", 100, "all").ramp_basis_points == 10_000


def test_taking_a_launch_back_puts_nobody_out(changes: ReleaseChanges, accounts: Accounts, clock: Clock) -> None:
    bring_to(changes, clock, "public")
    changes.move("muse-2", "waitlist", "overload")
    assert answer(read_catalogue(accounts.database), STRANGER) == "muse-2"


def test_a_data_policy_can_not_get_worse_once_customers_have_it(changes: ReleaseChanges, clock: Clock) -> None:
    changes.set_policy("muse-2", DataPolicy(retention_days=30, region="eu-west-1"), "as the lawyers say")
    bring_to(changes, clock, "partner")
    for policy in (
        DataPolicy(retention_days=31, region="eu-west-1"),
        DataPolicy(training=True, retention_days=30, region="eu-west-1"),
        DataPolicy(retention_days=30, region="us-east-1"),
    ):
        with pytest.raises(MoveNotAllowed, match="need a new release"):
            changes.set_policy("muse-2", policy, "more data")
    better = DataPolicy(retention_days=7, region="eu-west-1")
    assert changes.set_policy("muse-2", better, "less data").data_policy == better


@pytest.mark.parametrize("days", [-1, 3651])
def test_a_retention_out_of_range_is_refused(changes: ReleaseChanges, days: int) -> None:
    with pytest.raises(InvalidRequest, match="from 0 to 3,650"):
        changes.set_policy("muse-2", DataPolicy(retention_days=days), "why")


@pytest.mark.parametrize("name", ["", "-x", "a b", "a/b", "ü", "x" * 101, "'; DROP TABLE releases; --"])
def test_an_unusable_name_is_refused(changes: ReleaseChanges, name: str) -> None:
    with pytest.raises(InvalidRequest, match="1 to 100 of A-Z"):
        changes.create(name, "nano", "why")
    with pytest.raises(InvalidRequest, match="1 to 100 of A-Z"):
        changes.set_alias(name, "muse-2", "why")


def test_names_of_releases_and_aliases_never_collide(changes: ReleaseChanges) -> None:
    changes.set_alias("muse", "muse-2", "short")
    for name in ("muse", "muse-2"):
        with pytest.raises(Conflict, match="already"):
            changes.create(name, "nano", "again")
    with pytest.raises(Conflict, match="is a release itself"):
        changes.set_alias("muse-2", "muse-2", "loop")


def test_an_alias_moves_and_goes(changes: ReleaseChanges, accounts: Accounts, clock: Clock) -> None:
    changes.create("muse-3", "nano", "after it")
    changes.set_alias("muse", "muse-2", "short")
    changes.set_alias("muse", "muse-3", "newer")
    assert early_access.aliases(accounts.database) == {"muse": "muse-3"}
    [event] = [e for e in early_access.events(accounts.database, "muse-3") if e.kind == "alias_set"]
    assert (event.value_before, event.value_after) == ("muse-2", "muse-3")
    changes.remove_alias("muse", "unused")
    with pytest.raises(NotFound, match="no alias"):
        changes.remove_alias("muse", "again")


# Partners and early access.


def test_a_partner_is_invited_gets_in_and_can_be_uninvited(
    changes: ReleaseChanges, accounts: Accounts, clock: Clock
) -> None:
    bring_to(changes, clock, "partner")
    partner = organisations.create_organisation(accounts.database, machine(), "Partner")
    mine = Identity("key_9", "proj_9", partner.id, b"")
    assert answer(read_catalogue(accounts.database), mine) == "model_not_released"
    changes.invite("muse-2", partner.id, "first partner")
    changes.invite("muse-2", partner.id, "twice is harmless")
    assert early_access.invited(accounts.database, "muse-2") == [partner.id]
    assert answer(read_catalogue(accounts.database), mine) == "muse-2"
    changes.uninvite("muse-2", partner.id, "they left")
    assert answer(read_catalogue(accounts.database), mine) == "model_not_released"
    with pytest.raises(NotFound, match="is not invited"):
        changes.uninvite("muse-2", partner.id, "again")
    with pytest.raises(NotFound, match="no organisation"):
        changes.invite("muse-2", "org_nobody", "typo")


def test_people_wait_in_order_and_move_up(changes: ReleaseChanges, accounts: Accounts, clock: Clock) -> None:
    bring_to(changes, clock, "waitlist")
    names = ("one", "two", "three", "four")
    ids = [organisations.create_organisation(accounts.database, machine(), name).id for name in names]
    places = [early_access.apply(accounts.database, machine(), "muse-2", name, "please").place for name in ids]
    assert places == [1, 2, 3, 4]
    assert early_access.apply(accounts.database, machine(), "muse-2", ids[2]).place == 3  # again: the same place
    changes.invite("muse-2", ids[0], "a partner after all")
    assert changes.admit("muse-2", "the next one", next_in_line=1) == [ids[0]]
    assert changes.admit("muse-2", "the next one", next_in_line=1) == [ids[1]]
    standing = early_access.applications(accounts.database, "muse-2")
    assert [(a.admitted, a.place, a.waiting) for a in standing] == [
        (True, None, 2),
        (True, None, 2),
        (False, 1, 2),
        (False, 2, 2),
    ]
    admitted = replace(STRANGER, organisation_id=ids[1])
    assert answer(read_catalogue(accounts.database), admitted) == "muse-2"
    assert early_access.application(accounts.database, "muse-2", ids[3]).note == "please"


def test_nobody_applies_for_what_is_out_or_secret(changes: ReleaseChanges, accounts: Accounts, clock: Clock) -> None:
    mine = organisations.create_organisation(accounts.database, machine(), "Mine").id
    with pytest.raises(Conflict, match="in stage draft"):
        early_access.apply(accounts.database, machine(), "muse-2", mine)
    bring_to(changes, clock, "waitlist")
    with pytest.raises(NotFound, match="has not applied"):
        early_access.application(accounts.database, "muse-2", mine)
    clock.now = time.time()
    changes.move("muse-2", "public", "go")
    with pytest.raises(Conflict, match="in stage public"):
        early_access.apply(accounts.database, machine(), "muse-2", mine)


@pytest.mark.parametrize("note", ["x" * 2001, "\x1b[2J", "a\x00b"])
def test_a_note_is_text(changes: ReleaseChanges, accounts: Accounts, clock: Clock, note: str) -> None:
    bring_to(changes, clock, "partner")
    mine = organisations.create_organisation(accounts.database, machine(), "Mine").id
    with pytest.raises(InvalidRequest, match="at most 2,000 printable"):
        early_access.apply(accounts.database, machine(), "muse-2", mine, note)
    assert early_access.apply(accounts.database, machine(), "muse-2", mine, "two\nlines").note == "two\nlines"


def test_of_many_who_move_a_release_at_the_same_time_one_does(accounts: Accounts, changes: ReleaseChanges) -> None:
    outcomes: list[str] = []

    def move() -> None:
        try:
            changes.move("muse-2", "internal", "now")
            outcomes.append("moved")
        except MoveNotAllowed:
            outcomes.append("too late")

    threads = [threading.Thread(target=move) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["moved"] + ["too late"] * 7
    assert [event.kind for event in early_access.events(accounts.database, "muse-2")] == ["created", "moved"]


def test_the_cached_catalogue_sees_another_process_within_a_second(accounts: Accounts, changes: ReleaseChanges) -> None:
    assert "muse-4" not in accounts.releases.current().releases
    changes.create("muse-4", "other", "made elsewhere")
    deadline = time.monotonic() + 1.0
    while "muse-4" not in accounts.releases.current().releases:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert accounts.releases.remembered() is not None


def test_a_key_of_another_model_is_told_which_it_is_for() -> None:
    scoped = replace(STRANGER, models=frozenset({"big"}))
    with pytest.raises(InsufficientScope, match=r"not for the model 'muse-2', only for big"):
        catalogue("public").admit(scoped, "muse-2", SERVED, NOW)


def test_operators_may_ask_for_everything_but_drafts_and_what_is_gone() -> None:
    for stage, names in (
        ("draft", []),
        ("internal", ["muse", "muse-2"]),
        ("public", ["muse", "muse-2"]),
        ("retired", []),
    ):
        assert catalogue(stage).names_for_operators(SERVED, NOW) == names  # type: ignore[arg-type]
    assert Catalogue().names_for_operators(SERVED, NOW) == ["nano"]


def test_an_unknown_model_gets_the_names_that_there_are() -> None:
    with pytest.raises(ModelNotFound, match=r"no model 'gpt'; this server has 'muse', 'muse-2'"):
        catalogue("public").admit(STRANGER, "gpt", SERVED, NOW)
