"""How an error looks on the wire: OpenAI's error object, its four keys always there, no secret ever repeated.

`type` is for people, `code` is stable and for programs. A key in the text of an error (a client may send it as a model
name, as a role, as anything) is cut to its public prefix.
"""

from __future__ import annotations

import math
import re
from typing import Any

import orjson
from starlette.responses import Response

from musespark.errors import MuseSparkError

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_SECRET = re.compile(r"((?:sk|inv|ses)-muse-[0-9A-Za-z]{4})[0-9A-Za-z]+")  # keys, invitations, sessions


def redact(text: str) -> str:
    """`text` with every key in it cut to its first four characters."""
    return _SECRET.sub(r"\1…", text)


def error_object(error: MuseSparkError) -> dict[str, Any]:
    """`{"error": {message, type, param, code, …details}}`, as a response body or as an event of a stream."""
    kind = _TYPES.get(error.status) or ("invalid_request_error" if error.status < 500 else "server_error")
    param = None if error.param is None else redact(error.param)
    known = {"message": redact(error.message), "type": kind, "param": param, "code": error.code}
    return {"error": {**error.details, **known}}


def error_response(error: MuseSparkError, headers: dict[str, str] | None = None) -> Response:
    """The whole HTTP answer; 429 and 503 say when to come back, in the header that the OpenAI SDK obeys first."""
    headers = dict(headers or {})
    retry_after_ms = getattr(error, "retry_after_ms", None)
    if retry_after_ms is not None:
        headers |= {"retry-after-ms": str(retry_after_ms), "retry-after": str(math.ceil(retry_after_ms / 1000))}
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    body = orjson.dumps(error_object(error))
    return Response(body, status_code=error.status, headers=headers, media_type="application/json")
