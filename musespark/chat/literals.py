"""Literals that models write, in JSON or in Python's notation, and where one ends. Nothing is ever evaluated."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

# Escapes that Python warns of and takes for a backslash and a letter.
_UNFIT_ESCAPE = re.compile(r"\\(?:([^\n\\'\"abfnrtvxuUN0-3])|.)", re.DOTALL)


class NoLiteral(ValueError):
    """A text that is no literal of either notation."""


def read_literal(text: str) -> Any:
    """The value of a JSON or Python literal. Raises NoLiteral."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    plain = _UNFIT_ESCAPE.sub(lambda escape: f"\\{escape[0]}" if escape[1] else escape[0], text.strip())
    try:
        return ast.literal_eval(plain)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise NoLiteral from None


def to_json(value: Any) -> str:
    """Raises NoLiteral for what JSON has not: NaN, sets, bytes, half a surrogate pair."""
    try:
        encoded = json.dumps(value, ensure_ascii=False, allow_nan=False)
        encoded.encode()
    except (ValueError, TypeError, RecursionError):
        raise NoLiteral from None
    return encoded


class Balance:
    """Finds the end of a piece outside of its strings and brackets; goes on where it stopped when text was added."""

    def __init__(self) -> None:
        self._next: int | None = None
        self._depth = 0
        self._quote = ""
        self._escaped = False

    def find(self, text: str, start: int, ends: str) -> int:
        """The place of the first of `ends`, or of a bracket too many, at or after `start`; -1 if it isn't there yet."""
        for at in range(start if self._next is None else self._next, len(text)):
            if self._is_end(text[at], ends):
                return at
        self._next = len(text)
        return -1

    def _is_end(self, character: str, ends: str) -> bool:
        if self._quote:
            if self._escaped:
                self._escaped = False
            elif character == "\\":
                self._escaped = True
            elif character == self._quote:
                self._quote = ""
        elif self._depth == 0 and (character in ends or character in ")]}"):
            return True
        elif character in "\"'":
            self._quote = character
        elif character in "([{":
            self._depth += 1
        elif character in ")]}":
            self._depth -= 1
        return False
