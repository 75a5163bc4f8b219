"""Arithmetic with answers that are computed, never written: plain sums, comparisons, sequences, word problems.

`level` is the number of digits of the largest number, so that "easy" means the same in training, scoring and reports.
"""

from __future__ import annotations

from musespark.evals.generated.sample import Rng, Sample, asked, pick

NAMES = (
    "Ann",
    "Ben",
    "Carla",
    "David",
    "Emma",
    "Felix",
    "Grace",
    "Henry",
    "Ida",
    "Jack",
    "Kate",
    "Leo",
    "Maria",
    "Noah",
)
THINGS = (
    "apples",
    "books",
    "coins",
    "eggs",
    "flowers",
    "keys",
    "marbles",
    "pens",
    "shells",
    "stamps",
    "stones",
    "tickets",
)
ASK = ("What is {}?", "{} = ?", "Calculate {}.", "How much is {}?", "Compute {}.")


def number(rng: Rng, level: int, low: int = 0) -> int:
    """Any number of up to `level` digits, short ones as often as long ones."""
    digits = int(rng.integers(1, level + 1))
    return int(rng.integers(max(low, 10 ** (digits - 1) if digits > 1 else low), 10**digits))


def operation(rng: Rng, level: int = 2) -> Sample:
    kind = pick("+-*/", rng)
    a, b = number(rng, level), number(rng, level)
    if kind == "+":
        result = a + b
    elif kind == "-":
        a, b = max(a, b), min(a, b)
        result = a - b
    elif kind == "*":
        b = number(rng, 1)
        result = a * b
    else:  # exact division
        b, result = number(rng, 1, low=1), a
        a = b * result
    expression = f"{a} {kind} {b}"
    return asked(pick(ASK, rng).format(expression), f"{result}", steps=f"{expression} = {result}.")


def sum_of_three(rng: Rng, level: int = 2) -> Sample:
    a, b, c = (number(rng, level) for _ in range(3))
    question = pick(ASK, rng).format(f"{a} + {b} + {c}")
    return asked(question, f"{a + b + c}", steps=f"{a} + {b} = {a + b}. {a + b} + {c} = {a + b + c}.")


def comparison(rng: Rng, level: int = 2) -> Sample:
    a = number(rng, level)
    b = number(rng, level)
    while b == a:
        b = number(rng, level)
    larger = rng.random() < 0.5
    word = pick(("larger", "greater", "bigger"), rng) if larger else pick(("smaller", "less"), rng)
    result = max(a, b) if larger else min(a, b)
    sign = ">" if a > b else "<"
    return asked(f"Which is {word}: {a} or {b}?", f"{result}", steps=f"{a} {sign} {b}.")


def extremum(rng: Rng, level: int = 2) -> Sample:
    numbers = [number(rng, level) for _ in range(int(rng.integers(3, 7)))]
    word, result = pick((("largest", max(numbers)), ("smallest", min(numbers))), rng)
    return asked(f"What is the {word} of these numbers: {', '.join(map(str, numbers))}?", f"{result}")


def sequence(rng: Rng, level: int = 2) -> Sample:
    start, step = number(rng, level), int(rng.integers(1, 11))
    if rng.random() < 0.3 and start > 4 * step:
        step = -step
    shown = [start + step * i for i in range(4)]
    result = start + step * 4
    question = f"What comes next: {', '.join(map(str, shown))}, ...?"
    return asked(
        question, f"{result}", steps=f"Each number is the one before {step:+d}. {shown[-1]} {step:+d} = {result}."
    )


def parity(rng: Rng, level: int = 2) -> Sample:
    n = number(rng, level)
    return asked(f"Is {n} even or odd?", "Even." if n % 2 == 0 else "Odd.", steps=f"{n} ends in {n % 10}.")


def word_problem(rng: Rng, level: int = 2) -> Sample:
    """One or two steps of getting and giving away; nobody ever has less than nothing."""
    name, thing = pick(NAMES, rng), pick(THINGS, rng)
    have = number(rng, level, low=1)
    story, steps = [f"{name} has {have} {thing}."], []
    for _ in range(int(rng.integers(1, 3))):
        if have and rng.random() < 0.5:
            change = int(rng.integers(1, have + 1))
            story.append(pick((f"{name} gives away {change}.", f"{name} loses {change} of them."), rng))
            steps.append(f"{have} - {change} = {have - change}.")
            have -= change
        else:
            change = number(rng, level, low=1)
            story.append(
                pick(
                    (f"{name} gets {change} more.", f"{name} buys {change} more.", f"{name} finds {change} more."), rng
                )
            )
            steps.append(f"{have} + {change} = {have + change}.")
            have += change
    question = " ".join([*story, f"How many {thing} does {name} have now?"])
    return asked(question, f"{have}", steps=" ".join(steps))


def groups(rng: Rng, level: int = 2) -> Sample:
    """Multiplication and division as stories."""
    name, thing = pick(NAMES, rng), pick(THINGS, rng)
    count, each = int(rng.integers(2, 10)), number(rng, max(1, level - 1), low=1)
    if rng.random() < 0.5:
        question = f"{name} has {count} boxes with {each} {thing} in each. How many {thing} is that?"
        return asked(question, f"{count * each}", steps=f"{count} * {each} = {count * each}.")
    question = f"{name} shares {count * each} {thing} equally among {count} friends. How many does each friend get?"
    return asked(question, f"{each}", steps=f"{count * each} / {count} = {each}.")


KINDS = (operation, operation, operation, sum_of_three, comparison, extremum, sequence, parity, word_problem, groups)


def arithmetic(rng: Rng, level: int = 2) -> Sample:
    return pick(KINDS, rng)(rng, level)
