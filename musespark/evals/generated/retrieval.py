"""Finding things in long text: one needle, several, key and value, a variable followed through its assignments.

The four kinds are those of RULER (arXiv 2404.06654), at any length. Length counts characters of the whole question; the
hay is written here, of short sentences that never say what is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from musespark.evals.generated.sample import Rng, Sample, asked, pick

WHO = (
    "The old man",
    "A young girl",
    "The teacher",
    "My neighbour",
    "The baker",
    "A stranger",
    "The captain",
    "Her brother",
    "The gardener",
    "A traveller",
    "The doctor",
    "His aunt",
    "The miller",
    "A sailor",
    "The king",
    "Our guest",
)
DID = (
    "walked to",
    "looked at",
    "remembered",
    "painted",
    "left",
    "talked about",
    "found",
    "returned to",
    "dreamed of",
    "passed",
    "wrote about",
    "searched for",
    "waited near",
    "came from",
)
WHAT = (
    "the river",
    "a small house",
    "the market",
    "the garden",
    "an old bridge",
    "the harbour",
    "a quiet street",
    "the tower",
    "the forest",
    "a wooden door",
    "the lake",
    "the station",
    "a green hill",
    "the mill",
)
WHEN = (
    "in the morning",
    "after the rain",
    "before noon",
    "last winter",
    "at night",
    "on a Sunday",
    "in spring",
    "every day",
    "once again",
    "without a word",
    "with a smile",
    "for the last time",
)
CITIES = (
    "Paris",
    "London",
    "Rome",
    "Madrid",
    "Vienna",
    "Oslo",
    "Lisbon",
    "Athens",
    "Cairo",
    "Lima",
    "Quito",
    "Tokyo",
    "Delhi",
    "Boston",
    "Dublin",
    "Prague",
    "Warsaw",
    "Bern",
    "Havana",
    "Seoul",
)
LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"


def hay(rng: Rng, characters: int) -> list[str]:
    """Sentences of about `characters` characters in total."""
    sentences: list[str] = []
    while characters > 0:
        words = [pick(WHO, rng), pick(DID, rng), pick(WHAT, rng)]
        if rng.random() < 0.6:
            words.append(pick(WHEN, rng))
        sentences.append(" ".join(words) + ".")
        characters -= len(sentences[-1]) + 1
    return sentences


def hide(needles: list[str], characters: int, rng: Rng) -> str:
    """The needles, in their order, at random places of a text of about `characters` characters."""
    sentences = hay(rng, characters - sum(len(needle) + 1 for needle in needles))
    places = sorted(int(i) for i in rng.integers(0, len(sentences) + 1, size=len(needles)))
    for place, needle in reversed(list(zip(places, needles, strict=True))):
        sentences.insert(place, needle)
    return " ".join(sentences)


def _number(rng: Rng) -> str:
    return str(int(rng.integers(1000, 10000)))


def _names(rng: Rng) -> Iterator[str]:
    """Distinct variable names: A, B, …, then A1, B1, …"""
    order = rng.permutation(len(LETTERS))
    round_ = 0
    while True:
        for i in order:
            yield LETTERS[int(i)] + (str(round_) if round_ else "")
        round_ += 1


def single_needle(rng: Rng, characters: int) -> Sample:
    city, value = pick(CITIES, rng), _number(rng)
    text = hide([f"The secret number of {city} is {value}."], characters, rng)
    return asked(f"{text}\n\nWhat is the secret number of {city}?", f"{value}")


def multiple_needles(rng: Rng, characters: int, count: int = 4) -> Sample:
    """One of several needles is asked for, or all the numbers of one that has several."""
    cities = [CITIES[int(i)] for i in rng.permutation(len(CITIES))[:count]]
    if rng.random() < 0.5:
        values = [_number(rng) for _ in cities]
        needles = [f"The secret number of {city} is {value}." for city, value in zip(cities, values, strict=True)]
        asked_for = int(rng.integers(count))
        text = hide(needles, characters, rng)
        return asked(f"{text}\n\nWhat is the secret number of {cities[asked_for]}?", values[asked_for])
    values = [_number(rng) for _ in range(3)]
    text = hide([f"A secret number of {cities[0]} is {value}." for value in values], characters, rng)
    return asked(f"{text}\n\nWhat are all secret numbers of {cities[0]}, in order?", ", ".join(values))


def key_value(rng: Rng, characters: int) -> Sample:
    """Nothing but pairs, one of which is asked for: no hay to tell apart from needles."""
    lines: list[str] = []
    keys: dict[str, str] = {}
    while sum(map(len, lines)) + len(lines) < characters or not lines:
        key = _number(rng) + pick(LETTERS, rng)
        if key not in keys:
            keys[key] = _number(rng)
            lines.append(f"{key}: {keys[key]}")
    key = pick(list(keys), rng)
    return asked("\n".join(lines) + f"\n\nWhat is the value of {key}?", keys[key])


def variable_tracking(rng: Rng, characters: int, hops: int = 3) -> Sample:
    """X = 1234 … Y = X … Z = Y: which variables hold 1234? A second chain with another number leads astray."""
    names = _names(rng)
    chains = [[next(names) for _ in range(hops + 1)] for _ in range(2)]
    values = [_number(rng), _number(rng)]
    while values[1] == values[0]:
        values[1] = _number(rng)
    assignments = [
        [f"VAR {chain[0]} = {value}."] + [f"VAR {b} = {a}." for a, b in pairwise(chain)]
        for chain, value in zip(chains, values, strict=True)
    ]
    mixed: list[str] = []  # each chain in its own order
    while any(assignments):
        mixed.append(pick([chain for chain in assignments if chain], rng).pop(0))
    text = hide(mixed, characters, rng)
    return asked(f"{text}\n\nWhich variables have the value {values[0]}?", ", ".join(chains[0]))


KINDS = {
    "single_needle": single_needle,
    "multiple_needles": multiple_needles,
    "key_value": key_value,
    "variable_tracking": variable_tracking,
}
# With the bundled tokenizer, which gives each digit a token of its own; other vocabularies differ by some ten per cent.
CHARACTERS_PER_TOKEN = {"single_needle": 4.6, "multiple_needles": 4.6, "key_value": 1.0, "variable_tracking": 4.6}


def of_tokens(kind: str, rng: Rng, tokens: int) -> Sample:
    return KINDS[kind](rng, int(tokens * CHARACTERS_PER_TOKEN[kind]))


def needle(rng: Rng, tokens: int) -> Sample:
    return of_tokens("single_needle", rng, tokens)


def retrieval(rng: Rng, tokens: int) -> Sample:
    """Any of the four kinds."""
    return of_tokens(pick(list(KINDS), rng), rng, tokens)
