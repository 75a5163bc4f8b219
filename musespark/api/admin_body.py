"""What the administrative routes share: strict bodies, JSON answers, who acts, and whose organisation it is."""

from __future__ import annotations

from dataclasses import asdict, is_dataclass
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from musespark.accounts.actor import Actor
from musespark.accounts.verify import Identity
from musespark.api import strict_json
from musespark.api.deps import services_of
from musespark.api.request_errors import explain
from musespark.errors import InvalidRequest, NotFound

B = TypeVar("B", bound=BaseModel)


class Body(BaseModel):
    """A request body: every field has its type exactly, and any other is refused."""

    model_config = ConfigDict(extra="forbid", strict=True)


async def read_body(request: Request, kind: type[B]) -> B:
    """The body as `kind`. Raises InvalidRequest and UnsupportedField that name the field."""
    async with services_of(request).bodies.read(request) as body:
        value = strict_json.parse(body)
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise explain(error.errors(include_url=False)[0], {}) from None


SCHEMAS: dict[str, Any] = {}  # of all bodies that `takes` has seen, for the OpenAPI document


def takes(kind: type[BaseModel]) -> dict[str, Any]:
    """`openapi_extra` of a route that reads such a body."""
    schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
    SCHEMAS.update(schema.pop("$defs", {}))
    SCHEMAS[kind.__name__] = schema
    reference = {"$ref": f"#/components/schemas/{kind.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": reference}}}}


def answer(value: Any, status: int = 200) -> Response:
    """A dataclass as an object, a list as OpenAI's list object."""
    content = {"object": "list", "data": [_plain(item) for item in value]} if isinstance(value, list) else _plain(value)
    # What a key or an invitation is shown with must lie in no cache.
    headers = {"cache-control": "no-store"}
    return Response(orjson.dumps(content), status_code=status, headers=headers, media_type="application/json")


def identity_of(request: Request) -> Identity:
    identity = request.state.identity
    assert isinstance(identity, Identity)
    return identity


def actor_of(request: Request) -> Actor:
    """Who asks, and from where. X-Forwarded-For is not looked at: anybody can write it."""
    identity = identity_of(request)
    actor_id = identity.person_id or identity.key_id
    return Actor(identity.kind, actor_id, identity.name, address_of(request), request.state.request_id)


def address_of(request: Request) -> str:
    return request.client.host if request.client else "unknown"


def in_reach(request: Request, organisation_id: str) -> str:
    """`organisation_id` if the caller works in it or operates the server. Raises NotFound: other ids are secret."""
    identity = identity_of(request)
    if organisation_id != identity.organisation_id and not identity.operates:
        raise NotFound(f"there is no organisation {organisation_id[:80]!r} that you can administer")
    return organisation_id


def query_int(request: Request, name: str, default: int | None) -> int | None:
    """A whole number of the query string. Raises InvalidRequest."""
    text = request.query_params.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise InvalidRequest(f"`{name}` must be a whole number", param=name)
    return int(text)


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
