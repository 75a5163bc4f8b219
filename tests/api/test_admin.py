"""The administrative API over HTTP: every route for every kind of caller, and what a newcomer does with it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import argon2
import httpx
import pytest

from musespark.accounts import invitations, organisations, passwords
from musespark.accounts.actor import machine
from musespark.api.access import RULES
from tests.api.world import LOG, MODEL, World, asking, exchange

PASSWORD = "correct horse battery staple"
DAY = 86_400

# Who may do what, by hand and by permission: a letter for each of the callers, in this order.
CALLERS = ("standard", "read_only", "admin", "operator", "owner", "admin person", "developer", "billing", "viewer")
ALLOWED = {
    "chat.write": "so",
    "models.read": "sraoOADBV",
    "usage.read": "sraoOADBV",
    "requests.read": "sraoOADBV",
    "api.read": "sraoOADBV",
    "early_access.read": "sraoOADBV",
    "early_access.write": "saoOAD",
    "server.read": "o",
    "session.read": "aoOADBV",
    "organisation.read": "aoOADBV",
    "organisation.write": "aoOA",
    "projects.read": "aoOADBV",
    "projects.write": "aoOA",
    "keys.read": "aoOAD",
    "keys.write": "aoOAD",
    "service_accounts.read": "aoOAD",
    "service_accounts.write": "aoOA",
    "people.read": "aoOA",
    "people.write": "aoOA",
    "audit.read": "aoOA",
    "billing.read": "aoOAB",
    "billing.write": "aoOAB",
    "limits.read": "sraoOADBV",
    "limits.write": "aoOA",
    "prices.read": "o",
    "prices.write": "o",
    "organisations.read": "o",
    "organisations.write": "o",
    "releases.read": "o",
    "releases.write": "o",
    "server_audit.read": "o",
}
LETTERS = dict(zip(CALLERS, "sraoOADBV", strict=True))


@pytest.fixture(autouse=True)
def _cheap_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "_hasher", argon2.PasswordHasher(time_cost=1, memory_cost=64, parallelism=1))
    monkeypatch.setattr(passwords, "_nobody_hash", [])


@dataclass
class Caller:
    client: httpx.Client
    organisation: str

    def __call__(self, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
        content = None if method == "GET" else json.dumps({} if body is None else body)
        sent = {"content-type": "application/json"} if content is not None else {}
        return self.client.request(method, path, content=content, headers=sent | headers)

    def admin(self, method: str, path: str, body: Any = None) -> httpx.Response:
        return self(method, f"/v1/admin/organisations/{self.organisation}{path}", body)


@contextmanager
def key_caller(world: World, organisation: str | None, **options: Any) -> Iterator[Caller]:
    new = world.accounts.create_key("test", organisation_id=organisation, **options)
    owner = world.accounts.verify(new.secret).organisation_id
    headers = {"authorization": f"Bearer {new.secret}"}
    with httpx.Client(base_url=world.url, headers=headers, timeout=30) as client:
        yield Caller(client, owner)


@contextmanager
def person_caller(world: World, organisation: str, role: str, email: str) -> Iterator[Caller]:
    accounts = world.accounts
    new = invitations.invite(accounts.database, accounts.pepper, machine(), organisation, email, role, None)
    with httpx.Client(base_url=world.url, timeout=30) as client:
        body = {"token": new.token, "name": role, "password": PASSWORD}
        answer = client.post("/v1/auth/invitation", json=body)
        assert answer.status_code == 200, answer.text
        client.headers["x-csrf-token"] = answer.json()["csrf_token"]
        yield Caller(client, organisation)


@contextmanager
def caller(world: World, kind: str, organisation: str) -> Iterator[Caller]:
    if kind == "operator":
        opened = key_caller(world, None, access="operator")
    elif kind in ("standard", "read_only", "admin"):
        opened = key_caller(world, organisation, access=kind)
    else:
        opened = person_caller(
            world, organisation, kind.split()[0], f"{kind.split()[0]}.{organisation[4:].lower()}@a.io"
        )
    with opened as found:
        yield found


@pytest.fixture
def organisation(world: World) -> str:
    return organisations.create_organisation(world.accounts.database, machine(), "Acme").id


@pytest.fixture
def operator(world: World) -> Iterator[Caller]:
    with key_caller(world, None, access="operator") as found:
        yield found


@pytest.mark.parametrize("kind", CALLERS)
def test_every_route_is_open_to_exactly_those_whose_role_has_its_permission(
    world: World, organisation: str, kind: str
) -> None:
    """Every rule with ids that nobody has and an empty body: whoever passes the gate gets another error, or nothing."""
    with caller(world, kind, organisation) as ask:
        for rule in sorted(RULES, key=lambda rule: rule.path == "/v1/auth/sign-out"):
            if rule.permission is None:
                continue
            path = re.sub(r"{.*?}", "nothing", rule.path.replace("{organisation_id}", ask.organisation, 1))
            answer = ask(rule.method, path)
            code = answer.json()["error"]["code"] if answer.status_code >= 400 else "done"
            allowed = LETTERS[kind] in ALLOWED[rule.permission]
            assert (code != "insufficient_scope") == allowed, (rule, answer.text)
            assert answer.status_code < 500, (rule, answer.text)
            assert answer.status_code != 401, (rule, answer.text)


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "127.0.0.1", "x-forwarded-for": "127.0.0.1", "x-forwarded-host": "localhost"},
        {"x-forwarded-proto": "https", "x-forwarded-prefix": "/healthz", "x-original-url": "/healthz"},
        {"x-rewrite-url": "/healthz", "x-forwarded-path": "/v1/status", "forwarded": "for=127.0.0.1;host=localhost"},
        {"x-http-method-override": "GET", "x-method-override": "GET"},
        {"x-user": "root", "x-role": "operator", "x-organisation-id": "org_any"},
    ],
)
def test_no_header_but_the_key_says_who_is_calling(world: World, organisation: str, headers: dict[str, str]) -> None:
    with httpx.Client(base_url=world.url) as stranger, key_caller(world, organisation) as ask:
        for rule in RULES:
            if rule.permission is None:
                continue
            path = re.sub(r"{.*?}", "nothing", rule.path)
            assert stranger.request(rule.method, path, headers=headers).status_code == 401, rule
            if "/admin/" in path:
                expected = 404 if "s" in ALLOWED[rule.permission] else 403
                assert ask(rule.method, path, **headers).status_code == expected, rule


@pytest.mark.parametrize(
    "target",
    [
        "/v1/status/../admin/releases",
        "/v1/status/%2e%2e/admin/releases",
        "/v1/status;/../admin/releases",
        "/v1/admin/releases?/v1/status",
        "/v1//admin/releases",
        "//v1/admin/releases",
        "/v1/admin/releases/",
        "/V1/ADMIN/releases",
        "/v1/admin%2freleases",
        "http://localhost/v1/admin/releases",
        "/v1/models/../admin/releases",
        "/v1/models/%2e%2e%2fadmin%2freleases",
    ],
)
def test_no_spelling_of_a_path_gets_an_ordinary_key_into_the_admin_api(
    world: World, organisation: str, target: str
) -> None:
    secret = world.accounts.create_key("plain", organisation_id=organisation).secret
    head = f"GET {target} HTTP/1.1\r\nHost: localhost\r\n"
    stranger = exchange(world.port, f"{head}\r\n".encode()).decode("latin-1")
    assert stranger.startswith("HTTP/1.1 401")
    mine = exchange(world.port, f"{head}Authorization: Bearer {secret}\r\n\r\n".encode()).decode("latin-1")
    assert mine.startswith(("HTTP/1.1 403", "HTTP/1.1 404"))
    assert '"object":"list"' not in mine


def test_another_organisation_does_not_exist_for_an_admin(world: World, organisation: str) -> None:
    other = organisations.create_organisation(world.accounts.database, machine(), "Other").id
    with key_caller(world, organisation, access="admin") as ask:
        for rule in RULES:
            if "/organisations/{organisation_id}" not in rule.path or "a" not in ALLOWED[rule.permission or ""]:
                continue
            path = re.sub(r"{.*?}", "nothing", rule.path.replace("{organisation_id}", other))
            wanted = {
                "projects": {"name": "x"},
                "keys": {"name": "x"},
                "service-accounts": {"name": "x", "project_id": "p"},
                "invitations": {"email": "a@b.io", "role": "viewer"},
            }.get(path.rsplit("/", 1)[-1], {"role": "viewer"} if "PATCH" in rule.method and "people" in path else {})
            assert ask(rule.method, path, wanted).status_code == 404, rule


def test_an_admin_cannot_suspend_or_resume_even_its_own_organisation(world: World, organisation: str) -> None:
    with key_caller(world, organisation, access="admin") as ask:
        assert ask.admin("PATCH", "", {"name": "New name"}).json()["name"] == "New name"
        assert ask.admin("PATCH", "", {"suspended": False}).json()["error"]["code"] == "insufficient_scope"


# Keys over HTTP.


def test_a_key_is_made_used_rotated_and_revoked(world: World, organisation: str) -> None:
    with key_caller(world, organisation, access="admin") as ask:
        made = ask.admin("POST", "/keys", {"name": "laptop", "models": [MODEL], "routes": ["chat", "models"]})
        assert made.status_code == 201
        assert made.headers["cache-control"] == "no-store"
        secret = made.json()["secret"]
        bearer = {"authorization": f"Bearer {secret}"}
        assert httpx.post(f"{world.url}/v1/chat/completions", json=asking("hi"), headers=bearer).status_code == 200
        refused = httpx.get(f"{world.url}/openapi.json", headers=bearer)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "insufficient_scope")
        rotated = ask.admin("POST", f"/keys/{made.json()['id']}/rotate", {"overlap_s": 0}).json()
        assert rotated["replaces"] == made.json()["id"]
        assert httpx.get(f"{world.url}/v1/models", headers=bearer).json()["error"]["code"] == "expired_api_key"
        assert ask.admin("DELETE", f"/keys/{rotated['id']}").json()["revoked_at"] is not None
        listed = ask.admin("GET", "/keys").json()["data"]
        assert "secret" not in json.dumps(listed)


def test_a_read_only_key_reads_and_never_generates(world: World, organisation: str) -> None:
    with key_caller(world, organisation, access="read_only") as ask:
        assert ask("GET", "/v1/models").status_code == 200
        refused = ask("POST", "/v1/chat/completions", asking("hi"))
        assert refused.json()["error"]["code"] == "insufficient_scope"


def test_a_developer_can_not_make_an_admin_key(world: World, organisation: str) -> None:
    with caller(world, "developer", organisation) as ask:
        assert ask.admin("POST", "/keys", {"name": "mine"}).status_code == 201
        refused = ask.admin("POST", "/keys", {"name": "more", "access": "admin"})
        assert refused.json()["error"]["code"] == "insufficient_scope"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "name"),
        ({"name": 5}, "name"),
        ({"name": "x", "models": "nano"}, "models"),
        ({"name": "x", "colour": "red"}, "colour"),
        ({"name": "x", "expires_at": -1}, "expires_at"),
        ({"name": "x", "access": "root"}, "access"),
        ([], None),
    ],
)
def test_a_wrong_body_is_a_400_that_names_the_field(
    world: World, organisation: str, body: Any, field: str | None
) -> None:
    with key_caller(world, organisation, access="admin") as ask:
        refused = ask.admin("POST", "/keys", body)
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == field


@pytest.mark.parametrize("text", ["'; DROP TABLE keys; --", '" OR 1=1', "%' UNION SELECT digest FROM keys --", "\\'"])
def test_sql_in_every_string_is_only_a_string(world: World, operator: Caller, organisation: str, text: str) -> None:
    made = operator("POST", "/v1/admin/organisations", {"name": text}).json()
    assert made["name"] == text
    for rule in RULES:
        if rule.path.startswith("/v1/admin") and rule.method in ("GET", "DELETE", "PATCH"):
            path = re.sub(
                r"{.*?}",
                lambda _: httpx.URL("/").copy_with(path="/" + text.replace("/", "")).raw_path.decode()[1:],
                rule.path,
            )
            answer = operator(rule.method, path, {"why": text} if rule.method == "DELETE" else {})
            assert answer.status_code in (200, 400, 404), (rule, answer.text)
    assert operator("GET", f"/v1/admin/audit?action={httpx.QueryParams({'a': text})['a']}").status_code == 200
    assert operator("GET", "/v1/admin/audit?limit=1").json()["data"][0]["details"]["name"] == text


# Sessions over HTTP.


def test_a_person_signs_in_acts_with_the_csrf_token_and_signs_out(world: World, organisation: str) -> None:
    with person_caller(world, organisation, "owner", "ann@acme.example"):
        pass
    with httpx.Client(base_url=world.url) as client:
        answer = client.post("/v1/auth/sign-in", json={"email": "ann@acme.example", "password": PASSWORD})
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=lax" in cookie
        assert "secure" not in cookie  # plain http on loopback: a browser would not send it back
        session = client.get("/v1/auth/session").json()
        assert (session["email"], session["organisation_id"]) == ("ann@acme.example", organisation)
        path = f"/v1/admin/organisations/{organisation}/projects"
        for token in (None, "wrong"):
            headers = {} if token is None else {"x-csrf-token": token}
            refused = client.post(path, json={"name": "x"}, headers=headers)
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "permission_denied")
        right = {"x-csrf-token": session["csrf_token"]}
        assert client.post(path, json={"name": "x"}, headers=right).status_code == 201
        token = client.cookies["musespark_session"]
        assert client.post("/v1/auth/sign-out", headers=right).json() == {"signed_out": True}
        client.cookies.set("musespark_session", token)
        assert client.get("/v1/auth/session").json()["error"]["code"] == "sign_in_failed"


def test_a_session_never_generates(world: World, organisation: str) -> None:
    with caller(world, "owner", organisation) as ask:
        refused = ask("POST", "/v1/chat/completions", asking("hi"))
        assert refused.json()["error"]["code"] == "insufficient_scope"


def test_a_wrong_key_beside_a_good_session_is_refused(world: World, organisation: str) -> None:
    with caller(world, "owner", organisation) as ask:
        assert ask("GET", "/v1/auth/session", authorization="Bearer nonsense").status_code == 401


def test_a_locked_email_is_told_when_to_come_back(world: World) -> None:
    body = {"email": "locked@example.com", "password": "wrong"}
    statuses = [httpx.post(f"{world.url}/v1/auth/sign-in", json=body).status_code for _ in range(6)]
    assert statuses == [401] * 5 + [429]
    assert int(httpx.post(f"{world.url}/v1/auth/sign-in", json=body).headers["retry-after"]) > 60


# The audit log over HTTP.


def test_the_audit_log_says_who_did_what_when_and_from_where(world: World, operator: Caller, organisation: str) -> None:
    with caller(world, "owner", organisation) as ask:
        made = ask.admin("POST", "/projects", {"name": "site"})
        [event, *_] = ask.admin("GET", "/audit?action=project.create").json()["data"]
    assert event["actor_name"] == f"owner.{organisation[4:].lower()}@a.io"
    assert (event["actor_kind"], event["source"]) == ("person", "127.0.0.1")
    assert (event["target"], event["details"]) == (made.json()["id"], {"name": "site"})
    assert event["request_id"] == made.headers["x-request-id"]
    assert abs(event["at"] - time.time()) < 60
    assert operator("GET", "/v1/admin/audit?action=project.create&limit=1").json()["data"] == [event]
    for query in ("limit=0", "limit=1001", "limit=x", "before_id=-1"):
        assert operator("GET", f"/v1/admin/audit?{query}").status_code == 400


# A canary: no secret of any kind comes out anywhere but in the one answer that gives it.


def test_no_secret_is_in_any_answer_log_metric_or_file(world: World, organisation: str, operator: Caller) -> None:
    with key_caller(world, organisation, access="admin") as ask:
        new_key = ask.admin("POST", "/keys", {"name": "canary"}).json()
        second = ask.admin("POST", f"/keys/{new_key['id']}/rotate", {}).json()
        invitation = ask.admin("POST", "/invitations", {"email": "canary@a.io", "role": "admin"}).json()
        body = {"token": invitation["token"], "name": "Canary", "password": "a canary's own password"}
        with httpx.Client(base_url=world.url) as client:
            answer = client.post("/v1/auth/invitation", json=body)
            session = client.cookies["musespark_session"]
            csrf = answer.json()["csrf_token"]
            wrong = client.post(
                "/v1/auth/sign-in", json={"email": "canary@a.io", "password": "a canary's own passw0rd"}
            )
            answers = [wrong.text, client.post("/v1/auth/invitation", json=body).text]
            answers.append(client.get(f"/v1/auth/oidc/callback?state={session}&code={invitation['token']}").text)
        answers += [ask.admin("GET", path).text for path in ("/keys", "/people", "/invitations", "/audit", "")]
        answers += [operator("GET", path).text for path in ("/v1/admin/audit?limit=1000", "/metrics", "/openapi.json")]
    secrets = [
        new_key["secret"],
        second["secret"],
        invitation["token"],
        session,
        csrf,
        body["password"],
        "own passw0rd",
    ]
    state = b"".join(file.read_bytes() for file in world.settings.state_dir.iterdir() if file.is_file())
    for secret in secrets:
        part = secret[13:] if "-muse-" in secret else secret
        assert not [text for text in answers if part in text]
        assert part not in LOG.getvalue()
        assert part.encode() not in state
