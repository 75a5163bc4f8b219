"""Keeps evaluation questions out of training text: no document may share thirteen words in a row with one.

Words are runs of letters and digits, in lower case; punctuation and line breaks between them don't count. The n-grams
are kept as 64-bit hashes: two of them are equal by accident about once in 10^12 comparisons, which drops a document for
nothing and never lets one through. The length is GPT-3's (arXiv 2005.14165, appendix C).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from musespark.errors import DataError
from musespark.training.shards import read_rows

NGRAM = 13
UInt64 = npt.NDArray[np.uint64]
_WORD = re.compile(r"\w+")
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that its powers are distinct modulo 2^64


class Decontaminator:
    """`dropped`: how many documents `clean` left out so far."""

    def __init__(self, questions: Iterable[str]) -> None:
        self._words: dict[str, int] = {}
        grams = [self._grams(question) for question in questions]
        self._known: UInt64 = np.unique(np.concatenate([*grams, np.empty(0, np.uint64)]))
        self.dropped = 0

    @classmethod
    def from_folder(cls, folder: Path) -> Decontaminator:
        """Every text of every set in `folder`. Raises DataError if there is none."""
        return cls(text for path in sets_in(folder) for row in read_rows(path) for text in _texts_in(row))

    def __len__(self) -> int:
        """Distinct n-grams."""
        return len(self._known)

    def overlaps(self, text: str) -> bool:
        grams = self._grams(text)
        places = np.searchsorted(self._known, grams)
        places[places == len(self._known)] = 0
        return bool(len(self._known)) and bool((self._known[places] == grams).any())

    def clean(self, texts: Iterable[str]) -> Iterator[str]:
        for text in texts:
            if self.overlaps(text):
                self.dropped += 1
            else:
                yield text

    def _grams(self, text: str) -> UInt64:
        """The hash of every NGRAM words in a row; of a shorter text none: it is too short to recognise."""
        words = _WORD.findall(text.lower())
        if len(words) < NGRAM:
            return np.empty(0, np.uint64)
        values = np.array([self._word(word) for word in words], np.uint64)
        total = np.zeros(len(words) - NGRAM + 1, np.uint64)
        for i in range(NGRAM):
            total = total * _BASE + values[i : len(values) - NGRAM + 1 + i]
        return total

    def _word(self, word: str) -> int:
        if word not in self._words:
            if len(self._words) > 2_000_000:  # what is not a word of a language has no end
                self._words.clear()
            self._words[word] = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
        return self._words[word]


def sets_in(folder: Path) -> list[Path]:
    """The evaluation sets, `.jsonl.zst` each. Raises DataError if there is none: a silent pass would be worse."""
    paths = sorted(folder.glob("*.jsonl.zst"))
    if not paths:
        raise DataError(f"{folder} holds no evaluation sets; text can't be checked against them")
    return paths


@lru_cache(maxsize=1)
def decontaminator(folder: Path) -> Decontaminator:
    """That of a folder, made once for all sources of a run."""
    return Decontaminator.from_folder(folder)


def _texts_in(value: Any) -> Iterator[str]:
    """Every string inside a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts_in(item)
