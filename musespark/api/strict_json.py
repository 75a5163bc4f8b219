"""JSON, read strictly: what two parsers could take differently is refused, and so is what costs more than it says.

Refused: invalid UTF-8, duplicate keys, NaN and Infinity, numbers that no double holds (1e400), lone surrogates, nesting
beyond `MAX_DEPTH`, more than `MAX_VALUES` values. The bounds are checked by one linear pass over the bytes before
anything is built: 32 MiB of `[[],[],…` would otherwise become a gigabyte of objects.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from musespark.errors import InvalidRequest

MAX_DEPTH = 32
MAX_VALUES = 200_000
MAX_INTEGER_DIGITS = 40

# A string to its closing quote, if it has one, or one structural character. Possessive, so time is linear; the quote is
# optional, so that an unclosed string is one match and not a new search from each of its characters.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+("?)|[\[{\]},]', re.DOTALL)


def parse(body: bytes) -> Any:
    """The value in `body`. Raises InvalidRequest saying what is wrong."""
    _check_bounds(body)
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the body is not valid UTF-8: byte {error.start:,} is wrong") from None
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_float=_float,
            parse_int=_integer,
        )
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error.msg} at character {error.pos:,}") from None
    try:
        _check_values(value)
    except InvalidRequest as error:
        if error.param is None:
            raise
        raise InvalidRequest(f"`{error.param}`: {error.message}", param=error.param) from None
    return value


def _check_bounds(body: bytes) -> None:
    depth, values = 0, 1
    for count, match in enumerate(_TOKEN.finditer(body)):
        character = match[0][:1]
        if character == b'"':
            if not match[1]:
                raise InvalidRequest(f"the body is not valid JSON: the string at byte {match.start():,} has no end")
        elif character == b",":
            values += 1
        elif character in b"[{":
            depth, values = depth + 1, values + 1
            if depth > MAX_DEPTH:
                raise InvalidRequest(f"the body is nested deeper than {MAX_DEPTH} levels")
        else:
            depth -= 1
        # Valid JSON has at most five tokens a value: name, string, opening, closing, comma. Other bytes may have more.
        if values > MAX_VALUES or count > 5 * MAX_VALUES:
            raise InvalidRequest(f"the body holds more than {MAX_VALUES:,} values")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        double = _shown(next(name for name, count in counts.items() if count > 1))
        raise InvalidRequest(f"the key {double!r} appears twice in one object", param=double)
    return result


# A number that can't be read becomes its error, for `_check_values` to raise where the path to it is known.


def _constant(name: str) -> InvalidRequest:
    return InvalidRequest(f"{name} is not a JSON number")


def _float(text: str) -> float | InvalidRequest:
    value = float(text)
    return value if math.isfinite(value) else InvalidRequest(f"the number {_shown(text)} is too large")


def _integer(text: str) -> int | InvalidRequest:
    if len(text) > MAX_INTEGER_DIGITS:
        return InvalidRequest(f"the number {_shown(text)} has more than {MAX_INTEGER_DIGITS} digits")
    return int(text)


def _check_values(value: Any) -> None:
    """Raise InvalidRequest, `param` being the path, for a number that can't be read anywhere in `value`, or a string
    that holds half of a surrogate pair, which no UTF-8 can carry.
    """
    if isinstance(value, InvalidRequest):
        raise value
    if isinstance(value, str):
        if not value.isascii():
            try:
                value.encode("utf-8")
            except UnicodeEncodeError as error:
                escape = f"\\u{ord(value[error.start]):04x}"
                raise InvalidRequest(f"the body holds {escape}, half of a surrogate pair") from None
    elif isinstance(value, list):
        _check_items(enumerate(value))
    elif isinstance(value, dict):
        for name in value:
            _check_values(name)
        _check_items(value.items())


def _check_items(items: Iterable[tuple[int | str, Any]]) -> None:
    for name, item in items:
        try:
            _check_values(item)
        except InvalidRequest as error:  # the path grows on the way out, so that it costs nothing where all is well
            error.param = ".".join([_shown(str(name)), *([error.param] if error.param else [])])
            raise


def _shown(text: str) -> str:
    """`text` fit for an error message: short, and without characters that UTF-8 can't carry."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= 80 else text[:77] + "…"
