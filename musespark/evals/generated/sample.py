"""What a generator makes: one conversation and the answer that is right, by construction.

The generators beside this file draw from a numpy Generator only, so that a seed names a sample for good. Training draws
from even seeds, scoring from odd ones (`training_rng`, `scoring_rng`): what is scored was never trained on.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from PIL import Image as PillowImage

from musespark.chat.messages import Image, Message, Text, Tool

Rng = np.random.Generator
Option = TypeVar("Option")


@dataclass(frozen=True, slots=True)
class Sample:
    """`messages` ask, `answer` is what the assistant should say next: text, reasoning, or calls of `tools`."""

    messages: tuple[Message, ...]
    answer: Message
    tools: tuple[Tool, ...] = ()

    @property
    def text(self) -> str:
        """The text of the right answer."""
        return "".join(part.text for part in self.answer.content if isinstance(part, Text))


Generator = Callable[[Rng], Sample]


def training_rng(seed: int) -> Rng:
    return np.random.default_rng(2 * seed)


def scoring_rng(seed: int) -> Rng:
    return np.random.default_rng(2 * seed + 1)


def asked(question: str, answer: str, *, steps: str | None = None, image: PillowImage.Image | None = None) -> Sample:
    """One question, about an image perhaps, and its answer; `steps` are the reasoning that leads to it."""
    parts = (Text(question),) if image is None else (Image(png(image)), Text(question))
    return Sample((Message("user", parts),), Message("assistant", (Text(answer),), reasoning=steps))


def pick(options: Sequence[Option], rng: Rng) -> Option:
    return options[int(rng.integers(len(options)))]


def sentence(text: str) -> str:
    """With its first letter large, whatever the others are."""
    return text[:1].upper() + text[1:]


def png(image: PillowImage.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
