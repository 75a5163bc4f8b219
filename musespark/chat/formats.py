"""Which family a checkpoint speaks like, by its `model_type`: the one door to prompts and answers of any checkpoint.

What differs between the families is in `families/`. A checkpoint's own template is honoured where it brings one; the
renderers here are what is used without.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Protocol

from musespark.chat import atem_format
from musespark.chat.atem_format import AtemFormat
from musespark.chat.checkpoint_template import CheckpointTemplate, find_template
from musespark.chat.constraint import Constraint
from musespark.chat.deltas import StreamParser
from musespark.chat.families import llama4, muse_glimmer, muse_spark
from musespark.chat.messages import Message, Tool
from musespark.chat.prompt import Prompt
from musespark.chat.ranks import tokenizer_from_ranks
from musespark.chat.settings import ChatSettings
from musespark.chat.tokenizer import Tokenizer
from musespark.errors import CheckpointError, ConfigError

DIALECTS = {"muse_spark": muse_spark.DIALECT, "muse_glimmer": muse_glimmer.DIALECT}
MODEL_TYPES = (*DIALECTS, "llama4")


class ChatFormat(Protocol):
    """How one checkpoint is talked to. Safe to share between threads; `close` ends what its template runs in.

    stop_token_ids: what ends a turn.
    answer_token_ids: the control tokens that an answer may hold; all others can't be said.
    end_of_reasoning: the control token that ends a piece of reasoning; None for a family that does not reason.
    """

    stop_token_ids: frozenset[int]
    answer_token_ids: frozenset[int]
    end_of_reasoning: int | None

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        reasoning_effort: str | None = None,
        today: date | None = None,
    ) -> Prompt:
        """The prompt for the assistant's next turn; `today` is the clock's if it is None. Raises InvalidRequest."""
        ...

    def reply(self, text: str) -> list[int]:
        """What a model would generate after such a prompt to say `text` and nothing else, its end included."""
        ...

    def parser(self, *, tools: Sequence[Tool] = ()) -> StreamParser:
        """A reader for one answer to a prompt with these tools."""
        ...

    def grammar(self, constraint: Constraint) -> str:
        """The turns that keep to `constraint`, in llguidance's notation. Raises InvalidRequest and InvalidSchema."""
        ...

    def count_image_tokens(self, width: int, height: int) -> int:
        """Tokens of the prompt that an image of this many pixels takes. Raises InvalidImage."""
        ...

    def close(self) -> None: ...


def open_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a checkpoint: `tokenizer.json`, or the ranks in `tokenizer.model`. Raises CheckpointError."""
    for name, read in (("tokenizer.json", Tokenizer.from_file), ("tokenizer.model", tokenizer_from_ranks)):
        if (folder / name).exists():
            return read(folder / name)
    raise CheckpointError(f"{folder} has neither a tokenizer.json nor a tokenizer.model")


def open_format(folder: Path, model_type: str, tokenizer: Tokenizer) -> ChatFormat:
    """The format of the checkpoint in `folder`. Raises CheckpointError for bad files, ConfigError for other types."""
    if model_type not in MODEL_TYPES:
        raise ConfigError(f"{folder}: model_type {model_type!r} has no chat format; known are {', '.join(MODEL_TYPES)}")
    placeholder = llama4.IMAGE_PLACEHOLDER if model_type == "llama4" else atem_format.IMAGE_PLACEHOLDER
    found = find_template(folder)
    template = CheckpointTemplate(*found, tokenizer, placeholder=placeholder) if found else None
    if template is not None:
        # What our own renderer ends a prompt with is where the parser expects an answer to begin.
        own = make_format(model_type, tokenizer, None).render([]).token_ids
        start = "<|header_start|>" if model_type == "llama4" else "<|start|>"
        last = len(own) - 1 - own[::-1].index(tokenizer.special(start))
        template.check_ending(own[last:])
    settings = None
    if model_type in DIALECTS:
        settings = ChatSettings.from_file(folder, DIALECTS[model_type].settings)
    return make_format(model_type, tokenizer, settings, template)


def make_format(
    model_type: str,
    tokenizer: Tokenizer,
    settings: ChatSettings | None = None,
    template: CheckpointTemplate | None = None,
) -> ChatFormat:
    """A format from its parts; the family's own settings if they are None."""
    if model_type == "llama4":
        return llama4.Llama4Format(tokenizer, template)
    dialect = DIALECTS[model_type]
    return AtemFormat(dialect, tokenizer, settings or dialect.settings, template)
