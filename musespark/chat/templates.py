"""Messages to token ids, in the chat format of Muse Spark ("ATEM").

A prompt is `<|begin_of_text|>`, then messages `<|start|>HEADER<|message|>BODY END`, then `<|start|>assistant`, after
which the model writes its own header. END is `<|eot|>`, or `<|eom|>` where the same speaker goes on. Only what this
file writes becomes a control token; headers and bodies are encoded as text, each run between two control tokens as one
string. This renderer stands in for the template file of a published checkpoint; training renders with it too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from musespark.chat.images import PatchedImage, load_images
from musespark.chat.messages import Image, Message, Text, ToolCall
from musespark.chat.tokenizer import Tokenizer
from musespark.errors import CheckpointError, InvalidRequest

EFFORTS = ("low", "medium", "high", "xhigh")
RECIPIENTS = '# Valid recipients: "self", "user".'


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the engine takes: image i fills the `<|patch|>` rows `image_spans[i]` = [start, end) of `token_ids`."""

    token_ids: list[int]
    images: tuple[PatchedImage, ...] = ()
    image_spans: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class ChatSettings:
    """How a checkpoint wants its system message: the file `chat_settings.json` beside the weights."""

    default_system: str = "You are a helpful AI assistant."
    default_reasoning_effort: str = "high"
    knowledge_cutoff: str | None = None
    include_date: bool = False

    @classmethod
    def from_file(cls, folder: Path) -> ChatSettings:
        """The settings of the checkpoint in `folder`, or the defaults. Raises CheckpointError for a bad file."""
        path = Path(folder) / "chat_settings.json"
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{path} can't be read as JSON: {error}") from None
        names = [field.name for field in fields(cls)]
        if not isinstance(data, dict) or not set(data) <= set(names):
            raise CheckpointError(f"{path} must hold a JSON object with some of {', '.join(names)}")
        settings = cls(**data)
        settings._check(path)
        return settings

    def _check(self, path: Path) -> None:
        cutoff = self.knowledge_cutoff
        if not isinstance(self.default_system, str) or not (cutoff is None or isinstance(cutoff, str)):
            raise CheckpointError(f"{path}: default_system and knowledge_cutoff must be strings")
        if self.default_reasoning_effort not in EFFORTS:
            raise CheckpointError(f"{path}: default_reasoning_effort must be one of {', '.join(EFFORTS)}")
        if not isinstance(self.include_date, bool):
            raise CheckpointError(f"{path}: include_date must be true or false")


def render(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    settings: ChatSettings,
    *,
    reasoning_effort: str | None = None,
    today: date | None = None,
) -> Prompt:
    """The prompt that asks the assistant for its next turn.

    `today` is written where the settings ask for the date; None means the clock's date in UTC. Raises InvalidRequest
    for an unknown effort, tool calls whose arguments are not a JSON object, or a tool result that names no call;
    InvalidImage for a bad image.
    """
    directives = _Directives(_effort(reasoning_effort, settings))
    images = load_images([part.data for message in messages for part in message.content if isinstance(part, Image)])
    writer = _Writer(tokenizer, images)
    writer.control("<|begin_of_text|>")
    if not messages or messages[0].role != "system":
        writer.message("system", directives.after([Text(_default_system(settings, today))]), "<|eot|>")
    tool_names = {call.id: call.name for message in messages for call in message.tool_calls}
    for i, message in enumerate(messages):
        if message.role == "system":
            writer.message("system", directives.after(message.content), "<|eot|>")
        elif message.role == "user":
            writer.message("user", message.content, "<|eot|>")
        elif message.role == "tool":
            _write_tool_result(writer, message, tool_names)
        else:
            goes_on = i + 1 < len(messages) and messages[i + 1].role == "assistant"
            _write_assistant(writer, message, goes_on)
    writer.control("<|start|>")
    writer.text("assistant")
    return writer.prompt()


def render_reply(message: Message, tokenizer: Tokenizer) -> list[int]:
    """What the model should generate after a prompt of `render` to say `message`: what training puts its loss on."""
    writer = _Writer(tokenizer, ())
    _write_assistant(writer, message, goes_on=False)
    opening = [tokenizer.special("<|start|>"), *tokenizer.encode("assistant")]
    token_ids = writer.prompt().token_ids
    assert token_ids[: len(opening)] == opening, "the tokenizer must keep the word `assistant` apart from what follows"
    return token_ids[len(opening) :]


class _Writer:
    """Collects a prompt, run by run."""

    def __init__(self, tokenizer: Tokenizer, images: tuple[PatchedImage, ...]) -> None:
        self._tokenizer = tokenizer
        self._images = images
        self._token_ids: list[int] = []
        self._spans: list[tuple[int, int]] = []

    def control(self, name: str) -> None:
        self._token_ids.append(self._tokenizer.special(name))

    def text(self, text: str) -> None:
        self._token_ids += self._tokenizer.encode(text)

    def message(self, header: str, parts: Iterable[Text | Image], end: str) -> None:
        self.control("<|start|>")
        self.text(header)
        self.control("<|message|>")
        run = ""  # texts side by side are one run: "1" and "2" in two parts read as "12"
        for part in parts:
            if isinstance(part, Text):
                run += part.text
            else:
                self.text(run)
                run = ""
                self._next_image()
        self.text(run)
        self.control(end)

    def _next_image(self) -> None:
        image = self._images[len(self._spans)]
        self.control("<|image_start|>")
        start = len(self._token_ids)
        self._token_ids += [self._tokenizer.special("<|patch|>")] * image.num_tokens
        self._spans.append((start, len(self._token_ids)))
        self.control("<|image_end|>")

    def prompt(self) -> Prompt:
        assert len(self._spans) == len(self._images)
        return Prompt(self._token_ids, self._images, tuple(self._spans))


@dataclass(frozen=True, slots=True)
class _Directives:
    """The lines that end every system message."""

    effort: str

    def after(self, parts: Sequence[Text | Image]) -> list[Text | Image]:
        own = "".join(part.text for part in parts if isinstance(part, Text))
        # A system message that sets the effort itself keeps its own line.
        effort = "" if "reasoning effort:" in own.lower() else f"\n\nReasoning effort: {self.effort}."
        return [*parts, Text(f"{effort}\n\n{RECIPIENTS}")]


def _default_system(settings: ChatSettings, today: date | None) -> str:
    text = settings.default_system
    if settings.knowledge_cutoff is not None:
        text += f"\nKnowledge cutoff: {settings.knowledge_cutoff}."
    if settings.include_date:
        text += f"\nCurrent date: {today or datetime.now(UTC).date()}."
    return text


def _effort(asked: str | None, settings: ChatSettings) -> str:
    if asked is None:
        return settings.default_reasoning_effort
    if asked == "minimal":
        return "low"
    if asked not in EFFORTS:
        allowed = ", ".join(("minimal", *EFFORTS))
        raise InvalidRequest(
            f"reasoning_effort is {asked!r}; this model always reasons, with one of {allowed}", param="reasoning_effort"
        )
    return asked


def _write_assistant(writer: _Writer, message: Message, goes_on: bool) -> None:
    """Reasoning, then either the answer, or a remark to the user and the calls, each a message of its own."""
    if message.reasoning:
        writer.message("assistant to=self", [Text(message.reasoning)], "<|eom|>")
    if not message.tool_calls:
        writer.message("assistant to=user", message.content, "<|eot|>")
        return
    if any(not isinstance(part, Text) or part.text for part in message.content):
        writer.message("assistant to=commentary", message.content, "<|eom|>")
    *others, last = message.tool_calls
    for call in others:
        writer.message(f"assistant to={call.name}", [Text(_invoke(call))], "<|eom|>")
    writer.message(f"assistant to={last.name}", [Text(_invoke(last))], "<|eom|>" if goes_on else "<|eot|>")


def _write_tool_result(writer: _Writer, message: Message, tool_names: dict[str, str]) -> None:
    call_id = message.tool_call_id
    name = message.name or (tool_names.get(call_id, call_id) if call_id else None)
    if not name:
        raise InvalidRequest("a message of role 'tool' needs a tool_call_id, or a name")
    opening, closing = Text(f'<tool_output name="{name}">\n'), Text("\n</tool_output>")
    writer.message(f"tool {name}", [opening, *message.content, closing], "<|eot|>")


def _invoke(call: ToolCall) -> str:
    """A call as the model writes it. Raises InvalidRequest if its arguments are not a JSON object."""
    try:
        # Clients send an empty string for a call without arguments.
        arguments = json.loads(call.arguments or "{}")
        lines = [f'<atem:parameter name="{name}">{_value(v)}</atem:parameter>' for name, v in arguments.items()]
    except (ValueError, AttributeError, RecursionError):
        raise InvalidRequest(f"the arguments of the tool call {call.id!r} must be a JSON object, as text") from None
    invoke = [f'<atem:invoke name="{call.name}">', *lines, "</atem:invoke>"]
    return "\n".join(["<atem:function_calls>", *invoke, "</atem:function_calls>"])


def _value(value: Any) -> str:
    """A string verbatim, anything else as JSON. Raises ValueError for NaN and infinity, which JSON has not."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, allow_nan=False)
