"""The gate that every request passes: a request id, Host and Origin, the key, one form for all errors, one log line.

It stands in front of the routes and looks at the exact path, so what no route knows is refused like everything else,
and no spelling of a path gets around it: a path is public only if it equals one of `PUBLIC` to the letter.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterable
from typing import Any

import structlog
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from musespark.accounts.accounts import Accounts
from musespark.accounts.transactions import DatabaseAway
from musespark.accounts.verify import AWAY, Identity
from musespark.api.access import PUBLIC, authorise, find_rule
from musespark.api.cookies import session_cookie
from musespark.api.errors import error_response
from musespark.api.logs import describe
from musespark.api.memory import forget_frames
from musespark.api.metrics import Metrics
from musespark.api.settings import LOOPBACK_NAMES
from musespark.errors import (
    DatabaseUnavailable,
    InvalidApiKey,
    InvalidRequest,
    MethodNotAllowed,
    MuseSparkError,
    NotFound,
    Overloaded,
    PermissionDenied,
)

PROBES = frozenset({"/healthz", "/readyz"})
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})  # what a link on another page can do to a signed-in person
RETRY_AFTER_MS = 1000
AWAY_ERRORS = (DatabaseAway, *AWAY)
CLIENT_LEFT = 499  # nginx's number for it; nobody receives it, logs and metrics show it


class Gate:
    """ASGI middleware. Gives `request.state` a `request_id`, `started_s`, `identity`, and `log` for the log line.

    What a route puts into its `headers` is in the answer, also if that is an error.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        accounts: Accounts,
        metrics: Metrics,
        public: Iterable[str] = PUBLIC,
        allowed_hosts: frozenset[str] | None = None,
        cors_origins: frozenset[str] = frozenset(),
    ) -> None:
        """`allowed_hosts` are the names that Host and Origin may have; None lets any through. `cors_origins` pass."""
        self._app = app
        self._accounts = accounts
        self._metrics = metrics
        self._public = frozenset(public)
        self._allowed_hosts = allowed_hosts
        self._cors_origins = cors_origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        visit = _Visit(send)
        visit.last = scope.get("state", {}).get("crowded", False)
        scope["state"] = {
            "request_id": visit.request_id,
            "started_s": visit.started_s,
            "log": visit.log,
            "headers": visit.headers,
        }
        try:
            await self._pass(scope, receive, visit)
        except ClientDisconnect:
            visit.status = CLIENT_LEFT
        except asyncio.CancelledError:
            visit.log["cancelled"] = True  # the server is told to stop now
            raise
        except Exception as error:
            await _render(error, scope, receive, visit)
            forget_frames(error)
        finally:
            self._record(scope, visit)

    async def _pass(self, scope: Scope, receive: Receive, visit: _Visit) -> None:
        headers = Headers(scope=scope)
        if visit.last and scope["path"] != "/healthz":
            message = "the server has as many connections as it takes; its operator can raise MUSESPARK_MAX_CONNECTIONS"
            raise Overloaded(message, retry_after_ms=RETRY_AFTER_MS)
        if "transfer-encoding" in headers and "content-length" in headers:
            visit.last = True  # RFC 9112, 6.3: a proxy that believed the length takes what follows for another request
            raise InvalidRequest("a request has either a Content-Length or a Transfer-Encoding; this one has both")
        if self._allowed_hosts is not None:
            check_origin(headers, self._allowed_hosts, self._cors_origins)
        if scope["path"] not in self._public:
            identity = await self._authenticate(scope["method"], headers)
            scope["state"]["identity"] = identity
            visit.log["key_id"] = identity.key_id
            scope["route"] = find_rule(scope["method"], scope["path"])  # for the log; the router overwrites it
            authorise(identity, scope["route"])
        await self._app(scope, receive, visit.send)

    async def _authenticate(self, method: str, headers: Headers) -> Identity:
        values = headers.getlist("authorization")
        if not values:
            cookie = session_cookie(headers)
            if cookie is not None:
                if method not in SAFE_METHODS:
                    self._accounts.sessions.check_csrf(cookie, headers.get("x-csrf-token"))
                return await asyncio.to_thread(self._accounts.sessions.verify, cookie)
            raise InvalidApiKey("no API key was given; send the header `Authorization: Bearer sk-muse-…`")
        scheme, _, secret = values[0].partition(" ")
        if len(values) > 1 or scheme.lower() != "bearer":
            raise InvalidApiKey("the Authorization header must be one `Bearer sk-muse-…`")
        secret = secret.strip()
        identity = self._accounts.remembered(secret)
        return await asyncio.to_thread(self._accounts.verify, secret) if identity is None else identity

    def _record(self, scope: Scope, visit: _Visit) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        seconds = time.perf_counter() - visit.started_s
        self._metrics.request(scope["method"], route, visit.status, seconds)
        if scope["path"] in PROBES:
            return  # they come every few seconds and would bury the rest of the log
        structlog.get_logger().info(
            "request",
            request_id=visit.request_id,
            method=scope["method"],
            route=route,
            status=visit.status,
            ms=round(seconds * 1000, 1),
            **visit.log,
        )


class _Visit:
    """One request on its way: what the log line will say, and a `send` that adds the request's id to the answer."""

    def __init__(self, send: Send) -> None:
        self.request_id = f"req_{secrets.token_hex(12)}"
        self.started_s = time.perf_counter()
        self.status = 0
        self.log: dict[str, Any] = {}
        self.headers: dict[str, str] = {}
        self.last = False  # whether the connection ends with this answer
        self._send = send

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            own = {"x-request-id": self.request_id, **self.headers}
            encoded = [(name.encode(), value.encode()) for name, value in own.items()]
            message["headers"] = [*message["headers"], *encoded]
            if self.last:
                message["headers"].append((b"connection", b"close"))
        await self._send(message)


async def _render(error: Exception, scope: Scope, receive: Receive, visit: _Visit) -> None:
    """Answer with `error`, unless an answer has begun already."""
    headers: dict[str, str] = {}
    if isinstance(error, HTTPException):  # the router's: no such path, or not with this method
        headers = dict(error.headers or {})
        error = _from_router(error, scope)
    known = as_musespark_error(error, visit.request_id, visit.log)
    if visit.status == 0:
        await error_response(known, headers)(scope, receive, visit.send)


def as_musespark_error(error: Exception, request_id: str, log: dict[str, Any]) -> MuseSparkError:
    """What the client may know of `error`; `log` gets its code, and for one that nobody foresaw its type and place."""
    if isinstance(error, AWAY_ERRORS):
        error = DatabaseUnavailable(
            "the database can't be reached; try again in a moment", retry_after_ms=RETRY_AFTER_MS
        )
    if not isinstance(error, MuseSparkError):
        log |= describe(error)
        error = MuseSparkError(f"something went wrong in the server; its log says more under {request_id}")
    log["code"] = error.code
    return error


def _from_router(error: HTTPException, scope: Scope) -> MuseSparkError:
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        return MethodNotAllowed(f"{scope['method'][:20]} is not possible here; use {allowed}")
    return NotFound(f"there is nothing at {scope['path'][:200]!r}; the API is under /v1")


def check_origin(headers: Headers, allowed_hosts: frozenset[str], cors_origins: frozenset[str] = frozenset()) -> None:
    """Raise PermissionDenied for a request that a foreign web page has sent, or sent under a foreign name.

    On loopback every page in the user's browser can reach us. A name of its own that it points at 127.0.0.1 shows in
    Host (DNS rebinding), and a page of another site in Origin.
    """
    host = headers.get("host")  # HTTP/1.0 may leave it out; no browser does, so nobody was lured here
    if host is not None and _name(host) not in allowed_hosts:
        raise PermissionDenied(
            f"the Host header names {host[:100]!r}, which is not this server; the operator can allow it with "
            "MUSESPARK_ALLOWED_HOSTS"
        )
    origin = headers.get("origin")
    if origin is not None and origin not in cors_origins:
        authority = origin.partition("://")[2]
        if authority != host and _name(authority) not in allowed_hosts - LOOPBACK_NAMES:
            raise PermissionDenied(
                f"the Origin header names {origin[:100]!r}; on loopback this server does not answer web pages of others"
            )


def _name(authority: str) -> str:
    """The host of `host:port`, in lower case; an IPv6 address keeps its brackets."""
    name, colon, port = authority.rpartition(":")
    return (name if colon and port.isdecimal() else authority).lower()
