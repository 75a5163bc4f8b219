"""Names that people give: printable, trimmed, of bounded length."""

from __future__ import annotations

from musespark.errors import InvalidRequest

LONGEST_NAME = 200
LONGEST_TEXT = 2000


def checked_name(name: str, what: str) -> str:
    """`name` without spaces around it. Raises InvalidRequest; `what` is whose name it is: "a key's"."""
    name = name.strip()
    if not 1 <= len(name) <= LONGEST_NAME or not name.isprintable():
        raise InvalidRequest(
            f"{what} name has 1 to {LONGEST_NAME} printable characters, not {name[:LONGEST_NAME]!r}", param="name"
        )
    return name


def checked_text(text: str, what: str, param: str) -> str:
    """A reason or a note, which must say something. Raises InvalidRequest."""
    text = text.strip()
    if not 1 <= len(text) <= LONGEST_TEXT or not text.replace("\n", " ").isprintable():
        raise InvalidRequest(f"{what} has 1 to {LONGEST_TEXT:,} printable characters", param=param)
    return text
