"""What an answer must be, said without a format; and the parts from which each format writes a grammar of its turns.

A grammar is text in llguidance's notation. It describes a whole turn: reasoning is free text, and what follows it is an
answer to the user or calls, in the marks of the format. Marks are control tokens by id, so no text can pass for one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from musespark.chat.tokenizer import Tokenizer

MAX_CALLS = 16  # in one turn that must hold calls: a model that knows no tools would go on for ever

# JSON comes in one line, as `json.dumps` writes it or without the spaces. Where line breaks or indentation are allowed,
# a small model writes them in every place until it is cut off.
_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}


@dataclass(frozen=True, slots=True)
class CallRule:
    """A tool that may be called, with any arguments if `schema` is None. `field` is its place in the request."""

    name: str
    schema: Mapping[str, Any] | None
    field: str


@dataclass(frozen=True, slots=True)
class Constraint:
    """An answer to the user, unless `must_call`; or else up to `max_calls` calls to some of `calls`.

    content: the schema of the answer; None if it is free text.
    """

    content: Mapping[str, Any] | None = None
    calls: tuple[CallRule, ...] = ()
    must_call: bool = False
    max_calls: int = MAX_CALLS


class GrammarWriter:
    """Collects the rules of a grammar; the first is `start`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._rules: list[str] = []

    def rule(self, name: str, *body: str) -> str:
        """Add a rule whose parts follow each other. Returns its name."""
        self._rules.append(f"{name}: {' '.join(body)}")
        return name

    def control(self, name: str) -> str:
        return f"<[{self._tokenizer.special(name)}]>"

    def text(self) -> str:
        """The whole grammar."""
        return "\n".join(self._rules)


def literal(text: str) -> str:
    """Exactly this text."""
    return json.dumps(text, ensure_ascii=False)


def json_value(schema: Mapping[str, Any] | bool) -> str:
    """A JSON value that the schema allows."""
    schema = {} if schema is True else {"enum": []} if schema is False else schema
    return f"%json {json.dumps({**schema, 'x-guidance': _LAYOUT}, ensure_ascii=False)}"


def one_of(*options: str) -> str:
    return f"({' | '.join(options)})"


def json_grammar(schema: Mapping[str, Any]) -> str:
    """Nothing but a value of the schema: to find out whether it can be compiled."""
    return f"start: value\nvalue: {json_value(schema)}"
