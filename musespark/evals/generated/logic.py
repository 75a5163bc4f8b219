"""Small logic whose answers follow by construction: orders, rules, truth of sentences, lists.

A question that can't be decided from what is said is answered "Unknown.", as often as it is true or false.
"""

from __future__ import annotations

from itertools import pairwise

from musespark.evals.generated.arithmetic import NAMES
from musespark.evals.generated.sample import Rng, Sample, asked, pick, sentence

RELATIONS = (
    ("taller than", "tallest", "shortest"),
    ("older than", "oldest", "youngest"),
    ("faster than", "fastest", "slowest"),
    ("heavier than", "heaviest", "lightest"),
    ("richer than", "richest", "poorest"),
)
KINDS = ("wug", "dax", "blick", "fep", "toma", "zup", "rak", "lorp")  # words that nobody has beliefs about
PROPERTIES = ("blue", "round", "quiet", "kind", "cold", "small", "loud", "young", "green", "soft")
WORDS = (
    "apple",
    "river",
    "stone",
    "cloud",
    "house",
    "tree",
    "bread",
    "horse",
    "lamp",
    "fish",
    "chair",
    "moon",
    "glass",
    "road",
)
PLACES = ("first", "second", "third", "fourth", "fifth")


def _distinct(options: tuple[str, ...], count: int, rng: Rng) -> list[str]:
    return [options[int(i)] for i in rng.permutation(len(options))[:count]]


def order(rng: Rng) -> Sample:
    """Who is tallest? Neighbours in a hidden order are compared, the sentences shuffled."""
    people = _distinct(NAMES, int(rng.integers(3, 5)), rng)
    relation, most, least = pick(RELATIONS, rng)
    facts = [f"{a} is {relation} {b}." for a, b in pairwise(people)]
    shuffled = [facts[int(i)] for i in rng.permutation(len(facts))]
    word, answer = pick(((most, people[0]), (least, people[-1])), rng)
    steps = " > ".join(people) + "."
    return asked(" ".join([*shuffled, f"Who is the {word}?"]), f"{answer}.", steps=steps)


def comparison_follows(rng: Rng) -> Sample:
    """Is A taller than C? Decided by the chain, or not at all when the two stand apart."""
    a, b, c = _distinct(NAMES, 3, rng)
    relation, _, _ = pick(RELATIONS, rng)
    case = pick(("True.", "False.", "Unknown."), rng)
    if case == "Unknown.":
        facts, claim = [f"{a} is {relation} {b}.", f"{a} is {relation} {c}."], f"{b} is {relation} {c}."
        steps = f"Both {b} and {c} come after {a}. Their own order is not given."
    else:
        facts = [f"{a} is {relation} {b}.", f"{b} is {relation} {c}."]
        claim = f"{a} is {relation} {c}." if case == "True." else f"{c} is {relation} {a}."
        steps = f"{a} > {b} > {c}."
    question = f"{' '.join(facts)} True, false or unknown: {claim}"
    return asked(question, case, steps=steps)


def rules(rng: Rng) -> Sample:
    """Every wug is a dax, every dax is blue; is this wug blue?"""
    first, second, other = _distinct(KINDS, 3, rng)
    has, lacks = _distinct(PROPERTIES, 2, rng)
    name = pick(NAMES, rng)
    facts = [
        f"Every {first} is a {second}.",
        f"Every {second} is {has}.",
        f"No {second} is {lacks}.",
        f"{name} is a {first}.",
    ]
    shuffled = [facts[int(i)] for i in rng.permutation(len(facts))]
    case = pick(("True.", "False.", "Unknown."), rng)
    chain = f"{name} is a {first}, so {name} is a {second}."
    if case == "True.":
        claim, steps = f"{name} is {has}.", f"{chain} Every {second} is {has}."
    elif case == "False.":
        claim, steps = f"{name} is {lacks}.", f"{chain} No {second} is {lacks}."
    else:
        claim, steps = f"{name} is a {other}.", f"{chain} Nothing is said of a {other}."
    return asked(f"{' '.join(shuffled)} True, false or unknown: {claim}", case, steps=steps)


def connectives(rng: Rng) -> Sample:
    """Truth of "A and B", "A or B" about numbers."""
    values = [int(v) for v in rng.integers(0, 20, size=4)]
    parts = [f"{values[0]} > {values[1]}", f"{values[2]} > {values[3]}"]
    truths = [values[0] > values[1], values[2] > values[3]]
    word = pick(("and", "or"), rng)
    result = all(truths) if word == "and" else any(truths)
    steps = " ".join(f"{part} is {str(truth).lower()}." for part, truth in zip(parts, truths, strict=True))
    return asked(f"True or false: {parts[0]} {word} {parts[1]}", f"{result}.", steps=steps)


def place_in_list(rng: Rng) -> Sample:
    words = _distinct(WORDS, int(rng.integers(3, 6)), rng)
    index = int(rng.integers(len(words)))
    place = pick((PLACES[index], "last"), rng) if index == len(words) - 1 else PLACES[index]
    return asked(f"What is the {place} word of this list: {', '.join(words)}?", f"{sentence(words[index])}.")


def membership(rng: Rng) -> Sample:
    words = _distinct(WORDS, 6, rng)
    shown, word = words[:4], pick(words, rng)
    return asked(f"Is {word} in this list: {', '.join(shown)}?", "Yes." if word in shown else "No.")


def letters(rng: Rng) -> Sample:
    word = pick(WORDS, rng)
    question, answer = pick(
        (
            (f"What is the first letter of {word}?", word[0].upper()),
            (f"What is the last letter of {word}?", word[-1].upper()),
            (f"How many letters has the word {word}?", f"{len(word)}"),
            (f"Spell {word}.", "-".join(word.upper())),
        ),
        rng,
    )
    return asked(question, answer)


QUESTIONS = (order, comparison_follows, rules, connectives, place_in_list, membership, letters)


def logic(rng: Rng) -> Sample:
    return pick(QUESTIONS, rng)(rng)
