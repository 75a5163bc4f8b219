"""The Muse families' format as one object: a dialect bound to a tokenizer, a checkpoint's settings and its template."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Any

from musespark.chat import templates
from musespark.chat.atem_constraint import turn_grammar
from musespark.chat.atem_tools import check_names
from musespark.chat.checkpoint_template import CheckpointTemplate
from musespark.chat.constraint import Constraint
from musespark.chat.dialect import Dialect
from musespark.chat.images import load_images, plan_grid
from musespark.chat.messages import Image, Message, Text, Tool
from musespark.chat.parser import ChatParser
from musespark.chat.prompt import Prompt
from musespark.chat.settings import ChatSettings, choose_effort
from musespark.chat.tokenizer import Tokenizer

IMAGE_PLACEHOLDER = "<|patch|>"


class AtemFormat:
    """A `ChatFormat`."""

    def __init__(
        self, dialect: Dialect, tokenizer: Tokenizer, settings: ChatSettings, template: CheckpointTemplate | None = None
    ) -> None:
        self._dialect = dialect
        self._tokenizer = tokenizer
        self._settings = settings
        self._template = template
        self.stop_token_ids = tokenizer.stop_token_ids
        marks = ("<|start|>", "<|message|>", "<|eom|>")
        self.answer_token_ids = self.stop_token_ids | {tokenizer.special(name) for name in marks}
        self.end_of_reasoning: int | None = tokenizer.special("<|eom|>")

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        reasoning_effort: str | None = None,
        today: date | None = None,
    ) -> Prompt:
        if self._template is None:
            return templates.render(
                messages,
                self._tokenizer,
                self._settings,
                tools=tools,
                reasoning_effort=reasoning_effort,
                today=today,
                dialect=self._dialect,
            )
        check_names(tools)
        effort = choose_effort(reasoning_effort, self._settings)
        images = iter(load_images([p.data for m in messages for p in m.content if isinstance(p, Image)]))
        variables: dict[str, Any] = {
            # Each family's template reads one of the two and ignores the other.
            "reasoning_effort": effort,
            "reasoning_strength": effort,
            "current_date": str(today or datetime.now(UTC).date()),
        }
        if self._settings.knowledge_cutoff is not None:
            variables["knowledge_cutoff"] = self._settings.knowledge_cutoff
        return self._template.render(
            messages, tools, lambda writer: templates.write_image(writer, next(images)), variables, today
        )

    def reply(self, text: str) -> list[int]:
        answer = Message("assistant", (Text(text),))
        return templates.render_reply(answer, self._tokenizer, dialect=self._dialect)

    def parser(self, *, tools: Sequence[Tool] = ()) -> ChatParser:
        return ChatParser(self._tokenizer, tools=tools, dialect=self._dialect)

    def grammar(self, constraint: Constraint) -> str:
        return turn_grammar(constraint, self._tokenizer, self._dialect)

    def count_image_tokens(self, width: int, height: int) -> int:
        rows, columns = plan_grid(width, height)
        return rows * columns + 2  # the marks around it

    def close(self) -> None:
        if self._template is not None:
            self._template.close()
