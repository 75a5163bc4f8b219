"""The tokens of one request, in the five kinds that are priced. They are disjoint: together they are all its tokens."""

from __future__ import annotations

from dataclasses import dataclass

MOST_TOKENS = 2**30  # of one kind in one request; five of them at the highest price stay below 2**63


@dataclass(frozen=True, slots=True)
class Lines:
    """Counts of tokens. `cached_in` are prompt tokens, text or image, that the prefix cache supplied."""

    text_in: int = 0
    image_in: int = 0
    cached_in: int = 0
    output: int = 0
    reasoning: int = 0

    def __post_init__(self) -> None:
        for count in self.counts:
            assert 0 <= count < MOST_TOKENS, self  # the engine counts, never a client

    @property
    def counts(self) -> tuple[int, int, int, int, int]:
        """In the order of tables.prices.PRICE_UNITS."""
        return (self.text_in, self.image_in, self.cached_in, self.output, self.reasoning)

    @property
    def input_total(self) -> int:
        return self.text_in + self.image_in + self.cached_in

    @property
    def output_total(self) -> int:
        return self.output + self.reasoning

    @property
    def total(self) -> int:
        return self.input_total + self.output_total

    def __sub__(self, other: Lines) -> Lines:
        return Lines(*(a - b for a, b in zip(self.counts, other.counts, strict=True)))

    def covers(self, other: Lines) -> bool:
        """Whether every count is at least that of `other`: what was reported before can only have grown."""
        return all(a >= b for a, b in zip(self.counts, other.counts, strict=True))
