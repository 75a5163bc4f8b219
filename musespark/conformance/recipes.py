"""What the suite tests of the networks: small checkpoints, and prompts that reach the places where engines go wrong.

A checkpoint is one `config.json` whose weights follow from its name and the suite's seed. A prompt is text tokens and
pictures in the order of the sequence. The mistakes that a case must find are named here and defined in `mistakes.py`;
writing a suite measures each of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from musespark.chat.tokenizer import LLAMA4_TOKENS, SPECIAL_TOKENS, Tokenizer
from musespark.conformance.suite import Family

NUM_SPECIAL = 32  # the ids below are control tokens, then come the 256 bytes
VOCAB_SIZE = NUM_SPECIAL + 256
# The published names that Llama 4's format needs, filled up so that both tokenizers have bytes at the same ids.
LLAMA4_SPECIAL = (
    *LLAMA4_TOKENS,
    "<|finetune_right_pad|>",
    *(f"<|reserved_{i}|>" for i in range(len(LLAMA4_TOKENS) + 1, NUM_SPECIAL)),
)


def byte_tokenizer(family: Family) -> Tokenizer:
    return Tokenizer.bytes_only(LLAMA4_SPECIAL if family == "llama4" else SPECIAL_TOKENS)


@dataclass(frozen=True, slots=True)
class Picture:
    """An image as the network takes it: rows × columns patches of 14 pixels."""

    rows: int
    columns: int

    @property
    def num_tokens(self) -> int:
        return self.rows * self.columns // 4


Part = int | Picture | str  # a number of text tokens, a picture, or one control token by name


@dataclass(frozen=True, slots=True)
class LogitCase:
    """positions: those whose logits are compared, negative ones counted from the end; None for all."""

    name: str
    about: str
    parts: Sequence[Part]
    mistakes: Sequence[str]
    positions: Sequence[int] | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """`config` is the content of config.json as a checkpoint's publisher may write it, before our own reading."""

    name: str
    family: Family
    config: dict[str, Any]
    cases: Sequence[LogitCase]
    as_published: dict[str, Any] = field(default_factory=dict)  # fields of text_config written in an older spelling


def all_recipes() -> tuple[Recipe, ...]:
    from musespark.conformance.llama4_recipes import LLAMA4
    from musespark.conformance.muse_recipes import MUSE_GLIMMER, MUSE_SPARK

    return (*MUSE_SPARK, *MUSE_GLIMMER, *LLAMA4)
