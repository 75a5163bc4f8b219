"""`pattern` and `format` of JSON schemas as regular expressions that a whole text must match, in a grammar's notation.

A schema's pattern may match anywhere in the text, in the dialect of ECMA-262; a grammar's matches all of it and knows
no anchors. So an anchor at either end becomes the absence of "anything" there, and one elsewhere can't be expressed.
"""

from __future__ import annotations

_DAY = r"(0[1-9]|[12][0-9]|3[01])"
_DATE = rf"[0-9]{{4}}-((0[13578]|1[02])-{_DAY}|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))"
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?(Z|[+\-]([01][0-9]|2[0-3]):[0-5][0-9])"
_BYTE = r"(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_NAME = r"[A-Za-z0-9]{1,20}(-[A-Za-z0-9]{1,20})?"
_COUNT = "[1-9][0-9]{0,3}"
# Those that clients' libraries write for their own types. Every match is valid; not all that is valid matches.
FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "uuid": r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    "email": rf"[A-Za-z0-9_+\-]{{1,15}}(\.[A-Za-z0-9_+\-]{{1,15}}){{0,3}}@{_NAME}(\.{_NAME}){{1,4}}",
    "ipv4": rf"{_BYTE}(\.{_BYTE}){{3}}",
    "ipv6": r"([0-9a-f]{1,4}:){7}[0-9a-f]{1,4}|([0-9a-f]{1,4}:){1,3}(:[0-9a-f]{1,4}){1,3}",
    "hostname": rf"{_NAME}(\.{_NAME}){{0,4}}",
    "uri": rf"(https?|ftp):\/\/{_NAME}(\.{_NAME}){{0,4}}(:[1-9][0-9]{{0,3}})?(\/[A-Za-z0-9._~\-]{{0,60}}){{0,12}}"
    r"(\?[A-Za-z0-9._~=&+\-]{1,200})?(#[A-Za-z0-9._~\-]{1,60})?",
    "duration": rf"P({_COUNT}W|{_COUNT}D(T{_COUNT}H)?|T({_COUNT}H({_COUNT}M({_COUNT}S)?)?|{_COUNT}M({_COUNT}S)?"
    rf"|{_COUNT}S))",
}
ANYTHING = "(?s:.*)"
# Rust's classes hold all of Unicode's digits and letters, ECMA's those of ASCII.
_CLASSES = {"d": "0-9", "w": "A-Za-z0-9_"}
_NEGATED = {"D": "[^0-9]", "W": "[^A-Za-z0-9_]"}


def whole_text(pattern: str) -> str | None:
    """A regular expression for all texts in which `pattern` is found; None if that can't be said without anchors."""
    at_start, at_end = pattern.startswith("^"), pattern.endswith("$") and not _is_escaped(pattern)
    body = _translated(pattern[at_start : len(pattern) - at_end])
    if body is None or ((at_start or at_end) and _has_alternatives(body)):
        return None
    return f"{'' if at_start else ANYTHING}({body}){'' if at_end else ANYTHING}"


def _is_escaped(pattern: str) -> bool:
    """Whether the last character is."""
    before = pattern[:-1]
    return (len(before) - len(before.rstrip("\\"))) % 2 == 1


def _translated(body: str) -> str | None:
    """The same in Rust's dialect, with `/` escaped. None for anchors, look-around and the like."""
    written: list[str] = []
    in_class, opened = False, 0
    characters = iter(body)
    for character in characters:
        if character == "\\":
            escaped = next(characters, "")
            if escaped in _CLASSES:
                written.append(_CLASSES[escaped] if in_class else f"[{_CLASSES[escaped]}]")
            elif escaped in _NEGATED and not in_class:
                written.append(_NEGATED[escaped])
            elif not escaped or escaped in "bBDWAzZkGQ" or escaped.isdigit():
                return None
            else:
                written.append(f"\\{escaped}")
            continue
        if in_class:
            if character == "]" and "".join(written[opened:]) in ("[", "[^"):
                return None  # an empty set in ECMA, a bracket in a set in Rust
            in_class = character != "]"
            written.append(f"\\{character}" if character in "[&~/" else character)  # those have a meaning in Rust
        elif character in "^$":
            return None
        else:
            in_class = character == "["
            opened = len(written)
            written.append("\\/" if character == "/" else character)
    return "".join(written)


def _has_alternatives(body: str) -> bool:
    """Whether there is a `|` outside of all brackets."""
    depth, in_class, escaped = 0, False, False
    for character in body:
        if escaped:
            escaped = False
        elif character == "\\":
            escaped = True
        elif in_class:
            in_class = character != "]"
        elif character == "[":
            in_class = True
        elif character in "()":
            depth += 1 if character == "(" else -1
        elif character == "|" and depth == 0:
            return True
    return False
