"""Naming pictures by choice: which of eight names is likelier with the picture than without?

The score of a name is log P(answer | picture) - log P(answer | blank picture of the same size), so that names which are
common or short gain nothing. A picture's own name is compared with up to NUM_OTHERS names of other pictures of the same
set; from how many of them it beats follows how often it beats seven drawn from them, without the noise of drawing.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image as PillowImage

from musespark.chat.images import PATCH_SIZE
from musespark.chat.messages import Image, Message, Text
from musespark.chat.prompt import Prompt
from musespark.evals.benchmarks import read_named_pictures
from musespark.evals.model_under_test import Scorer
from musespark.evals.task import Baselines, Outcome, Source

NUM_CHOICES = 8
NUM_OTHERS = 44  # the held-out emoji, the smallest set with an interesting number, have 45 pictures
QUESTION = "What is this?"


@dataclass(frozen=True, slots=True)
class Picture:
    data: bytes  # the encoded file
    name: str


class PictureNames:
    """The held-out pictures of one family, named by choice. Sets with fewer names than choices have fewer choices."""

    needs: Literal["scorer"] = "scorer"
    unit = "accuracy"

    def __init__(self, family: str, source: Source, *, split: str = "valid") -> None:
        self.name = family
        path = source.data / "images" / (f"valid-{family}.tar" if split == "valid" else f"{family}-000.tar")
        pictures = [Picture(data, name) for data, name in read_named_pictures(path)]
        order = np.random.default_rng(0).permutation(len(pictures))[: source.limit]
        self.pictures = [pictures[i] for i in order]

    @property
    def num_choices(self) -> int:
        return min(NUM_CHOICES, len({picture.name for picture in self.pictures}))

    def baselines(self) -> Baselines:
        return Baselines(chance=1 / self.num_choices)

    def run(self, model: Scorer) -> Iterator[Outcome]:
        names = sorted({picture.name for picture in self.pictures})
        rng = np.random.default_rng(0)
        blanks: dict[tuple[tuple[int, int], str], float] = {}  # by grid and name
        for number, picture in enumerate(self.pictures):
            others = [name for name in names if name != picture.name]
            compared = rng.permutation(len(others))[:NUM_OTHERS]
            candidates = [picture.name, *(others[i] for i in compared)]
            scores, grid = name_log_probs(model, picture.data, candidates)
            missing = [name for name in candidates if (grid, name) not in blanks]
            if missing:
                found, _ = name_log_probs(model, blank_picture(grid), missing)
                blanks |= {(grid, name): score for name, score in zip(missing, found, strict=True)}
            own, *rest = (score - blanks[grid, name] for score, name in zip(scores, candidates, strict=True))
            num_beaten = sum(gain < own for gain in rest)
            value = math.comb(num_beaten, self.num_choices - 1) / math.comb(len(rest), self.num_choices - 1)
            details = {"name": picture.name, "gain": own, "beaten": num_beaten, "others": len(rest)}
            yield Outcome(f"{self.name}-{number}", value, details=details)


def name_log_probs(model: Scorer, picture: bytes, names: Sequence[str]) -> tuple[list[float], tuple[int, int]]:
    """ln P of each name as the answer to the picture and the question; and the picture's grid in patches."""
    prompt: Prompt = model.render([Message("user", (Image(picture), Text(QUESTION)))])
    return model.log_probs(prompt, [model.reply(name) for name in names]), prompt.images[0].grid


def blank_picture(grid: tuple[int, int]) -> bytes:
    """A white PNG that becomes a picture of this grid (rows, columns) of patches."""
    file = io.BytesIO()
    rows, columns = grid
    PillowImage.new("RGB", (columns * PATCH_SIZE, rows * PATCH_SIZE), (255, 255, 255)).save(file, "PNG")
    return file.getvalue()
