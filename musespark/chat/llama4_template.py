"""Messages to token ids, in the chat format of Llama 4.

A prompt is `<|begin_of_text|>`, then messages `<|header_start|>ROLE<|header_end|>\\n\\nBODY<|eot|>`, then the header of
the assistant's turn. Bodies, calls and results are written as the template published with transformers writes them;
only the words that introduce tools are ours. Reasoning of earlier turns has no place in the format and is left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from musespark.chat.atem_tools import call_arguments
from musespark.chat.messages import Image, Message, Text, Tool, ToolCall
from musespark.chat.prompt import Prompt, PromptWriter
from musespark.chat.tiles import TiledImage, load_tiles
from musespark.chat.tokenizer import Tokenizer
from musespark.errors import InvalidRequest

_TOOLS = """\
You have functions for this conversation. To call one, or several, answer with nothing but one JSON object each:
{"name": the name of the function, "parameters": an object with the value of each argument}
Write values out; there are no variables. These are the functions:
"""


def render(messages: Sequence[Message], tokenizer: Tokenizer, *, tools: Sequence[Tool] = ()) -> Prompt:
    """The prompt that asks the assistant for its next turn.

    Raises InvalidRequest for a tool whose schema is not JSON; InvalidImage for a bad image.
    """
    images = load_tiles([part.data for message in messages for part in message.content if isinstance(part, Image)])
    writer = _Writer(tokenizer, images)
    writer.prompt.control("<|begin_of_text|>")
    block = _tool_block(tools) if tools else ""
    if block and not (messages and messages[0].role == "system"):
        writer.message("system", Message("system", (Text(block),)))
        block = ""
    for message in messages:
        if message.role == "system":
            own = (Text(f"{block}\n\n"),) if block else ()
            writer.message("system", Message("system", (*own, *message.content)))
            block = ""
        elif message.role == "tool":
            writer.message("ipython", _as_json(message))
        elif message.tool_calls:
            writer.calls(message)
        else:
            writer.message(message.role, message)
    writer.header("assistant")
    writer.prompt.text("\n\n")
    return writer.prompt.prompt()


class _Writer:
    """Writes messages of the format into a prompt."""

    def __init__(self, tokenizer: Tokenizer, images: Sequence[TiledImage]) -> None:
        self.prompt = PromptWriter(tokenizer)
        self._images: Iterator[TiledImage] = iter(images)

    def header(self, role: str) -> None:
        self.prompt.control("<|header_start|>")
        self.prompt.text(role)
        self.prompt.control("<|header_end|>")

    def message(self, role: str, message: Message) -> None:
        self.header(role)
        self.prompt.parts(message.content, self._next_image, before="\n\n")
        self.prompt.control("<|eot|>")

    def calls(self, message: Message) -> None:
        """What the assistant said goes between the marks, the calls behind them, one JSON object after the other."""
        self.header("assistant")
        self.prompt.text("\n\n")
        self.prompt.control("<|python_start|>")
        self.prompt.parts(message.content, self._next_image)
        self.prompt.control("<|python_end|>")
        self.prompt.text("".join(_call(call) for call in message.tool_calls))
        self.prompt.control("<|eot|>")

    def _next_image(self) -> None:
        write_tiles(self.prompt, next(self._images))


def write_tiles(prompt: PromptWriter, image: TiledImage) -> None:
    """The tiles row by row with separators, then the global tile, or the only one."""
    *tiles, last = image.tiles
    columns = image.grid[1]
    prompt.control("<|image_start|>")
    for i, tile in enumerate(tiles, start=1):
        prompt.rows(tile)
        prompt.control("<|tile_x_separator|>" if i % columns else "<|tile_y_separator|>")
    prompt.control("<|image|>")
    prompt.rows(last)
    prompt.control("<|image_end|>")


def _call(call: ToolCall) -> str:
    arguments = call_arguments(call)
    written = arguments if isinstance(arguments, str) else _json(arguments)
    return f'{{"name": "{call.name}", "parameters": {written}}}'


def _tool_block(tools: Sequence[Tool]) -> str:
    try:
        schemas = [
            _json({"name": tool.name, "description": tool.description, "parameters": tool.parameters}) for tool in tools
        ]
    except (TypeError, ValueError, RecursionError):
        raise InvalidRequest("the parameters of every tool must be a JSON schema", param="tools") from None
    return _TOOLS + "\n".join(schemas)


def _as_json(message: Message) -> Message:
    """A tool's result is written as a JSON string, as published."""
    text = "".join(part.text for part in message.content if isinstance(part, Text))
    return Message("tool", (Text(_json(text)), *(part for part in message.content if isinstance(part, Image))))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
