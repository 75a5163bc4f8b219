"""The OpenAPI document, served at /openapi.json: what FastAPI collects, and what it can't know of our routes.

Routes read their bodies themselves, so the request's schema is added here, as are the error object and the key.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from musespark.api.admin_body import SCHEMAS
from musespark.api.chat_request import ChatCompletionRequest
from musespark.api.gate import PUBLIC

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }
    },
}
_REFERENCE = {"$ref": "#/components/schemas/Error"}
ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    "default": {"description": "Error", "content": {"application/json": {"schema": _REFERENCE}}}
}
CHAT_BODY = {
    "required": True,
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ChatCompletionRequest"}}},
}


def document(app: FastAPI) -> dict[str, Any]:
    """Made once, then kept by the application."""
    if app.openapi_schema is None:
        result = get_openapi(title=app.title, version=app.version, routes=app.routes)
        request = ChatCompletionRequest.model_json_schema(ref_template="#/components/schemas/{model}")
        parts = request.pop("$defs")
        components = result.setdefault("components", {})
        components["schemas"] = {"ChatCompletionRequest": request, **parts, **SCHEMAS, "Error": _ERROR}
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        result["security"] = [{"key": []}]
        for path in PUBLIC:
            for operation in result["paths"][path].values():
                operation["security"] = []
        app.openapi_schema = result
    return app.openapi_schema
