"""Names and values of tool calls: which offered tool a model means, and what JSON the text of a value stands for.

Models write names with their namespace doubled (`get_weather.get_weather`), and values as bare text whose type only the
tool's schema knows: `123` is a string where the schema says string.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NoReturn

from musespark.chat.messages import Tool

MAX_SCHEMA_DEPTH = 16  # of $ref, anyOf, …, when a parameter's type is looked up; deeper ones count as untyped


@dataclass(frozen=True, slots=True)
class Match:
    """A tool, and the name of its parameter where the model wrote that behind the tool's name."""

    tool: Tool
    parameter: str | None = None


class Toolbox:
    """The tools offered with a request, found by the names that models write.

    A wrong namespace is not guessed at: a call to something else should not become a call to this.
    """

    def __init__(self, tools: Sequence[Tool]) -> None:
        self._tools = {tool.name: tool for tool in tools}

    def __bool__(self) -> bool:
        return bool(self._tools)

    @property
    def names(self) -> Iterable[str]:
        return self._tools.keys()

    def find(self, name: str) -> Match | None:
        parts = [part for part, _ in groupby(name.split("."))]  # doubled namespaces collapse
        for candidate in (name, ".".join(parts)):
            if candidate in self._tools:
                return Match(self._tools[candidate])
        head, leaf = ".".join(parts[:-1]), parts[-1]
        if head in self._tools and leaf in _properties(self._tools[head]):
            return Match(self._tools[head], parameter=leaf)
        return None


def is_text(tool: Tool, parameter: str) -> bool:
    """Whether the value of `parameter` can only be a string, so that it needs no decoding."""
    return parameter_types(tool, parameter) == {"string"}


def json_value(text: str, tool: Tool, parameter: str) -> str:
    """The JSON that the model means by writing `text` for a parameter: JSON of a fitting type, else a string.

    Without a declared type, text that is JSON is taken as such. Text that fits no declared type is taken as it comes:
    the caller's own check of the arguments then names the mistake.
    """
    types = parameter_types(tool, parameter)
    if types == {"string"}:
        return json_text(text)
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return json_text(text)
    if types and "string" in types and not types & _types_of(value):
        return json_text(text)
    return text.strip()


def json_text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def parameter_types(tool: Tool, parameter: str) -> frozenset[str] | None:
    """The JSON types that the schema allows for a parameter; None if it does not say."""
    return _types(_properties(tool).get(parameter), tool.parameters, MAX_SCHEMA_DEPTH)


def _properties(tool: Tool) -> Mapping[str, Any]:
    schema: Any = tool.parameters
    for _ in range(MAX_SCHEMA_DEPTH):  # a recursive model's schema is nothing but a reference
        if not isinstance(schema, Mapping) or not isinstance(schema.get("$ref"), str):
            break
        schema = _resolve(schema["$ref"], tool.parameters)
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    return properties if isinstance(properties, Mapping) else {}


def _types(schema: Any, root: Mapping[str, Any], depth: int) -> frozenset[str] | None:
    if not isinstance(schema, Mapping) or depth == 0:
        return None
    if isinstance(reference := schema.get("$ref"), str):
        return _types(_resolve(reference, root), root, depth - 1)
    declared = schema.get("type")
    if isinstance(declared, str):
        return frozenset({declared})
    if isinstance(declared, list):
        return frozenset(name for name in declared if isinstance(name, str))
    if "const" in schema or isinstance(schema.get("enum"), list):
        values = [schema["const"]] if "const" in schema else schema["enum"]
        return frozenset().union(*(_types_of(value) for value in values))
    for key in ("anyOf", "oneOf"):
        if isinstance(options := schema.get(key), list):
            types = [_types(option, root, depth - 1) for option in options]
            return None if None in types else frozenset().union(*(t for t in types if t))
    if isinstance(parts := schema.get("allOf"), list):
        known = [t for part in parts if (t := _types(part, root, depth - 1)) is not None]
        return frozenset.intersection(*known) if known else None
    return None


def _resolve(reference: str, root: Mapping[str, Any]) -> Any:
    """What a reference into the same schema points at; None for any other."""
    path, *names = reference.split("/")
    found: Any = root if path == "#" else None
    for name in names:
        name = name.replace("~1", "/").replace("~0", "~")
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _types_of(value: Any) -> frozenset[str]:
    """The names that JSON schema has for the type of a decoded value."""
    if isinstance(value, bool):
        return frozenset({"boolean"})
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return frozenset({"integer", "number"})
    names = {float: "number", str: "string", list: "array", dict: "object", type(None): "null"}
    return frozenset({names[type(value)]})


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
