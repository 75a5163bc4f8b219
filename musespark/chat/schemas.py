"""JSON schemas that clients send: which keywords can be held to, and how much work a schema may make.

A schema constrains what the model writes, so a keyword that would be ignored is refused by name. What is left is
compiled by llguidance, which supports the keywords listed here. Sizes are those of the schema when every reference is
written out, so that a small text can't stand for a large grammar. The rules are those of JSON Schema 2020-12.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from musespark.errors import InvalidSchema

MAX_SCHEMA_BYTES = 65_536
MAX_SCHEMA_LEVELS = 32  # of subschemas inside each other, references followed
MAX_EXPANDED = 20_000  # subschemas and enum values, every reference written out
MAX_ALTERNATIVES = 256  # ways through anyOf, oneOf and allOf together
MAX_PROPERTIES = 400  # of one object: each optional one is a row of the parser's table
MAX_LENGTH = 4_096  # of a string whose length is bounded: each character is some states of the lexer

# Bounds of numbers: one digit more is a part more of the expression for a range, and 1e308 took 60 s and 11 GB.
SMALLEST_BOUND, LARGEST_BOUND = 1e-9, 1e20
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")

_ONE = ("items", "additionalProperties")  # keywords that hold a schema
_SEVERAL = ("prefixItems", "anyOf", "oneOf", "allOf")  # … a list of them
_NAMED = ("properties", "patternProperties", "$defs", "definitions")  # … some by name
_DEFINITIONS = ("$defs", "definitions")
_OF_VALUES = """
    $ref type enum const required minItems maxItems minProperties maxProperties minLength maxLength pattern format
    minimum maximum exclusiveMinimum exclusiveMaximum multipleOf
"""
_KEYWORDS = frozenset((*_ONE, *_SEVERAL, *_NAMED, *_OF_VALUES.split()))
# They say nothing about which values are valid. The last line is OpenAPI's; `nullable` allows null where nothing else
# would, and a value that is not null is valid either way.
_NOTES = """
    title description default examples $schema $comment deprecated readOnly writeOnly
    contentMediaType contentEncoding contentSchema
    discriminator example nullable externalDocs xml
"""
ANNOTATIONS = frozenset(_NOTES.split())

Size = tuple[int, int]  # (subschemas, alternatives), references written out


def check_size(schema: Mapping[str, Any], field: str) -> int:
    """Bytes of the schema as JSON. Raises InvalidSchema for more than MAX_SCHEMA_BYTES, or for what is no JSON."""
    try:
        num_bytes = len(json.dumps(schema, ensure_ascii=False, allow_nan=False).encode())
    except (TypeError, ValueError, RecursionError):
        raise InvalidSchema(f"`{field}` must be a JSON schema", param=field) from None
    if num_bytes > MAX_SCHEMA_BYTES:
        raise InvalidSchema(f"`{field}` has {num_bytes:,} bytes; at most {MAX_SCHEMA_BYTES:,} are allowed", param=field)
    return num_bytes


def check_schema(schema: Mapping[str, Any], field: str) -> None:
    """Raises InvalidSchema naming the keyword, below `field`, that can't be held to or makes the schema too large."""
    check_size(schema, field)
    _Checker(schema, field).check()


def is_note(keyword: str) -> bool:
    """Whether it says nothing about values. Extensions (`x-…`) don't, but for the one that llguidance reads."""
    return keyword in ANNOTATIONS or (keyword.startswith("x-") and keyword != "x-guidance")


def resolve(reference: str, root: Mapping[str, Any]) -> Any:
    """What a reference into the same schema points at; None for any other, and for one that points nowhere."""
    path, *names = reference.split("/")
    found: Any = root if path == "#" else None
    for name in names:
        name = name.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list):
            found = found[int(name)] if name.isdecimal() and int(name[:6]) < len(found) else None
        else:
            found = found.get(name) if isinstance(found, Mapping) else None
    return found


class _Checker:
    """One walk over a schema. References are followed once each."""

    def __init__(self, schema: Mapping[str, Any], field: str) -> None:
        self._root = schema
        self._field = field
        self._targets: dict[str, Size] = {}

    def check(self) -> None:
        size, _ = self._measure(self._root, self._field, 1)
        if size > MAX_EXPANDED:
            raise InvalidSchema(
                f"`{self._field}` has more than {MAX_EXPANDED:,} parts when its references are written out",
                param=self._field,
            )

    def _measure(self, schema: Any, path: str, level: int) -> Size:
        if not isinstance(schema, Mapping):
            return 1, 1  # true and false are schemas; what else there may be, llguidance refuses
        if level > MAX_SCHEMA_LEVELS:
            raise self._problem(path, f"is inside of {MAX_SCHEMA_LEVELS} other schemas; that is too deep")
        for keyword in schema:
            if keyword not in _KEYWORDS and not is_note(keyword):
                raise self._problem(f"{path}.{keyword[:60]}", "is a keyword that this server can't hold the model to")
        required = schema.get("required", [])
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise self._problem(f"{path}.required", "must be a list of names")
        for keyword in ("minLength", "maxLength"):
            bound = schema.get(keyword, 0)
            if type(bound) is not int or not 0 <= bound <= MAX_LENGTH:
                raise self._problem(f"{path}.{keyword}", f"must be a whole number from 0 to {MAX_LENGTH:,}")
        for keyword in _BOUNDS:
            bound = schema.get(keyword)
            if isinstance(bound, int | float) and bound and not SMALLEST_BOUND <= abs(bound) <= LARGEST_BOUND:
                raise self._problem(f"{path}.{keyword}", "must be 0, or between 1e-9 and 1e20 without its sign")
        if isinstance(schema.get("properties"), Mapping) and len(schema["properties"]) > MAX_PROPERTIES:
            raise self._problem(f"{path}.properties", f"has more than {MAX_PROPERTIES} properties")
        values = schema.get("enum")
        size, alternatives = 1 + (len(values) if isinstance(values, list) else 0), 1
        options = {"anyOf": 0, "oneOf": 0}
        for keyword, name, part in _subschemas(schema):
            part_size, ways = self._measure(part, f"{path}.{keyword}{name}", level + 1)
            if keyword in _DEFINITIONS:
                continue  # counts where it is referred to
            size += part_size
            if keyword in options:
                options[keyword] += ways
            elif keyword == "allOf":
                alternatives *= ways
        alternatives *= max(1, options["anyOf"]) * max(1, options["oneOf"])
        if "$ref" in schema:
            part_size, ways = self._follow(schema["$ref"], f"{path}.$ref", level)
            size, alternatives = size + part_size, alternatives * ways
        if alternatives > MAX_ALTERNATIVES:
            raise self._problem(path, f"has more than {MAX_ALTERNATIVES} alternatives")
        return min(size, MAX_EXPANDED + 1), alternatives

    def _follow(self, reference: Any, path: str, level: int) -> Size:
        target = resolve(reference, self._root) if isinstance(reference, str) else None
        if not isinstance(target, Mapping | bool):
            raise self._problem(path, "points at nothing in the same schema; other documents are not fetched")
        if reference not in self._targets:
            self._targets[reference] = (1, 1)  # as it counts inside of itself
            self._targets[reference] = self._measure(target, path, level + 1)
        return self._targets[reference]

    @staticmethod
    def _problem(path: str, problem: str) -> InvalidSchema:
        path = path if len(path) <= 300 else path[:299] + "…"
        return InvalidSchema(f"`{path}` {problem}", param=path)


def _subschemas(schema: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """(keyword, how to go on from it to the part, the part)."""
    for keyword in _ONE:
        if keyword in schema:
            yield keyword, "", schema[keyword]
    for keyword in _SEVERAL:
        parts = schema.get(keyword)
        for i, part in enumerate(parts if isinstance(parts, list) else ()):
            yield keyword, f".{i}", part
    for keyword in _NAMED:
        named = schema.get(keyword)
        for name, part in named.items() if isinstance(named, Mapping) else ():
            yield keyword, f".{name[:60]}", part
