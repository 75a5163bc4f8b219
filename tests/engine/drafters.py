"""Drafters that know more than a drafter can."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Guessing:
    """Proposes the right tokens, of which each is spoiled with a probability."""

    def __init__(self, right: Sequence[int], spoiled: float = 0.0, seed: int = 0) -> None:
        self.right = list(right)
        self.read = 0
        self.spoiled = spoiled
        self.random = np.random.default_rng(seed)

    def propose(self, new: Sequence[int], most: int) -> Sequence[int]:
        self.read += len(new)
        guess = self.right[self.read : self.read + most]
        return [token + 1 if self.random.random() < self.spoiled else token for token in guess]
