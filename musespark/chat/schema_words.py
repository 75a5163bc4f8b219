"""A schema in the words that a grammar can be made of: what clients' libraries write, without what says nothing.

`plain` is the same schema for the values that a model may write. Every value that the plain schema allows is allowed by
the one that came; keywords that can't be said otherwise are left for `schemas.check_schema` to refuse.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_HEX = "[0-9a-f]"
# Formats of no standard that libraries write: as patterns, or None where any string is one.
_FORMATS: dict[str, str | None] = {
    **{
        f"uuid{n}": f"^{_HEX}{{8}}-{_HEX}{{4}}-{n}{_HEX}{{3}}-[89ab]{_HEX}{{3}}-{_HEX}{{12}}$"
        for n in (1, 3, 4, 5, 6, 7, 8)
    },
    **dict.fromkeys(("binary", "password", "path"), None),
}
# Patterns with a look-ahead that pydantic writes, and ones without that match the same or less.
_PATTERNS = {r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$": r"^[+-]?(\d+\.?\d*|\.\d+)$"}
# Keywords that say nothing if they have this value.
_SAYS_NOTHING: dict[str, Any] = {
    "uniqueItems": False,
    "unevaluatedItems": True,
    "unevaluatedProperties": True,
    "nullable": False,
    "propertyNames": {},
}
_ONE = ("items", "additionalProperties")
_SEVERAL = ("prefixItems", "anyOf", "oneOf", "allOf")
_NAMED = ("properties", "patternProperties", "$defs", "definitions")
_MAX_LEVELS = 64  # a deeper schema is refused anyway


def plain(schema: Any, *, strict: bool = True, level: int = 0) -> Any:
    """A copy; places that references point at stay where they are.

    Without `strict`, that the items of an array differ is left to the model.
    """
    if not isinstance(schema, Mapping) or level > _MAX_LEVELS:
        return schema
    written = {name: value for name, value in schema.items() if not _is_empty(name, value)}
    if level == 0 and isinstance(written.get("$id"), str):
        del written["$id"]  # it names the document, to which no other can refer here
    if _has_at_most_one(written) or not strict:
        written.pop("uniqueItems", None)
    if level > 0:  # the arguments of a call are told apart by their own names
        _write_names(written)
    _write_format(written)
    if isinstance(pattern := written.get("pattern"), str):
        written["pattern"] = _PATTERNS.get(pattern, pattern)
    for keyword in _ONE:
        if keyword in written:
            written[keyword] = plain(written[keyword], strict=strict, level=level + 1)
    for keyword in _SEVERAL:
        if isinstance(parts := written.get(keyword), list):
            written[keyword] = [plain(part, strict=strict, level=level + 1) for part in parts]
    for keyword in _NAMED:
        if isinstance(parts := written.get(keyword), Mapping):
            written[keyword] = {name: plain(part, strict=strict, level=level + 1) for name, part in parts.items()}
    return written


def _is_empty(name: str, value: Any) -> bool:
    nothing = _SAYS_NOTHING.get(name)
    return name in _SAYS_NOTHING and type(value) is type(nothing) and value == nothing


def _has_at_most_one(schema: Mapping[str, Any]) -> bool:
    return type(schema.get("maxItems")) is int and schema["maxItems"] <= 1


def _write_names(schema: dict[str, Any]) -> None:
    """`propertyNames` of a map: its keys by a pattern, or one by one."""
    names, values = schema.get("propertyNames"), schema.get("additionalProperties", True)
    if not isinstance(names, Mapping) or values is False or schema.keys() & {"properties", "patternProperties"}:
        return
    said = set(names) - {"title", "description", "type"}
    if names.get("type", "string") != "string":
        return
    if said == {"enum"} and isinstance(names["enum"], list) and all(isinstance(name, str) for name in names["enum"]):
        schema["properties"] = dict.fromkeys(names["enum"], values)
    elif said == {"pattern"} and isinstance(names["pattern"], str):
        schema["patternProperties"] = {names["pattern"]: values}
    elif said:
        return
    del schema["propertyNames"]
    if said:
        schema["additionalProperties"] = False


def _write_format(schema: dict[str, Any]) -> None:
    name = schema.get("format")
    if not isinstance(name, str) or name not in _FORMATS:
        return
    pattern = _FORMATS[name]
    if pattern is not None and "pattern" in schema:
        return  # two patterns can't be held to at once
    del schema["format"]
    if pattern is not None:
        schema["pattern"] = pattern
