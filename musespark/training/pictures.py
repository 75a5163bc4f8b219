"""Conversations about pictures: what is this, name this icon, which flag, describe this.

Answers are short and say the kind first ("Icon: phone remove."), which puts the name behind a space, where text has its
words too.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from musespark.chat.messages import Image, Message, Text
from musespark.errors import DataError
from musespark.evals.benchmarks import name_answer
from musespark.training.conversations import Conversation
from musespark.training.shards import read_images

FAMILIES = ("emoji", "icons", "flags", "storybook", "figures", "grocery", "clothing")
SMALL_FAMILIES = ("emoji", "icons", "flags")  # 9 to 12 tokens each; a photo has 64
ANY = ("What is this?", "What is in this image?", "What do you see?", "What does the picture show?")
NAME = {
    "emoji": (*ANY, "Name this emoji.", "Which emoji is this?"),
    "icons": (*ANY, "Name this icon.", "Which icon is this?"),
    "flags": (*ANY, "Which flag is this?", "Whose flag is this?"),
    "grocery": (*ANY, "What product is in the picture?"),
    "clothing": (*ANY, "What kind of clothing is this?"),
}
DESCRIBE = (
    "Describe this image.",
    "Describe the picture.",
    "Write a caption.",
    "What can you tell me about this image?",
)
LONGEST_CAPTION = 400  # characters; figures have whole paragraphs


def name_conversations(data: Path) -> Iterator[Conversation]:
    """Only small pictures with a short name, many to a conversation: most of what is learned is the names."""
    return picture_conversations(
        data, families=SMALL_FAMILIES, rounds=6, sizes=(1, 4, 8), described=0.05, asked_plainly=0.5, seed=1
    )


def picture_conversations(
    data: Path,
    *,
    families: tuple[str, ...] = FAMILIES,
    rounds: int = 2,
    sizes: tuple[int, ...] = (1, 3),
    described: float = 0.2,
    asked_plainly: float = 0.0,
    seed: int = 0,
) -> Iterator[Conversation]:
    """Every training picture of the families `rounds` times, in conversations about as many pictures as `sizes` has.

    described, asked_plainly: the shares of named pictures whose caption is asked for, and of the plain "What is this?".
    """
    rng = np.random.default_rng(seed)
    turns = [
        (family, image, _checked(row, family, f"{path.name} {stem}"))
        for family in families
        for path in sorted((data / "images").glob(f"{family}-*.tar"))
        for stem, image, row in read_images(path)
    ]
    if not turns:
        raise DataError(f"{data / 'images'} holds no pictures; give the data pack with --data or MUSESPARK_DATA")
    for _ in range(rounds):
        order = rng.permutation(len(turns))
        start = 0
        while start < len(order):
            count = int(rng.choice(sizes))
            messages: list[Message] = []
            for i in order[start : start + count]:
                family, image, row = turns[i]
                messages += picture_turn(family, image, row, rng, described, asked_plainly)
            yield Conversation(tuple(messages))
            start += count


def picture_turn(
    family: str, image: bytes, row: dict[str, Any], rng: np.random.Generator, described: float, asked_plainly: float
) -> list[Message]:
    """A question about one picture and its answer."""
    describe = family not in NAME or rng.random() < described
    if describe:
        question, answer = str(rng.choice(DESCRIBE)), caption(row)
    elif family == "flags" and "question" in row and rng.random() < 0.15:
        question, answer = row["question"], row["answer"] + "."
    else:
        question = ANY[0] if rng.random() < asked_plainly else str(rng.choice(NAME[family]))
        answer = name_answer(family, row["name"])
    return [Message("user", (Image(image), Text(question))), Message("assistant", (Text(answer),))]


def _checked(row: dict[str, Any], family: str, where: str) -> dict[str, Any]:
    for field in ("text", "name") if family in NAME else ("text",):
        if not isinstance(row.get(field), str) or not row[field].strip():
            raise DataError(f"{where}: `{field}` must be a string that is not empty")
    return row


def caption(row: dict[str, Any]) -> str:
    text: str = row["text"].strip()
    if len(text) <= LONGEST_CAPTION:
        return text
    return text[: text.rfind(".", 0, LONGEST_CAPTION) + 1] or text[:LONGEST_CAPTION]
