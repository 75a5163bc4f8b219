"""The two cookies: the session of somebody signed in, and the state of a sign-in that is at the provider now."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.responses import Response

from musespark.accounts.oidc import SIGN_IN_S
from musespark.accounts.sessions import LONGEST_S, NewSession
from musespark.api.settings import Settings

SESSION = "musespark_session"
STATE = "musespark_oidc_state"


def session_cookie(headers: Headers) -> str | None:
    return cookie_parser(headers.get("cookie", "")).get(SESSION)


def state_cookie(headers: Headers) -> str | None:
    return cookie_parser(headers.get("cookie", "")).get(STATE)


def set_session(response: Response, session: NewSession, settings: Settings) -> None:
    _set(response, SESSION, session.token, LONGEST_S, "/", settings)


def set_state(response: Response, state: str, settings: Settings) -> None:
    _set(response, STATE, state, SIGN_IN_S, "/v1/auth/oidc", settings)


def clear(response: Response, name: str, settings: Settings) -> None:
    path = "/" if name == SESSION else "/v1/auth/oidc"
    _set(response, name, "", 0, path, settings)


def _set(response: Response, name: str, value: str, max_age: int, path: str, settings: Settings) -> None:
    # Lax, not strict: the way back from the provider is a navigation from another site.
    secure = (settings.public_url or "").startswith("https:")
    response.set_cookie(name, value, max_age=max_age, path=path, secure=secure, httponly=True, samesite="lax")
