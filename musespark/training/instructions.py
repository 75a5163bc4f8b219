"""Instruction data in the chat format: worked answers become reasoning when the effort asks for it.

A rationale that ends in "The answer is X." is written `to=self` at medium effort and above, and left out at low effort,
so that the model learns what the effort line means.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np

from musespark.chat.messages import Message, Text
from musespark.errors import DataError
from musespark.training.conversations import Conversation
from musespark.training.shards import read_rows, read_texts

LONGEST = 1200  # characters of a question or an answer; a row of nano holds about 1,800
REASONED = ("gsm8k_train", "flan_cot")
LIMITS = {  # conversations of each file; the small model learns more from many short ones
    "multiple_choice_train": 13_000,
    "flan_cot": 7_000,
    "t0_subset": 6_000,
    "gsm8k_train": 2_500,
    "mawps_no_multiarith": 1_200,
    "gpteacher": 1_500,
    "proofwriter_train": 400,
}
THINKING = ("medium", "high", "xhigh")
MARK = "\nThe answer is "


def instruction_conversations(data: Path, *, seed: int = 0) -> Iterator[Conversation]:
    """The instruction files, each up to its limit, and health questions with the start of their answers."""
    rng = np.random.default_rng(seed)
    for name, limit in LIMITS.items():
        path = data / "instruct" / f"{name}.jsonl.zst"
        for number, row in enumerate(read_rows(path), start=1):
            pair = _pair(row.get("messages"), f"{path.name} line {number}")
            if max(map(len, pair)) > LONGEST:
                continue
            yield _conversation(*pair, reasoned=name in REASONED, rng=rng)
            limit -= 1
            if not limit:
                break
    yield from health_conversations(data, limit=4_000)


def _pair(messages: object, where: str) -> tuple[str, str]:
    """Question and answer of a row with one user turn and one assistant turn."""
    problem = DataError(f"{where}: `messages` must be a user's and an assistant's message with text")
    if not isinstance(messages, list) or len(messages) < 2:
        raise problem
    user, assistant = messages[:2]
    for message, role in ((user, "user"), (assistant, "assistant")):
        if not isinstance(message, dict) or message.get("role") != role or not isinstance(message.get("content"), str):
            raise problem
    return user["content"], assistant["content"]


def _conversation(question: str, answer: str, *, reasoned: bool, rng: np.random.Generator) -> Conversation:
    user = Message("user", (Text(question),))
    if not reasoned or MARK not in answer:
        return Conversation((user, Message("assistant", (Text(answer),))))
    reasoning, _, result = answer.rpartition(MARK)
    content = (Text(f"The answer is {result}"),)
    if rng.random() < 0.5:
        return Conversation((user, Message("assistant", content)))
    return Conversation((user, Message("assistant", content, reasoning=reasoning)), effort=str(rng.choice(THINKING)))


def health_conversations(data: Path, *, limit: int) -> Iterator[Conversation]:
    """ "Question: … Answer: …" texts as a turn, the answer cut to its first two sentences."""
    paths = sorted((data / "text").glob("qa-*.jsonl.zst"))
    for text in chain.from_iterable(map(read_texts, paths)):
        question, found, answer = text.partition("Answer:")
        if not found:
            continue
        sentences = answer.strip().split(". ")
        short = ". ".join(sentences[:2]).rstrip(".") + "."
        if len(short) > 500 or "\n" in short:
            continue
        question = question.replace("Question:", "").strip()
        yield Conversation((Message("user", (Text(question),)), Message("assistant", (Text(short),))))
        limit -= 1
        if not limit:
            break
