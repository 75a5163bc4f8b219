"""Messages to token ids, in the chat format of the Muse families ("ATEM").

A prompt is `<|begin_of_text|>`, then messages `<|start|>HEADER<|message|>BODY END`, then `<|start|>assistant`, after
which the model writes its own header. END is `<|eot|>`, or `<|eom|>` where the same speaker goes on. Only what this
file writes becomes a control token; headers and bodies are encoded as text, each run between two control tokens as one
string. This renderer stands in for the template file of a published checkpoint; training renders with it too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime

from musespark.chat.atem_tools import check_names, invoke, recipients, tool_block
from musespark.chat.dialect import Dialect
from musespark.chat.families import muse_spark
from musespark.chat.images import PatchedImage, load_images
from musespark.chat.messages import Image, Message, Text, Tool
from musespark.chat.prompt import Prompt, PromptWriter
from musespark.chat.settings import EFFORTS, ChatSettings, choose_effort
from musespark.chat.tokenizer import Tokenizer
from musespark.errors import InvalidRequest

__all__ = ["EFFORTS", "ChatSettings", "Prompt", "render", "render_reply"]


def render(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    settings: ChatSettings,
    *,
    tools: Sequence[Tool] = (),
    reasoning_effort: str | None = None,
    today: date | None = None,
    dialect: Dialect = muse_spark.DIALECT,
) -> Prompt:
    """The prompt that asks the assistant for its next turn.

    `today` is written where the settings ask for the date; None means the clock's date in UTC. Raises InvalidRequest
    for an unknown effort, a tool whose schema is not JSON or whose name is taken, or a tool result that names no call;
    InvalidImage for a bad image.
    """
    check_names(tools)
    directives = _Directives(dialect, choose_effort(reasoning_effort, settings), tools)
    images = load_images([part.data for message in messages for part in message.content if isinstance(part, Image)])
    writer = _Writer(tokenizer, dialect, images)
    writer.prompt.control("<|begin_of_text|>")
    if not messages or messages[0].role != "system":
        writer.message("system", directives.after([Text(_default_system(settings, today))]), "<|eot|>")
    tool_names = {call.id: call.name for message in messages for call in message.tool_calls}
    for i, message in enumerate(messages):
        if message.role == "system":
            writer.message("system", directives.after(message.content), "<|eot|>")
        elif message.role == "user":
            writer.message("user", message.content, "<|eot|>")
        elif message.role == "tool":
            writer.tool_result(message, tool_names)
        else:
            goes_on = i + 1 < len(messages) and messages[i + 1].role == "assistant"
            writer.assistant(message, goes_on)
    writer.prompt.control("<|start|>")
    writer.prompt.text("assistant")
    return writer.prompt.prompt()


def render_reply(message: Message, tokenizer: Tokenizer, *, dialect: Dialect = muse_spark.DIALECT) -> list[int]:
    """What the model should generate after a prompt of `render` to say `message`: what training puts its loss on."""
    writer = _Writer(tokenizer, dialect, ())
    writer.assistant(message, goes_on=False)
    opening = [tokenizer.special("<|start|>"), *tokenizer.encode("assistant")]
    token_ids = writer.prompt.prompt().token_ids
    assert token_ids[: len(opening)] == opening, "the tokenizer must keep the word `assistant` apart from what follows"
    return token_ids[len(opening) :]


class _Writer:
    """Writes messages of the format into a prompt."""

    def __init__(self, tokenizer: Tokenizer, dialect: Dialect, images: Sequence[PatchedImage]) -> None:
        self.prompt = PromptWriter(tokenizer)
        self._dialect = dialect
        self._images: Iterator[PatchedImage] = iter(images)

    def message(self, header: str, parts: Iterable[Text | Image], end: str) -> None:
        self.prompt.control("<|start|>")
        self.prompt.text(header)
        self.prompt.control("<|message|>")
        self.prompt.parts(parts, self._next_image)
        self.prompt.control(end)

    def assistant(self, message: Message, goes_on: bool) -> None:
        """Reasoning, then either the answer, or a remark to the user and the calls, each a message of its own."""
        if message.reasoning:
            self.message("assistant to=self", [Text(message.reasoning)], "<|eom|>")
        if not message.tool_calls:
            self.message("assistant to=user", message.content, "<|eot|>")
            return
        says_something = any(not isinstance(part, Text) or part.text for part in message.content)
        if says_something and self._dialect.comments_on_calls:
            self.message("assistant to=commentary", message.content, "<|eom|>")
        *others, last = message.tool_calls
        for call in others:
            self.message(f"assistant to={call.name}", [Text(invoke(call))], "<|eom|>")
        self.message(f"assistant to={last.name}", [Text(invoke(last))], "<|eom|>" if goes_on else "<|eot|>")

    def tool_result(self, message: Message, tool_names: dict[str, str]) -> None:
        call_id = message.tool_call_id
        name = message.name or (tool_names.get(call_id, call_id) if call_id else None)
        if not name:
            raise InvalidRequest("a message of role 'tool' needs a tool_call_id, or a name")
        opening, closing = Text(f'<tool_output name="{name}">\n'), Text("\n</tool_output>")
        self.message(f"tool {name}", [opening, *message.content, closing], "<|eot|>")

    def _next_image(self) -> None:
        write_image(self.prompt, next(self._images))


def write_image(prompt: PromptWriter, image: PatchedImage) -> None:
    prompt.control("<|image_start|>")
    prompt.rows(image)
    prompt.control("<|image_end|>")


@dataclass(frozen=True, slots=True)
class _Directives:
    """The lines that end every system message."""

    dialect: Dialect
    effort: str
    tools: Sequence[Tool]

    def after(self, parts: Sequence[Text | Image]) -> list[Text | Image]:
        parts = [Text(self._rewritten(part.text)) if isinstance(part, Text) else part for part in parts]
        own = "".join(part.text for part in parts if isinstance(part, Text))
        blocks = []
        if self.dialect.own_effort not in own.lower():
            blocks.append(f"Reasoning {self.dialect.effort_word}: {self.effort}.")
        if self.tools:
            blocks.append(tool_block(self.tools))
        blocks.append(recipients(self.tools))
        return [*parts, Text("".join(f"\n\n{block}" for block in blocks))]

    def _rewritten(self, text: str) -> str:
        for words, ours in self.dialect.effort_aliases:
            text = text.replace(words, ours)
        return text


def _default_system(settings: ChatSettings, today: date | None) -> str:
    text = settings.default_system
    if settings.knowledge_cutoff is not None:
        text += f"\nKnowledge cutoff: {settings.knowledge_cutoff}."
    if settings.include_date:
        text += f"\nCurrent date: {today or datetime.now(UTC).date()}."
    return text
