"""Generated questions as conversations; the steps are written as reasoning where the effort asks for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from musespark.chat.messages import Message
from musespark.evals.generated.catalogue import samples
from musespark.evals.generated.sample import Sample, training_rng
from musespark.training.conversations import Conversation
from musespark.training.instructions import THINKING

THINKS = 0.4  # share of the samples with steps whose steps are written


def generated_conversations(counts: Mapping[str, int], *, seed: int = 0) -> Iterator[Conversation]:
    """`counts[name]` samples of each generator, one generator after the other; packing shuffles them."""
    rng = np.random.default_rng(seed)
    for number, (name, count) in enumerate(sorted(counts.items())):
        for sample in samples(name, training_rng(seed * 1000 + number), count):
            yield _conversation(sample, rng)


def _conversation(sample: Sample, rng: np.random.Generator) -> Conversation:
    answer = sample.answer
    if answer.reasoning is None:
        return Conversation((*sample.messages, answer), tools=sample.tools)
    if rng.random() < THINKS:
        return Conversation((*sample.messages, answer), effort=str(rng.choice(THINKING)), tools=sample.tools)
    brief = Message("assistant", answer.content, tool_calls=answer.tool_calls)
    return Conversation((*sample.messages, brief), tools=sample.tools)
