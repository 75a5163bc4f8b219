"""The tools in a system message of the Muse families: whom to speak to, which functions there are, how to call them.

The parts and their order are those of the published template; the wording is ours, since the exact words come with a
checkpoint that brings its template.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from musespark.chat.messages import Tool, ToolCall
from musespark.errors import InvalidRequest

USER_RECIPIENTS = ("user", "commentary", "developer")  # whose messages are shown
RESERVED_RECIPIENTS = ("self", *USER_RECIPIENTS)

_INTRODUCTION = """\
You have a set of tools for this conversation. To use one, write a block of this form:
<atem:function_calls>
<atem:invoke name="$FUNCTION_NAME">
<atem:parameter name="$PARAMETER_NAME">$PARAMETER_VALUE</atem:parameter>
...
</atem:invoke>
</atem:function_calls>

Write strings and other single values as they are, without quotes, and lists and objects as JSON. Spaces in a string \
count. The block is found with regular expressions and need not be valid XML.

Here are the functions available in JSONSchema format:
"""
_EXAMPLE = """\


A call with two parameters:
<atem:function_calls>
<atem:invoke name="example_function">
<atem:parameter name="text">two words</atem:parameter>
<atem:parameter name="numbers">[1, 2]</atem:parameter>
</atem:invoke>
</atem:function_calls>"""


def recipients(tools: Sequence[Tool]) -> str:
    """The line that says to whom the model may write. A tool's namespace is its name up to the first dot."""
    names = ["self", *(f"{namespace}.*" for namespace in _namespaces(tools)), "user"]
    return f"# Valid recipients: {', '.join(_json(name) for name in names)}."


def check_names(tools: Sequence[Tool]) -> None:
    """Raises InvalidRequest for two tools of one name, or a name that the format gives to somebody else."""
    for tool in tools:
        if tool.name in RESERVED_RECIPIENTS:
            raise InvalidRequest(
                f"a tool can't be named {tool.name!r}: this model writes to {', '.join(RESERVED_RECIPIENTS)} itself",
                param="tools",
            )
    names = [tool.name for tool in tools]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InvalidRequest(f"two tools are named {twice!r}", param="tools")


def tool_block(tools: Sequence[Tool]) -> str:
    """Raises InvalidRequest for a schema that is not JSON."""
    metadata = [_json({"name": namespace, "description": ""}) for namespace in _namespaces(tools)]
    schemas = [_schema(tool) for tool in tools]
    lines = ["// Tool metadata", *metadata, "// Function schemas", *schemas]
    return _INTRODUCTION + "\n".join(lines) + _EXAMPLE


def invoke(call: ToolCall) -> str:
    """A call as the model writes it; arguments that are no object stand in it as they are."""
    arguments = call_arguments(call)
    if isinstance(arguments, str):
        lines = [arguments]
    else:
        lines = [f'<atem:parameter name="{name}">{_value(v)}</atem:parameter>' for name, v in arguments.items()]
    opened = [f'<atem:invoke name="{call.name}">', *lines, "</atem:invoke>"]
    return "\n".join(["<atem:function_calls>", *opened, "</atem:function_calls>"])


def call_arguments(call: ToolCall) -> dict[str, Any] | str:
    """The arguments of an earlier call; their very text if that is not a JSON object.

    Models do write such calls, and clients send them back: refusing one would end its conversation for good.
    """
    try:
        arguments = json.loads(call.arguments or "{}")  # clients send an empty string for a call without arguments
        json.dumps(arguments, allow_nan=False)
    except (ValueError, RecursionError):
        return call.arguments
    return arguments if isinstance(arguments, dict) else call.arguments


def _namespaces(tools: Sequence[Tool]) -> list[str]:
    return list(dict.fromkeys(tool.name.partition(".")[0] for tool in tools))


def _schema(tool: Tool) -> str:
    try:
        return _json({"name": tool.name, "description": tool.description, "parameters": tool.parameters})
    except (TypeError, ValueError, RecursionError):
        raise InvalidRequest(f"the parameters of the tool {tool.name!r} must be a JSON schema", param="tools") from None


def _value(value: Any) -> str:
    """A string verbatim, anything else as JSON."""
    return value if isinstance(value, str) else _json(value)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
