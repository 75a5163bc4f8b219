"""Naming pictures by choice: which of eight names does the network find likelier with the picture than without?

The score of a name is log P(answer | picture) - log P(answer | blank picture of the same size), so that names which are
common or short gain nothing. Wrong names are drawn from the other pictures of the same set.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image as PillowImage

from musespark.chat.images import PatchedImage
from musespark.chat.messages import Image, Message, Text
from musespark.chat.templates import ChatSettings, render, render_reply
from musespark.chat.tokenizer import Tokenizer
from musespark.model.network import MuseSpark


@dataclass(frozen=True, slots=True)
class Picture:
    data: bytes  # the encoded file
    answer: str  # what training would have it answer


@dataclass(frozen=True, slots=True)
class NamingScore:
    num_right: int
    num_pictures: int
    num_choices: int

    @property
    def accuracy(self) -> float:
        return self.num_right / self.num_pictures

    @property
    def standard_error(self) -> float:
        return math.sqrt(self.accuracy * (1 - self.accuracy) / self.num_pictures)

    @property
    def chance(self) -> float:
        return 1 / self.num_choices


def name_pictures(
    network: MuseSpark,
    pictures: Sequence[Picture],
    tokenizer: Tokenizer,
    settings: ChatSettings,
    *,
    question: str = "What is this?",
    num_choices: int = 8,
    seed: int = 0,
) -> NamingScore:
    rng = np.random.default_rng(seed)
    answers = sorted({picture.answer for picture in pictures})
    blank_scores: dict[tuple[tuple[int, int], str], float] = {}
    right = 0
    for picture in pictures:
        others = [answer for answer in answers if answer != picture.answer]
        wrong = rng.choice(len(others), size=num_choices - 1, replace=False)
        choices = [picture.answer, *(others[i] for i in wrong)]
        scores, grid = answer_log_probs(network, picture.data, question, choices, tokenizer, settings)
        missing = [choice for choice in choices if (grid, choice) not in blank_scores]
        if missing:
            blank = blank_picture(grid)
            for choice, score in zip(
                missing, answer_log_probs(network, blank, question, missing, tokenizer, settings)[0], strict=True
            ):
                blank_scores[grid, choice] = score
        gains = [score - blank_scores[grid, choice] for score, choice in zip(scores, choices, strict=True)]
        right += int(np.argmax(gains) == 0)
    return NamingScore(right, len(pictures), num_choices)


@torch.no_grad()
def answer_log_probs(
    network: MuseSpark,
    picture: bytes,
    question: str,
    answers: Sequence[str],
    tokenizer: Tokenizer,
    settings: ChatSettings,
) -> tuple[list[float], tuple[int, int]]:
    """Log P of each answer after the picture and the question; and the picture's grid in patches."""
    prompt = render([Message("user", (Image(picture), Text(question)))], tokenizer, settings)
    image: PatchedImage = prompt.images[0]
    features = network.encode_images([image])[0]
    replies = [render_reply(Message("assistant", (Text(answer),)), tokenizer) for answer in answers]
    length = len(prompt.token_ids) + max(map(len, replies))
    token_ids = torch.zeros(len(replies), length, dtype=torch.int64)  # what follows a reply is never looked at
    for row, reply in zip(token_ids, replies, strict=True):
        ids = torch.tensor(prompt.token_ids + reply)
        row[: len(ids)] = ids
    hidden, _ = network.hidden_states(token_ids, images=[features] * len(replies))
    start = len(prompt.token_ids)
    log_probs = F.log_softmax(network.logits(hidden[:, start - 1 : -1]), dim=-1)
    chosen = log_probs.gather(2, token_ids[:, start:, None])[..., 0]
    return [float(row[: len(reply)].sum()) for row, reply in zip(chosen, replies, strict=True)], image.grid


def blank_picture(grid: tuple[int, int]) -> bytes:
    """A white PNG that becomes a picture of this grid (rows, columns) of patches."""
    file = io.BytesIO()
    PillowImage.new("RGB", (grid[1] * 14, grid[0] * 14), "white").save(file, "PNG")
    return file.getvalue()
