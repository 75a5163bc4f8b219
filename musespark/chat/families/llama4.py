"""Llama 4: headers instead of addressed messages, images in tiles, calls in JSON or Python, and no reasoning."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime
from typing import Any

from musespark.chat import llama4_constraint, llama4_template
from musespark.chat.checkpoint_template import CheckpointTemplate
from musespark.chat.constraint import Constraint
from musespark.chat.llama4_parser import Llama4Parser
from musespark.chat.messages import Image, Message, Text, Tool
from musespark.chat.prompt import Prompt
from musespark.chat.settings import refuse_effort
from musespark.chat.tiles import count_tile_tokens, load_tiles
from musespark.chat.tokenizer import Tokenizer

IMAGE_PLACEHOLDER = "<|image|>"


class Llama4Format:
    """A `ChatFormat`."""

    def __init__(self, tokenizer: Tokenizer, template: CheckpointTemplate | None = None) -> None:
        self._tokenizer = tokenizer
        self._template = template
        # A turn of calls ends with `<|eom|>`, or with `<|eot|>` like any other.
        self.stop_token_ids = tokenizer.stop_token_ids | {tokenizer.special("<|eom|>")}
        marks = ("<|python_start|>", "<|python_end|>")
        self.answer_token_ids = self.stop_token_ids | {tokenizer.special(name) for name in marks}
        self.end_of_reasoning: int | None = None

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        reasoning_effort: str | None = None,
        today: date | None = None,
    ) -> Prompt:
        refuse_effort(reasoning_effort, "Llama 4")
        if self._template is None:
            return llama4_template.render(messages, self._tokenizer, tools=tools)
        images = iter(load_tiles([p.data for m in messages for p in m.content if isinstance(p, Image)]))
        variables: dict[str, Any] = {}
        if today is not None:
            variables["date_string"] = datetime(today.year, today.month, today.day).strftime("%d %b %Y")
        if tools and _opens_with_image(messages):
            # The published template can put tools before a first question only if that is a plain text.
            variables["tools_in_user_message"] = False
            if messages[0].role != "system":
                messages = [Message("system", (Text(""),)), *messages]
        return self._template.render(
            messages,
            tools,
            lambda writer: llama4_template.write_tiles(writer, next(images)),
            variables,
            today,
        )

    def reply(self, text: str) -> list[int]:
        return [*self._tokenizer.encode(text), self._tokenizer.special("<|eot|>")]

    def parser(self, *, tools: Sequence[Tool] = ()) -> Llama4Parser:
        return Llama4Parser(self._tokenizer, tools=tools)

    def grammar(self, constraint: Constraint) -> str:
        return llama4_constraint.turn_grammar(constraint, self._tokenizer)

    def count_image_tokens(self, width: int, height: int) -> int:
        return count_tile_tokens(width, height)

    def close(self) -> None:
        if self._template is not None:
            self._template.close()


def _opens_with_image(messages: Sequence[Message]) -> bool:
    first = next((message for message in messages if message.role != "system"), None)
    return first is not None and any(isinstance(part, Image) for part in first.content)
