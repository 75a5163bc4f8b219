"""Coloured shapes on a grid: what, which colour, how many, where."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from PIL import ImageDraw

from musespark.evals.generated.drawing import COLOURS, LIGHT, Colour, canvas, distinct_colours
from musespark.evals.generated.sample import Rng, Sample, asked, pick, sentence

CELL = 42  # pixels of one shape: two columns of shapes take three cells of the network
Box = tuple[float, float, float, float]
NUMBERS = ("no", "one", "two", "three", "four")


def _triangle(draw: ImageDraw.ImageDraw, box: Box, fill: Colour) -> None:
    left, top, right, bottom = box
    draw.polygon([(left, bottom), (right, bottom), ((left + right) / 2, top)], fill=fill)


def _diamond(draw: ImageDraw.ImageDraw, box: Box, fill: Colour) -> None:
    left, top, right, bottom = box
    x, y = (left + right) / 2, (top + bottom) / 2
    draw.polygon([(x, top), (right, y), (x, bottom), (left, y)], fill=fill)


def _cross(draw: ImageDraw.ImageDraw, box: Box, fill: Colour) -> None:
    left, top, right, bottom = box
    third = (right - left) / 3
    draw.rectangle((left + third, top, right - third, bottom), fill=fill)
    draw.rectangle((left, top + third, right, bottom - third), fill=fill)


SHAPES: dict[str, Callable[[ImageDraw.ImageDraw, Box, Colour], None]] = {
    "circle": lambda draw, box, fill: draw.ellipse(box, fill=fill),
    "square": lambda draw, box, fill: draw.rectangle(box, fill=fill),
    "triangle": _triangle,
    "diamond": _diamond,
    "cross": _cross,
}


@dataclass(frozen=True, slots=True)
class Placed:
    shape: str
    colour: str
    row: int  # 0 is the top
    column: int  # 0 is the left

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


def shapes(rng: Rng) -> Sample:
    """One question about a picture of one to four different shapes."""
    count = int(rng.integers(1, 5))
    colours = distinct_colours(count, rng)
    kinds = [pick(list(SHAPES), rng) for _ in range(count)]
    places = [divmod(int(i), 2) for i in rng.permutation(4)[:count]]
    placed = [Placed(kind, colour, *place) for kind, colour, place in zip(kinds, colours, places, strict=True)]
    image, draw = canvas(3, 3, pick(LIGHT, rng))
    for one in placed:
        side = float(rng.uniform(22, 36))
        left = one.column * CELL + float(rng.uniform(2, CELL - side - 2))
        top = one.row * CELL + float(rng.uniform(2, CELL - side - 2))
        SHAPES[one.shape](draw, (left, top, left + side, top + side), COLOURS[one.colour])
    questions = [_how_many, _is_there] + ([_what, _which_colour] if count == 1 else [_colour_of, _where])
    question, answer = pick(questions, rng)(placed, rng)
    return asked(question, answer, image=image)


def _what(placed: list[Placed], rng: Rng) -> tuple[str, str]:
    question = pick(("What is this?", "Describe this image.", "What do you see?", "What is in the picture?"), rng)
    return question, f"A {placed[0].name}."


def _which_colour(placed: list[Placed], rng: Rng) -> tuple[str, str]:
    return f"What colour is the {placed[0].shape}?", sentence(f"{placed[0].colour}.")


def _colour_of(placed: list[Placed], rng: Rng) -> tuple[str, str]:
    """By its shape, if there is one of them only; else by its place."""
    one = pick(placed, rng)
    if sum(other.shape == one.shape for other in placed) == 1:
        return f"What colour is the {one.shape}?", sentence(f"{one.colour}.")
    return f"What colour is the shape at the {_place(one)}?", sentence(f"{one.colour}.")


def _where(placed: list[Placed], rng: Rng) -> tuple[str, str]:
    one = pick(placed, rng)
    return f"Where is the {one.name}?", sentence(f"{_place(one)}.")


def _how_many(placed: list[Placed], rng: Rng) -> tuple[str, str]:
    if rng.random() < 0.5:
        return "How many shapes are there?", sentence(f"{NUMBERS[len(placed)]}.")
    kind = pick(list(SHAPES), rng)
    return f"How many {kind}{'es' if kind == 'cross' else 's'} are there?", sentence(
        f"{NUMBERS[sum(one.shape == kind for one in placed)]}."
    )


def _is_there(placed: list[Placed], rng: Rng) -> tuple[str, str]:
    one = pick(placed, rng)
    if rng.random() < 0.5:
        return f"Is there a {one.name}?", "Yes."
    other = pick([kind for kind in SHAPES if kind != one.shape], rng)
    return f"Is there a {one.colour} {other}?", "No."  # every colour occurs once


def _place(one: Placed) -> str:
    return f"{('top', 'bottom')[one.row]} {('left', 'right')[one.column]}"
