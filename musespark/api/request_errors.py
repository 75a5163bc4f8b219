"""What pydantic finds wrong with a chat request, in our words: the path as the client wrote it, and what to do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic_core import ErrorDetails

from musespark.api.chat_messages import TAG_MARK
from musespark.errors import InvalidRequest, UnsupportedField

# What pydantic means, in words that fit JSON; {} takes the bound. Any other message of pydantic's is shown as it is.
_MESSAGES = {
    **dict.fromkeys(("model_type", "model_attributes_type", "dict_type"), "must be an object"),
    "list_type": "must be a list",
    "string_type": "must be a string",
    "float_type": "must be a number",
    "int_type": "must be a whole number",
    "bool_type": "must be true or false",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "too_short": "must have at least {min_length} entry",
    "too_long": "must have at most {max_length} entries",
    "string_too_short": "must have at least {min_length} character",
    "string_too_long": "must have at most {max_length} characters",
    "literal_error": "must be {expected}",
    "finite_number": "must be a finite number",
}
# What the names of the fields in an object must be.
_KEYS = {
    "logit_bias": 'a key must be a token id, such as "42"',
    "metadata": "a key must have at most 64 characters",
}


# The unions whose branches are told apart by a field: (that field, what it may be), by pydantic's name for the error.
_UNIONS = {
    "unknown_role": ("role", "'developer', 'system', 'user', 'assistant' or 'tool'"),
    "unknown_part": ("type", "'text' or 'image_url'"),
    "unknown_tool": ("type", "'function' or 'namespace'"),
    "unknown_format": ("type", "'text', 'json_object' or 'json_schema'"),
}


def explain(error: ErrorDetails, known: Mapping[str, str]) -> InvalidRequest:
    """One of pydantic's errors as ours. `known` has what to say of fields that this server knows and refuses."""
    kind, value = error["type"], error["input"]
    path = _path(error["loc"], keep_last=kind == "extra_forbidden")
    options = ""
    if kind in _UNIONS:
        if not isinstance(value, dict):
            kind = "dict_type"
        else:
            name, options = _UNIONS[kind]
            path.append(name)
            kind = kind if name in value else "missing"
            value = value.get(name)
    if len(error["loc"]) == 3 and error["loc"][0] in _KEYS and error["loc"][2] == "[key]":
        name = str(error["loc"][0])
        return InvalidRequest(f"`{name}` has the key {_shown(value)}; {_KEYS[name]}", param=name)
    field = ".".join(path)
    param = field or None
    if kind == "extra_forbidden":
        reason = known.get(path[-1]) or "it is not supported; remove it"
        return UnsupportedField(f"`{field}`: {reason}", param=param)
    if kind == "unsupported_field":
        return UnsupportedField(f"`{field}` {error['msg']}", param=param)
    if kind in _UNIONS:
        refusal = InvalidRequest if kind == "unknown_role" else UnsupportedField
        return refusal(f"`{field}` is {_shown(value)}; it must be {options}", param=param)
    if kind == "missing":
        return InvalidRequest(f"the field `{field}` is missing", param=param)
    message = _MESSAGES[kind].format_map(error.get("ctx", {})) if kind in _MESSAGES else error["msg"]
    if kind == "list_type" and error["loc"][-1] == TAG_MARK + "list":
        message = "must be a string or a list"
    shown = ""
    if isinstance(value, bool | int | float):
        shown = f"; it is {_shown(value)}"
    elif kind.endswith("_type"):
        shown = f"; it is {json_type(value)}"
    return InvalidRequest(f"`{field}` {message}{shown}" if field else message, param=param)


def _path(loc: tuple[int | str, ...], keep_last: bool) -> list[str]:
    """The steps to the field, without the names of union branches; the last step may be a name that a client chose."""
    steps = [_cut(str(step)) for step in loc]
    return [
        step for i, step in enumerate(steps) if not step.startswith(TAG_MARK) or (keep_last and i == len(steps) - 1)
    ]


def _shown(value: Any) -> str:
    """A value as JSON has it, in words where it is long; a string in the quotes of our texts."""
    if isinstance(value, str):
        return _cut(repr(value))
    return json_type(value) if isinstance(value, dict | list) else _cut(json.dumps(value))


def _cut(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "…"


def json_type(value: Any) -> str:
    names = {bool: "true or false", int: "a number", float: "a number", str: "a string", list: "a list"}
    return "an object" if isinstance(value, dict) else names.get(type(value), "null")
