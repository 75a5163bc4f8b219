"""The tags of the Muse families' calls as patterns, and what could still become one when more text comes.

`atem_calls` reads with these. All repetitions are bounded, so that a long text is read in linear time.
"""

from __future__ import annotations

import re

MAX_NAME = 200  # characters of a name in a tag; a longer one is no tag
MAX_SPACE = 16  # between a closing tag and what shows that it is one

_NAMED = rf'(?:invoke|parameter)\s{{1,4}}name="?[^"<>\n]{{1,{MAX_NAME}}}"?'
_LONGEST_TAG = len('<atem:parameter    name="') + MAX_NAME + len('"    ')
_BETWEEN = rf"\s{{0,{MAX_SPACE}}}"


def _beginning_of(*literals: str) -> str:
    """A pattern for any beginning of one of the literals, the empty one and the whole included."""
    return "(?:" + "|".join("".join(f"(?:{re.escape(c)}" for c in text) + ")?" * len(text) for text in literals) + ")"


# A tag; groups: the slash of a closing one, the kind if it is not the frame around all calls, the name. A tag that
# lacks its `>` ends where the next begins.
TAG = re.compile(
    rf'<(/?)atem:(?:function_calls|(invoke|parameter)(?:\s{{1,4}}name="?([^"<>\n]{{1,{MAX_NAME}}})"?)?)'
    r"\s{0,4}(?:>|(?=<))"
)
# A tag that lacks its `>`, at the end of a text.
OPEN_TAG_AT_END = re.compile(rf"<(?:/?atem:function_calls|/atem:(?:invoke|parameter)|atem:{_NAMED})\Z")
CLOSING_TAG_AT_END = re.compile(r"</atem:(?:invoke|parameter)\Z")
# The tags that may close a value at the end of a body, the last of them perhaps incomplete.
CLOSING_TAGS_AT_END = re.compile(
    r"(?:</atem:parameter>|\n?</atem:invoke>)(?:\s|</atem:\w{1,20}>)*(?:</(?:atem:\w{0,20})?)?\Z"
)

_AFTER_VALUE = ("<atem:parameter ", "<atem:invoke ", "</atem:parameter>", "</atem:invoke>", "</atem:function_calls>")
_AFTER_CALL = ("<atem:invoke ", "</atem:function_calls>")
# The end of a value: its closing tag, or that of the call, where a tag follows that can stand there. Only the value's
# own tag, and the line break before the call's, are part of the match.
VALUE_END = re.compile(
    rf"</atem:parameter>(?={_BETWEEN}(?:{'|'.join(_AFTER_VALUE)}))"
    rf"|\n?(?=</atem:invoke>{_BETWEEN}(?:{'|'.join(_AFTER_CALL)}))"
)
_VALUE_END_SO_FAR = re.compile(
    "|".join(
        [
            _beginning_of("</atem:parameter>", "</atem:invoke>", "\n</atem:invoke>"),
            rf"</atem:parameter>{_BETWEEN}{_beginning_of(*_AFTER_VALUE)}",
            rf"\n?</atem:invoke>{_BETWEEN}{_beginning_of(*_AFTER_CALL)}",
        ]
    )
)
_VALUE_END_STARTS = re.compile(r"<|\n(?=<|\Z)")
_TAG_SO_FAR = re.compile(
    "|".join(
        [
            _beginning_of("<atem:function_calls", "</atem:function_calls", "</atem:invoke", "</atem:parameter"),
            r"</?atem:function_calls\s{0,4}|</atem:(?:invoke|parameter)\s{0,4}",
            _beginning_of("<atem:invoke", "<atem:parameter"),
            rf"<atem:(?:invoke|parameter)\s{{1,4}}{_beginning_of('name=')}",
            rf'<atem:(?:invoke|parameter)\s{{1,4}}name="?[^"<>\n]{{0,{MAX_NAME}}}"?\s{{0,4}}',
        ]
    )
)


def could_become_tag(text: str) -> bool:
    """Whether `text`, which starts with `<` and not with a tag, may be the beginning of one."""
    return len(text) <= _LONGEST_TAG and _TAG_SO_FAR.fullmatch(text) is not None


def certain_length(value: str) -> int:
    """How much of a text without a value's end is part of the value, whatever follows."""
    for start in _VALUE_END_STARTS.finditer(value):
        if _VALUE_END_SO_FAR.fullmatch(value, start.start()):
            return start.start()
    return len(value)
