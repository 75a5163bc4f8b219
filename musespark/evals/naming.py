"""Naming pictures by choice: which of eight names does the network find likelier with the picture than without?

The score of a name is log P(answer | picture) - log P(answer | blank picture of the same size), so that names which are
common or short gain nothing. A picture's own name is compared with up to NUM_OTHERS names of other pictures of the same
set; from how many of them it beats follows how often it beats seven drawn from them, without the noise of drawing.
"""

from __future__ import annotations

import io
import math
import statistics
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
from musespark.model.network import Network, generate_greedy

NUM_OTHERS = 44  # the smallest set here, the held-out emoji, has 45 pictures


@dataclass(frozen=True, slots=True)
class Picture:
    data: bytes  # the encoded file
    answer: str  # what training would have it answer


@dataclass(frozen=True, slots=True)
class NamingScore:
    """right: of each picture, how often its own name wins (0 to 1)."""

    right: tuple[float, ...]
    num_choices: int

    @property
    def num_pictures(self) -> int:
        return len(self.right)

    @property
    def accuracy(self) -> float:
        return statistics.fmean(self.right)

    @property
    def standard_error(self) -> float:
        """Of the accuracy, over pictures."""
        return statistics.stdev(self.right) / math.sqrt(self.num_pictures)

    @property
    def chance(self) -> float:
        return 1 / self.num_choices


def name_pictures(
    network: Network,
    pictures: Sequence[Picture],
    tokenizer: Tokenizer,
    settings: ChatSettings,
    *,
    question: str = "What is this?",
    num_choices: int = 8,
    seed: int = 0,
) -> NamingScore:
    """Needs pictures of at least `num_choices` names."""
    rng = np.random.default_rng(seed)
    answers = sorted({picture.answer for picture in pictures})
    blank_scores: dict[tuple[tuple[int, int], str], float] = {}
    right = []
    for picture in pictures:
        others = [answer for answer in answers if answer != picture.answer]
        compared = rng.choice(len(others), size=min(NUM_OTHERS, len(others)), replace=False)
        names = [picture.answer, *(others[i] for i in compared)]
        scores, grid = answer_log_probs(network, picture.data, question, names, tokenizer, settings)
        missing = [name for name in names if (grid, name) not in blank_scores]
        if missing:
            blank = blank_picture(grid)
            for name, score in zip(
                missing, answer_log_probs(network, blank, question, missing, tokenizer, settings)[0], strict=True
            ):
                blank_scores[grid, name] = score
        own, *rest = (score - blank_scores[grid, name] for score, name in zip(scores, names, strict=True))
        num_beaten = sum(gain < own for gain in rest)
        right.append(math.comb(num_beaten, num_choices - 1) / math.comb(len(rest), num_choices - 1))
    return NamingScore(tuple(right), num_choices)


def count_named_freely(
    network: Network,
    pictures: Sequence[Picture],
    tokenizer: Tokenizer,
    settings: ChatSettings,
    *,
    question: str = "What is this?",
) -> int:
    """How many pictures a greedy answer names exactly, with nothing to choose from."""
    named = 0
    for picture in pictures:
        prompt = render([Message("user", (Image(picture.data), Text(question)))], tokenizer, settings)
        reply = render_reply(Message("assistant", (Text(picture.answer),)), tokenizer)
        # A right answer is the reply token by token, so more tokens than it has are of no interest.
        named += reply == generate_greedy(network, prompt.token_ids, prompt.images, max_tokens=len(reply))
    return named


@torch.no_grad()
def answer_log_probs(
    network: Network,
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
