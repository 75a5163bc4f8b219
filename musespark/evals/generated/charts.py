"""Bar, line and pie charts. Bars and points have a scale and are read; the parts of a pie are compared."""

from __future__ import annotations

from PIL import Image, ImageDraw

from musespark.evals.generated.drawing import COLOURS, canvas, distinct_colours, font
from musespark.evals.generated.sample import Rng, Sample, asked, pick, sentence

LABELS = (
    ("Jan", "Feb", "Mar", "Apr", "May"),
    ("Mon", "Tue", "Wed", "Thu", "Fri"),
    ("A", "B", "C", "D", "E"),
    ("2021", "2022", "2023", "2024", "2025"),
    ("cats", "dogs", "birds", "fish", "mice"),
)
STEP = 10  # of the scale; values are whole multiples of half of it
WHITE, GREY, BLACK = (255, 255, 255), (210, 210, 210), (30, 30, 30)
LEFT, BOTTOM, TOP = 24, 18, 8  # pixels around the plot


def bar_chart(rng: Rng) -> Sample:
    labels, values = _data(rng)
    image, draw = canvas(6, 4, WHITE)
    colour = COLOURS[distinct_colours(1, rng)[0]]
    scale = _axes(draw, image, max(values))
    for i, value in enumerate(values):
        x = _column(i, len(values), image)
        draw.rectangle((x - 9, scale(value), x + 9, image.height - BOTTOM), fill=colour)
    _labels(draw, labels, image)
    return asked(*_value_question(labels, values, rng), image=image)


def line_chart(rng: Rng) -> Sample:
    labels, values = _data(rng)
    image, draw = canvas(6, 4, WHITE)
    colour = COLOURS[distinct_colours(1, rng)[0]]
    scale = _axes(draw, image, max(values))
    points = [(_column(i, len(values), image), scale(value)) for i, value in enumerate(values)]
    draw.line(points, fill=colour, width=2)
    for x, y in points:
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
    _labels(draw, labels, image)
    return asked(*_value_question(labels, values, rng), image=image)


def pie_chart(rng: Rng) -> Sample:
    """Which part is largest or smallest, by colour; no two parts are closer than a twelfth of the circle."""
    colours = distinct_colours(3, rng)
    shares = [1, 3, 5] if rng.random() < 0.5 else [2, 4, 6]
    shares = [shares[int(i)] for i in rng.permutation(3)]
    image, draw = canvas(4, 4, WHITE)
    start = float(rng.uniform(0, 360))
    for colour, share in zip(colours, shares, strict=True):
        end = start + 360 * share / sum(shares)
        draw.pieslice((10, 10, image.width - 10, image.height - 10), start, end, fill=COLOURS[colour])
        start = end
    word, share = pick((("largest", max(shares)), ("smallest", min(shares))), rng)
    answer = sentence(f"{colours[shares.index(share)]}.")
    return asked(f"Which colour is the {word} part of this pie chart?", answer, image=image)


def charts(rng: Rng) -> Sample:
    return pick((bar_chart, line_chart, pie_chart), rng)(rng)


def _data(rng: Rng) -> tuple[list[str], list[int]]:
    """Labels and values, all different, so that the largest is one."""
    count = int(rng.integers(3, 6))
    start = pick(LABELS, rng)
    values = [int(v) * STEP // 2 for v in rng.permutation(10)[:count] + 1]
    return list(start[:count]), values


def _value_question(labels: list[str], values: list[int], rng: Rng) -> tuple[str, str]:
    i = int(rng.integers(len(labels)))
    by_value = dict(zip(values, labels, strict=True))
    return pick(
        (
            (f"What is the value of {labels[i]}?", f"{values[i]}"),
            ("Which has the largest value?", sentence(f"{by_value[max(values)]}.")),
            ("Which has the smallest value?", sentence(f"{by_value[min(values)]}.")),
            ("How many values does the chart show?", f"{len(values)}"),
        ),
        rng,
    )


class _Scale:
    """Value to pixel row."""

    def __init__(self, image: Image.Image, top_value: int) -> None:
        self._bottom = image.height - BOTTOM
        self._pixels = (self._bottom - TOP) / top_value

    def __call__(self, value: int) -> float:
        return self._bottom - value * self._pixels


def _axes(draw: ImageDraw.ImageDraw, image: Image.Image, largest: int) -> _Scale:
    top_value = -(-largest // STEP) * STEP
    scale = _Scale(image, top_value)
    for value in range(0, top_value + 1, STEP):
        y = scale(value)
        draw.line((LEFT, y, image.width - 4, y), fill=BLACK if value == 0 else GREY)
        draw.text((2, y - 7), str(value), fill=BLACK, font=font(11))
    return scale


def _column(index: int, count: int, image: Image.Image) -> float:
    return LEFT + (index + 0.5) * (image.width - 4 - LEFT) / count


def _labels(draw: ImageDraw.ImageDraw, labels: list[str], image: Image.Image) -> None:
    for i, label in enumerate(labels):
        x = _column(i, len(labels), image) - draw.textlength(label, font=font(11)) / 2
        draw.text((x, image.height - BOTTOM + 2), label, fill=BLACK, font=font(11))
