"""Which keys the queries of a kind of layers see, and how many pages that takes.

Four kinds: `Everything` before it, a sliding `Window`, its `OwnChunk` (Llama 4), or `Nothing` because the model has no
such layers. The first key never moves back from one position to the next, so what it has passed is seen no more.
Positions are Python's integers, without a limit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from musespark.engine.request import LARGEST_INT
from musespark.engine.runner import PAGE_SIZE
from musespark.model.config import TextConfig


def pages_for(num_tokens: int) -> int:
    return -(-num_tokens // PAGE_SIZE)


class View(Protocol):
    def first_key(self, position: int) -> int:
        """The first key that a query at `position` sees; the last is its own."""

    def pages_at_once(self, num_tokens: int) -> int:
        """The most pages that a sequence of `num_tokens` must hold at any one time, computed token by token."""

    def longest(self, num_pages: int) -> int:
        """The most tokens that a sequence may have which never holds more than `num_pages`."""


@dataclass(frozen=True, slots=True)
class Everything:
    def first_key(self, position: int) -> int:
        return 0

    def pages_at_once(self, num_tokens: int) -> int:
        return pages_for(num_tokens)

    def longest(self, num_pages: int) -> int:
        return num_pages * PAGE_SIZE


@dataclass(frozen=True, slots=True)
class Nothing:
    def first_key(self, position: int) -> int:
        return position

    def pages_at_once(self, num_tokens: int) -> int:
        return 0

    def longest(self, num_pages: int) -> int:
        return LARGEST_INT


@dataclass(frozen=True, slots=True)
class Window:
    """The last `size` keys, its own among them."""

    size: int

    def first_key(self, position: int) -> int:
        return max(0, position - self.size + 1)

    def pages_at_once(self, num_tokens: int) -> int:
        return min(pages_for(num_tokens), self._most)

    def longest(self, num_pages: int) -> int:
        return LARGEST_INT if self._most <= num_pages else num_pages * PAGE_SIZE

    @property
    def _most(self) -> int:
        return (self.size + PAGE_SIZE - 2) // PAGE_SIZE + 1  # a window that begins at the end of a page


@dataclass(frozen=True, slots=True)
class OwnChunk:
    """The keys of its chunk up to its own: chunks are [0, size), [size, 2 * size), … and need not end with a page."""

    size: int

    def first_key(self, position: int) -> int:
        return position - position % self.size

    def pages_at_once(self, num_tokens: int) -> int:
        return max(self._pages(start, min(start + self.size, num_tokens)) for start in self._starts(num_tokens))

    def longest(self, num_pages: int) -> int:
        for start in self._starts():
            if self._pages(start, start + self.size) > num_pages:
                return (start // PAGE_SIZE + num_pages) * PAGE_SIZE
        return LARGEST_INT

    def _starts(self, num_tokens: int | None = None) -> list[int]:
        """Where chunks begin that lie differently in their pages, and where the last of `num_tokens` does."""
        cycle = [index * self.size for index in range(PAGE_SIZE // math.gcd(self.size, PAGE_SIZE))]
        if num_tokens is None:
            return cycle
        return [start for start in cycle if start < num_tokens] + [self.first_key(max(0, num_tokens - 1))]

    @staticmethod
    def _pages(start: int, end: int) -> int:
        return pages_for(end) - start // PAGE_SIZE


def view_of_full_layers(text: TextConfig) -> View:
    return Everything() if "full_attention" in text.layer_types else Nothing()


def view_of_local_layers(text: TextConfig) -> View:
    """Of the sliding or chunked layers; no family has both."""
    if "sliding_attention" in text.layer_types:
        return Window(text.sliding_window)
    return OwnChunk(text.attention_chunk_size) if "chunked_attention" in text.layer_types else Nothing()
