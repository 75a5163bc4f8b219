"""Short Python programs and what they print. The outputs come from running them, in one fresh interpreter for many."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Iterator

from musespark.evals.generated.sample import Rng, Sample, asked, pick

ASK = ("What does this program print?", "What is the output?", "What does this Python code print?")
WORDS = (
    "apple",
    "bird",
    "cloud",
    "door",
    "egg",
    "fish",
    "green",
    "house",
    "ink",
    "jam",
    "kite",
    "lamp",
    "moon",
    "nest",
)
TIMEOUT_S = 60.0
BORDER = "\x1e"  # between the outputs of two programs; none of them prints it


def program(rng: Rng) -> str:
    return pick(TEMPLATES, rng)(rng)


def program_samples(rng: Rng, count: int) -> Iterator[Sample]:
    sources = [program(rng) for _ in range(count)]
    for source, output in zip(sources, run(sources), strict=True):
        yield asked(f"{pick(ASK, rng)}\n```python\n{source}\n```", output)


def run(sources: list[str]) -> list[str]:
    """What each program prints, without the last newline. Each is a function of its own, so none sees another's names.

    Isolated mode (-I) keeps the caller's folder and environment out. Raises RuntimeError with the interpreter's words
    when one fails: a template is wrong then.
    """
    if not sources:
        return []
    functions = [f"def p{i}():\n{textwrap.indent(source, '    ')}" for i, source in enumerate(sources)]
    calls = [f"p{i}(); print({BORDER!r}, end='')" for i in range(len(sources))]
    done = subprocess.run(
        [sys.executable, "-I", "-"],
        input="\n".join([*functions, *calls]),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"a generated program failed: {done.stderr.strip()[-500:]}")
    return [output.removesuffix("\n") for output in done.stdout.split(BORDER)[:-1]]


def _numbers(rng: Rng, count: int, high: int = 10) -> list[int]:
    return [int(n) for n in rng.integers(0, high, size=count)]


def _words(rng: Rng, count: int) -> list[str]:
    return [WORDS[int(i)] for i in rng.permutation(len(WORDS))[:count]]


def expression(rng: Rng) -> str:
    a, b, c = _numbers(rng, 3)
    return pick(
        (
            f"print({a} + {b} * {c})",
            f"print(({a} + {b}) * {c})",
            f"print({a} - {b} + {c})",
            f"print({a} ** 2)",
            f"print({a * b + c} // {c + 1})",
            f"print({a * b + c} % {c + 1})",
        ),
        rng,
    )


def variables(rng: Rng) -> str:
    a, b = _numbers(rng, 2)
    change = pick(("x = x + y", "x += y", "x = x * 2", "y = x - y", "x, y = y, x"), rng)
    return f"x = {a}\ny = {b}\n{change}\nprint(x, y)"


def loop(rng: Rng) -> str:
    start, length = _numbers(rng, 2, 5)
    body = pick(("total += i", "total += i * 2", "total = total + 1"), rng)
    return f"total = 0\nfor i in range({start}, {start + length + 1}):\n    {body}\nprint(total)"


def condition(rng: Rng) -> str:
    a, b = _numbers(rng, 2)
    yes, no = _words(rng, 2)
    sign = pick(("<", ">", "==", "!=", "<=", ">="), rng)
    return f"x = {a}\nif x {sign} {b}:\n    print({yes!r})\nelse:\n    print({no!r})"


def text(rng: Rng) -> str:
    word, other = _words(rng, 2)
    return pick(
        (
            f"print(len({word!r}))",
            f"print({word!r}.upper())",
            f"print({word!r}[0])",
            f"print({word!r}[-1])",
            f"print({word!r} + {other!r})",
            f"print({word!r}[::-1])",
            f"print({word!r} * 2)",
            f"print({word!r}.replace({word[0]!r}, {other[0]!r}))",
            f"print({word[0]!r} in {other!r})",
        ),
        rng,
    )


def listing(rng: Rng) -> str:
    numbers = _numbers(rng, int(rng.integers(3, 6)))
    index = int(rng.integers(len(numbers)))
    last = pick(
        (
            "len(xs)",
            "sum(xs)",
            "max(xs)",
            "min(xs)",
            f"xs[{index}]",
            "sorted(xs)",
            "xs[1:]",
            "xs[::-1]",
            "[x + 1 for x in xs]",
            "[x for x in xs if x > 4]",
        ),
        rng,
    )
    return f"xs = {numbers}\nprint({last})"


def dictionary(rng: Rng) -> str:
    keys, values = _words(rng, 3), _numbers(rng, 3)
    pairs = dict(zip(keys, values, strict=True))
    last = pick(
        (
            f"d[{keys[1]!r}]",
            "len(d)",
            "sum(d.values())",
            f"{pick(WORDS, rng)!r} in d",
            "sorted(d)",
            f"d.get({keys[0]!r}, 0)",
        ),
        rng,
    )
    return f"d = {pairs}\nprint({last})"


def function(rng: Rng) -> str:
    a, b = _numbers(rng, 2)
    body = pick(("x + {}", "x * {}", "x - {}", "{} - x", "x * x + {}"), rng).format(b)
    call = pick((f"f({a})", f"f(f({a}))", f"f({a}) + f({b})"), rng)
    return f"def f(x):\n    return {body}\n\nprint({call})"


TEMPLATES = (expression, variables, loop, condition, text, listing, dictionary, function)
