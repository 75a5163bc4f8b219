"""What a task asks of a model: how likely text is, and what it answers. Who answers is not this room's business.

A local checkpoint does both (`providers/local_scorer.py`, `providers/provider_sampler.py`); a model behind an API only
answers, so tasks that need probabilities are left out for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from musespark.chat.messages import Message, Tool
from musespark.chat.prompt import Prompt
from musespark.chat.tokenizer import Tokenizer


class Scorer(Protocol):
    @property
    def tokenizer(self) -> Tokenizer: ...

    def render(self, messages: Sequence[Message]) -> Prompt:
        """The prompt for the assistant's next turn, in the model's own format."""
        ...

    def reply(self, text: str) -> list[int]:
        """What the model would generate after such a prompt to say `text` and nothing else, its end included."""
        ...

    def log_probs(self, prompt: Prompt, continuations: Sequence[Sequence[int]]) -> list[float]:
        """ln P(continuation | prompt) of each, tokens summed. The prompt has a token, and each continuation has one."""
        ...


@dataclass(frozen=True, slots=True)
class Question:
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()


class Sampler(Protocol):
    def answers(self, questions: Sequence[Question], *, max_tokens: int) -> list[Message]:
        """The likeliest answer to each (temperature 0), cut off at `max_tokens`, in the order of the questions."""
        ...
