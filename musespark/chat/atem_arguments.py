"""A tool's schema as the parameters of a Muse call, in grammar rules.

Arguments are not JSON in this format: each is a parameter of its own, strings as they are, anything else as JSON
(`atem_calls` reads them back). So a schema is taken apart into its properties, and can't say more of the object as a
whole than which these are. A string can't hold `</atem:`, with which the format ends it; one of bounded length no `<`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from musespark.chat.constraint import GrammarWriter, json_value, literal, one_of
from musespark.chat.messages import Tool
from musespark.chat.schemas import MAX_SCHEMA_LEVELS, is_note, resolve
from musespark.chat.text_patterns import FORMATS, whole_text
from musespark.chat.tools import is_text
from musespark.errors import InvalidSchema

_KEY = re.compile(r'[^"<>\n]{1,64}')
_OPEN, _OPENED, _CLOSE = '<atem:parameter name="', '">', "</atem:parameter>\n"
_OTHER_KEY = r'/[^"<>\n]{1,64}/'
_NO_TAG = r"~/(?s:.*)<\/atem:(?s:.*)/"
_DEFINITIONS = ("$defs", "definitions")
_BY_NAME = ("properties", "patternProperties", *_DEFINITIONS)  # their keys are the client's names
_VALUES = ("enum", "const", "default", "examples")  # what looks like a reference there is a value
_OF_OBJECTS = frozenset(("type", "properties", "required", "additionalProperties", *_DEFINITIONS))
_OF_STRINGS = frozenset(("type", "enum", "const", "minLength", "maxLength", "pattern", "format"))
_OF_OPTIONS = ("anyOf", "oneOf")  # those of oneOf exclude each other: the schema by itself is compiled first


def any_arguments(writer: GrammarWriter, prefix: str) -> str:
    """Parameters of any names, with any text for values."""
    value = _text(writer, f"{prefix}_value", f"/(?s:.*)/ & {_NO_TAG}")
    return writer.rule(f"{prefix}_any", _opening(writer, prefix, ()), value) + "*"


class Arguments:
    """The parameters of one tool. `field` is the place of the schema in the request, for errors."""

    def __init__(self, writer: GrammarWriter, prefix: str, name: str, schema: Mapping[str, Any], field: str) -> None:
        self._writer = writer
        self._prefix = prefix
        self._schema = schema
        self._tool = Tool(name, "", schema)
        self._field = field

    def rules(self) -> list[str]:
        """What a call holds, in the order of the schema. Raises InvalidSchema for what parameters can't say."""
        schema = self._object()
        for keyword in schema:
            if keyword not in _OF_OBJECTS and not is_note(keyword):
                raise self._problem(f".{keyword}", "can't be held to for all arguments together in this model's calls")
        properties = schema.get("properties", {})
        required = schema.get("required", [])
        if not isinstance(properties, Mapping) or not isinstance(required, list):
            raise self._problem("", "must have an object of properties and a list of those required")
        others = schema.get("additionalProperties")
        undeclared = [name for name in dict.fromkeys(required) if name not in properties]
        if undeclared and others is False:
            raise self._problem(".required", f"names {undeclared[0]!r}, which is not among the properties")
        parameters: list[str] = []
        for name, schema in {**properties, **dict.fromkeys(undeclared, True if others is None else others)}.items():
            if schema is False:
                continue  # it must not be there
            place = f".properties.{name}"
            rule = self._parameter(f"{self._prefix}_{len(parameters)}", name, schema, place)
            parameters.append(rule if name in required else f"{rule}?")
        if others is True or isinstance(others, Mapping):
            opening = _opening(self._writer, self._prefix, [*properties, *undeclared])
            value = self._json(f"{self._prefix}_others_value", others, ".additionalProperties")
            parameters.append(self._writer.rule(f"{self._prefix}_others", opening, value) + "*")
        return parameters

    def _object(self) -> Mapping[str, Any]:
        """The schema of all arguments, which may be a reference and nothing else: recursive models are written so."""
        schema: Any = self._schema
        for _ in range(MAX_SCHEMA_LEVELS):
            if not isinstance(schema, Mapping) or "$ref" not in schema:
                break
            if any(key not in ("$ref", "type", *_DEFINITIONS) and not is_note(key) for key in schema):
                raise self._problem(".$ref", "has keywords beside it, which this model's calls can't be held to")
            schema = resolve(schema["$ref"], self._schema)
        if not isinstance(schema, Mapping) or "$ref" in schema or schema.get("type", "object") != "object":
            raise self._problem(".$ref", "must lead to the schema of an object")
        return schema

    def _parameter(self, rule: str, name: Any, schema: Any, place: str) -> str:
        if not isinstance(name, str) or not _KEY.fullmatch(name):
            raise self._problem(
                place, "is a name that this model can't write: 1 to 64 characters, no \", <, > or break"
            )
        opening = literal(f"{_OPEN}{name}{_OPENED}")
        if is_text(self._tool, name):
            return self._writer.rule(rule, opening, self._string(f"{rule}_value", schema, place))
        return self._writer.rule(rule, opening, self._json(f"{rule}_value", schema, place))

    def _json(self, rule: str, schema: Any, place: str) -> str:
        if _has_reference(schema):
            definitions = {key: self._schema[key] for key in _DEFINITIONS if isinstance(self._schema.get(key), Mapping)}
            root = "arguments"
            while root in definitions.get("$defs", {}):
                root += "_"
            whole = {key: value for key, value in self._schema.items() if key not in _DEFINITIONS}
            moved = _moved(definitions, root)
            moved["$defs"] = {**moved.get("$defs", {}), root: _moved(whole, root)}
            schema = {**moved, **_moved(schema, root)}
        return self._writer.rule(rule, json_value(schema), literal(_CLOSE))

    def _string(self, rule: str, schema: Any, place: str) -> str:
        """The text of a string, as it is."""
        return _text(self._writer, rule, self._string_text(schema, place))

    def _string_text(self, schema: Any, place: str) -> str:
        assert isinstance(schema, Mapping), "its type was found to be string"
        says = {key: value for key, value in schema.items() if not is_note(key)}
        if "$ref" in says:
            if len(says) > 1:
                raise self._problem(place, "has keywords beside $ref, which can't be held to for a string of a call")
            return self._string_text(resolve(says["$ref"], self._schema), place)
        if says.keys() == {"allOf"} and len(says["allOf"]) == 1:
            return self._string_text(says["allOf"][0], f"{place}.allOf.0")
        for keyword in _OF_OPTIONS:
            if keyword in says and says.keys() <= {keyword, "type"}:
                options = enumerate(says[keyword])
                return one_of(*(self._string_text(option, f"{place}.{keyword}.{i}") for i, option in options))
        for keyword in says:
            if keyword not in _OF_STRINGS:
                raise self._problem(f"{place}.{keyword}", "can't be held to for a string in this model's calls")
        if "enum" in says or "const" in says:
            values = [says["const"]] if "const" in says else says["enum"]
            values = [value for value in values if isinstance(value, str)] if isinstance(values, list) else []
            if not values:
                raise self._problem(place, "has no value that is a string")
            if any("</atem:" in value for value in values):
                raise self._problem(place, "has a value with `</atem:`, which this model's calls can't hold")
            return one_of(*map(literal, values))
        rules = [f"/{text}/" for text in self._patterns(says, place)]
        if "minLength" in says or "maxLength" in says:
            # Counting and looking out for a tag at once would take too many states.
            rules.append(f"/[^<]{{{says.get('minLength', 0)},{says.get('maxLength', '')}}}/")
        else:
            rules += ["/(?s:.*)/", _NO_TAG]
        return f"({' & '.join(rules)})"

    def _patterns(self, schema: Mapping[str, Any], place: str) -> Iterator[str]:
        if "format" in schema:
            if not isinstance(schema["format"], str) or schema["format"] not in FORMATS:
                formats = ", ".join(FORMATS)
                raise self._problem(f"{place}.format", f"must be one of {formats} for a string in this model's calls")
            yield FORMATS[schema["format"]]
        if "pattern" in schema:
            text = whole_text(schema["pattern"]) if isinstance(schema["pattern"], str) else None
            if text is None:
                raise self._problem(f"{place}.pattern", "must be a regular expression with anchors at its ends only")
            yield text

    def _problem(self, place: str, problem: str) -> InvalidSchema:
        path = f"{self._field}{place}"
        return InvalidSchema(f"`{path[:300]}` {problem}", param=path[:300])


def _text(writer: GrammarWriter, rule: str, text: str) -> str:
    """A raw value with its closing tag, as one terminal: the text must not take the tag for a part of itself."""
    return writer.rule(rule.upper(), f"({text})", literal(_CLOSE))


def _opening(writer: GrammarWriter, prefix: str, taken: Iterable[str]) -> str:
    """The opening tag of a parameter of any name that is not `taken`; one terminal, so that it is told from those."""
    names = "|".join(re.escape(name).replace("/", r"\/") for name in taken)
    key = f"({_OTHER_KEY} & ~/{names}/)" if names else _OTHER_KEY
    return writer.rule(f"{prefix}_opening".upper(), literal(_OPEN), key, literal(_OPENED))


def _has_reference(schema: Any) -> bool:
    if isinstance(schema, Mapping):
        return isinstance(schema.get("$ref"), str) or any(map(_has_reference, schema.values()))
    return isinstance(schema, list) and any(map(_has_reference, schema))


def _moved(schema: Any, root: str) -> Any:
    """The same where the schema of all arguments, to which `#` refers, is not the root but the definition `root`."""
    if isinstance(schema, list):
        return [_moved(part, root) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    moved: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _BY_NAME and isinstance(value, Mapping):
            moved[key] = {name: _moved(part, root) for name, part in value.items()}
        else:
            moved[key] = value if key in _VALUES else _moved(value, root)
    reference = schema.get("$ref")
    if isinstance(reference, str) and not reference.startswith(("#/$defs/", "#/definitions/")):
        moved["$ref"] = f"#/$defs/{root}{reference.removeprefix('#')}"
    return moved
