"""A checkpoint's own chat template: found in its folder, run in the sandbox, its text turned into token ids.

The template gives one string in which control tokens are spelled out, so it must be known which of them it wrote and
which came from people. What people wrote is marked before rendering: an invisible character that occurs nowhere else
breaks everything that is, or could be put together to, the name of a control token. Names that come out whole are the
template's. The marks are taken out again when the text between them is encoded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any

from musespark.chat.atem_tools import call_arguments
from musespark.chat.messages import Image, Message, Text, Tool, ToolCall
from musespark.chat.prompt import Prompt, PromptWriter
from musespark.chat.template_sandbox import TemplateSandbox
from musespark.chat.tokenizer import Tokenizer
from musespark.errors import CheckpointError, InvalidRequest

_CONTROL_NAME = re.compile(r"<\|[^<>|]+\|>")
_PRIVATE_USE = range(0xF0000, 0xFFFFE)  # characters without a meaning, of which some do not occur in a conversation


class CheckpointTemplate:
    """A template bound to a tokenizer.

    placeholder: the control token that it writes for an image.
    """

    def __init__(self, template: str, source: str, tokenizer: Tokenizer, *, placeholder: str) -> None:
        """Raises CheckpointError for one that is no template, or that can't write a plain question."""
        self._template = template
        self._source = source
        self._tokenizer = tokenizer
        self._placeholder = placeholder
        self._names = [name for name in tokenizer.special_names if _CONTROL_NAME.fullmatch(name)]
        self._control = re.compile("(" + "|".join(map(re.escape, self._names)) + ")")
        self._sandbox = TemplateSandbox(template, source)

    def close(self) -> None:
        self._sandbox.close()

    def check_ending(self, expected: list[int]) -> None:
        """Raises CheckpointError if a plain question does not end with the tokens that an answer is expected after."""
        try:
            ids = self.render([Message("user", (Text("Hi"),))], (), lambda writer: None, {}, None).token_ids
        except InvalidRequest as error:
            raise CheckpointError(f"{self._source}: {error}") from None
        if ids[-len(expected) :] != expected:
            raise CheckpointError(f"{self._source} does not end a prompt as this kind of model begins its answers")

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool],
        write_image: Callable[[PromptWriter], None],
        variables: Mapping[str, Any],
        today: date | None,
    ) -> Prompt:
        """The prompt for the assistant's next turn. `write_image` writes the next image of the conversation.

        `variables` are the template's own settings. Raises InvalidRequest if the template refuses the conversation or
        leaves out an image, CheckpointError if it is stopped at a limit.
        """
        said = {
            "messages": [_describe(message) for message in messages],
            "tools": [_describe_tool(tool) for tool in tools] or None,
        }
        mark = self._unused_character(said)
        now = datetime.combine(today, time.min) if today else datetime.now(UTC)
        text = self._sandbox.render(
            {
                **variables,
                **self._marked(said, mark),
                "add_generation_prompt": True,
                "bos_token": "<|begin_of_text|>",
                "eos_token": "<|eot|>",
            },
            now,
        )
        writer = PromptWriter(self._tokenizer)
        num_images = 0
        for run in self._control.split(text):
            if run == self._placeholder:
                num_images += 1
                write_image(writer)
            elif run in self._names:
                writer.control(run)
            else:
                writer.text(run.replace(mark, ""))
        expected = sum(isinstance(part, Image) for message in messages for part in message.content)
        if num_images != expected:
            raise InvalidRequest(
                f"the model's template has a place for {num_images} of the {expected} images", param="messages"
            )
        return writer.prompt()

    def _unused_character(self, said: Mapping[str, Any]) -> str:
        used = set(json.dumps(said, ensure_ascii=False)) | set(self._template)
        return next(chr(code) for code in _PRIVATE_USE if chr(code) not in used)

    def _marked(self, value: Any, mark: str) -> Any:
        """The same data with every text that people wrote marked; the fields' own names are ours."""
        if isinstance(value, _Said):
            return self._mark(value, mark)
        if isinstance(value, dict):
            return {self._marked(key, mark): self._marked(item, mark) for key, item in value.items()}
        if isinstance(value, list):
            return [self._marked(item, mark) for item in value]
        return value

    def _mark(self, text: str, mark: str) -> str:
        """Break what is a name, and what is part of one: it could become whole beside other text.

        The mark goes inside of what a template may trim.
        """
        core = text.strip()
        if not core:
            return text
        lead, _, trail = text.partition(core)
        inner = core.replace("<|", f"<{mark}|").replace("|>", f"|{mark}>")
        if core.startswith(">"):
            inner = mark + inner
        if core.endswith("<") or any(core.casefold() in name for name in self._names):
            inner += mark
        return lead + inner + trail


class _Said(str):
    """A text that people wrote."""

    __slots__ = ()


def find_template(folder: Path) -> tuple[str, str] | None:
    """The template of a checkpoint folder and the file it is in: `chat_template.jinja`, or `tokenizer_config.json`.

    None if it brings none. Raises CheckpointError for files that can't be read.
    """
    path = folder / "chat_template.jinja"
    try:
        if path.exists():
            return path.read_text(encoding="utf-8"), str(path)
        path = folder / "tokenizer_config.json"
        if not path.exists():
            return None
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} can't be read: {error}") from None
    template = config.get("chat_template") if isinstance(config, dict) else None
    if isinstance(template, list):  # several, by name
        named = {item.get("name"): item.get("template") for item in template if isinstance(item, dict)}
        template = named.get("default")
    if template is None:
        return None
    if not isinstance(template, str):
        raise CheckpointError(f"{path}: chat_template must be a string")
    return template, str(path)


def _describe(message: Message) -> dict[str, Any]:
    """A message as templates know it. Fields that say nothing are absent: templates ask whether they are there."""
    described: dict[str, Any] = {"role": message.role, "content": _describe_content(message)}
    if message.reasoning:
        described["reasoning_content"] = _Said(message.reasoning)
    if message.tool_calls:
        described["tool_calls"] = [
            {
                "id": _Said(call.id),
                "type": "function",
                "function": {"name": _Said(call.name), "arguments": _said(_arguments(call))},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        described["tool_call_id"] = _Said(message.tool_call_id)
    if message.name is not None:
        described["name"] = _Said(message.name)
    return described


def _arguments(call: ToolCall) -> dict[str, Any]:
    """An object whatever the model wrote: templates go through its items."""
    arguments = call_arguments(call)
    return {"arguments": arguments} if isinstance(arguments, str) else arguments


def _describe_content(message: Message) -> str | list[dict[str, Any]]:
    if all(isinstance(part, Text) for part in message.content):
        return _Said("".join(part.text for part in message.content if isinstance(part, Text)))
    return [
        {"type": "text", "text": _Said(part.text)} if isinstance(part, Text) else {"type": "image"}
        for part in message.content
    ]


def _describe_tool(tool: Tool) -> dict[str, Any]:
    try:
        parameters = json.loads(json.dumps(tool.parameters, allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        raise InvalidRequest(f"the parameters of the tool {tool.name!r} must be a JSON schema", param="tools") from None
    function = {"name": _Said(tool.name), "description": _Said(tool.description), "parameters": _said(parameters)}
    return {"type": "function", "function": function}


def _said(value: Any) -> Any:
    """JSON that people wrote, with all its texts and names marked as theirs."""
    if isinstance(value, str):
        return _Said(value)
    if isinstance(value, dict):
        return {_Said(key): _said(item) for key, item in value.items()}
    return [_said(item) for item in value] if isinstance(value, list) else value
