"""A user's conversations from a JSONL file, in the shape of OpenAI's chat messages. A bad row names file and line.

    {"messages": [{"role": "user", "content": "What is this?"}, …, {"role": "assistant", "content": "A cat."}],
     "tools": [{"type": "function", "function": {"name": …, "description": …, "parameters": {…}}}]}

`content` is a text, or parts: {"type": "text", "text": …} and {"type": "image", "path": "cat.png"} (relative to the
file) or {"type": "image_url", "image_url": {"url": "data:image/png;base64,…"}}. An assistant's message may have
`reasoning_content` and `tool_calls`; the last message must be the assistant's. Text that spells a control token stays
text.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from musespark.chat.images import load_image
from musespark.chat.messages import Image, Message, Text, Tool, ToolCall
from musespark.errors import DataError, InvalidImage
from musespark.training.conversations import Conversation

LONGEST_ROW = 64 << 20  # bytes of one line: sixteen pictures in base64
ROLES = ("system", "user", "assistant", "tool")
EFFORTS = ("low", "medium", "high", "xhigh")
DATA_URL = ";base64,"


def read_conversations(path: Path) -> Iterator[Conversation]:
    """The rows of the file in order. Raises DataError; an empty file gives none."""
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(LONGEST_ROW + 1):
                number += 1
                if line.strip():
                    yield _Row(path, number).conversation(line)
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}") from None


class _Row:
    """Reads one line; its place is in every error."""

    def __init__(self, path: Path, number: int) -> None:
        self._folder = path.parent
        self._where = f"{path.name} line {number}"

    def conversation(self, line: bytes) -> Conversation:
        if len(line) > LONGEST_ROW:
            raise self._error(f"is longer than {LONGEST_ROW:,} bytes")
        try:
            row = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError:
            raise self._error("is not UTF-8") from None
        except ValueError as error:
            raise self._error(f"is not JSON: {error}") from None
        if not isinstance(row, dict) or not isinstance(row.get("messages"), list):
            raise self._error("must be an object with a list `messages`")
        unknown = set(row) - {"messages", "tools", "reasoning_effort"}
        if unknown:
            raise self._error(f"has an unknown field {min(unknown)!r}")
        effort = row.get("reasoning_effort", "low")
        if effort not in EFFORTS:
            raise self._error(f"has the reasoning_effort {effort!r}; there are {', '.join(EFFORTS)}")
        messages = tuple(self._message(i, value) for i, value in enumerate(row["messages"]))
        if len(messages) < 2 or messages[-1].role != "assistant":
            raise self._error("must end with an assistant's message that answers something")
        return Conversation(messages, effort, tuple(self._tool(tool) for tool in row.get("tools") or ()))

    def _message(self, index: int, value: Any) -> Message:
        where = f"messages[{index}]"
        if not isinstance(value, dict) or value.get("role") not in ROLES:
            raise self._error(f"{where}: `role` must be one of {', '.join(ROLES)}")
        content = value.get("content")
        if content is None and value.get("tool_calls"):
            content = []
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, list):
            raise self._error(f"{where}: `content` must be a text or a list of parts")
        reasoning = value.get("reasoning_content")
        if reasoning is not None and not isinstance(reasoning, str):
            raise self._error(f"{where}: `reasoning_content` must be a text")
        return Message(
            value["role"],
            tuple(self._part(f"{where}.content[{i}]", part) for i, part in enumerate(parts)),
            reasoning=reasoning,
            tool_calls=tuple(self._call(where, call) for call in value.get("tool_calls") or ()),
            tool_call_id=value.get("tool_call_id"),
            name=value.get("name"),
        )

    def _part(self, where: str, part: Any) -> Text | Image:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            return Text(part["text"])
        if kind == "image" and isinstance(part.get("path"), str):
            try:
                data = (self._folder / part["path"]).read_bytes()
            except OSError as error:
                raise self._error(f"{where}: {part['path']} can't be read: {error.strerror}") from None
        elif kind == "image_url" and DATA_URL in str((part.get("image_url") or {}).get("url")):
            try:
                data = base64.b64decode(part["image_url"]["url"].partition(DATA_URL)[2], validate=True)
            except binascii.Error:
                raise self._error(f"{where}: the image is not base64") from None
        else:
            raise self._error(f"{where}: a part is a text, an image with a path, or an image_url with a data: URL")
        try:
            load_image(data)
        except InvalidImage as error:
            raise self._error(f"{where}: {error.message}") from None
        return Image(data)

    def _call(self, where: str, call: Any) -> ToolCall:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not all(isinstance(function.get(k), str) for k in ("name", "arguments")):
            raise self._error(f"{where}: a tool call has a function with a name and arguments, both texts")
        return ToolCall(str(call.get("id", "")), function["name"], function["arguments"])

    def _tool(self, tool: Any) -> Tool:
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise self._error("tools: each has a function with a name")
        parameters = function.get("parameters") or {"type": "object", "properties": {}}
        return Tool(function["name"], function.get("description") or "", parameters)

    def _error(self, problem: str) -> DataError:
        return DataError(f"{self._where} {problem}")
