"""CORS: which web pages of other origins may call the API from a browser. None, unless the operator names them.

Starlette's middleware does it. A page sends its key itself, never as a cookie, so credentials are not allowed.
"""

from __future__ import annotations

from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from musespark.api.errors import error_response
from musespark.errors import PermissionDenied


class Cors(CORSMiddleware):
    """Stands in front of the gate: a browser first asks (preflight) without the key, and errors must be readable."""

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),  # the SDKs send a dozen of their own
            expose_headers=("x-request-id", "retry-after", "retry-after-ms"),
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code == 200:
            return response
        origin, method = request_headers["origin"], request_headers["access-control-request-method"]
        return error_response(
            PermissionDenied(
                f"a page of {origin[:100]!r} may not call this server with {method[:20]}; the operator can name "
                "origins in MUSESPARK_CORS_ORIGINS, and they may GET and POST"
            )
        )
