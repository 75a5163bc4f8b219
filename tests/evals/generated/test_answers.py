"""The answers are right: every question is solved again here, from its text or its pixels alone."""

from __future__ import annotations

import io
import itertools
import json
import re
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image as PillowImage

from musespark.chat.images import CELL_SIZE, load_image
from musespark.chat.messages import Image, Text
from musespark.errors import DataError
from musespark.evals.generated import arithmetic, charts, logic, programs, retrieval, screens, shapes, tool_calls
from musespark.evals.generated.catalogue import ONE_BY_ONE, samples
from musespark.evals.generated.drawing import COLOURS
from musespark.evals.generated.sample import Sample, scoring_rng, training_rng

SEEDS = range(60)


def question(sample: Sample) -> str:
    return "".join(part.text for part in sample.messages[0].content if isinstance(part, Text))


def pixels(sample: Sample) -> np.ndarray:
    (image,) = [part for part in sample.messages[0].content if isinstance(part, Image)]
    return np.asarray(PillowImage.open(io.BytesIO(image.data)).convert("RGB")).astype(int)


def near(image: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return np.abs(image - colour).sum(axis=2) < 12


@pytest.mark.parametrize("seed", SEEDS)
def test_plain_calculations_are_those_of_exact_fractions(seed: int) -> None:
    sample = arithmetic.operation(training_rng(seed))
    a, sign, b = re.search(r"(\d+) ([-+*/]) (\d+)", question(sample)).groups()
    x, y = Fraction(a), Fraction(b)
    assert Fraction(sample.text) == {"+": x + y, "-": x - y, "*": x * y, "/": x / y if y else None}[sign]
    assert Fraction(sample.text) >= 0


@pytest.mark.parametrize("seed", SEEDS)
def test_word_problems_follow_their_story(seed: int) -> None:
    sample = arithmetic.word_problem(training_rng(seed))
    have, *changes = map(int, re.findall(r"\d+", question(sample)))
    verbs = re.findall(r"(has|gives|loses|gets|buys|finds) ", question(sample))[1:]
    for verb, change in zip(verbs, changes, strict=True):
        have += -change if verb in ("gives", "loses") else change
        assert have >= 0
    assert sample.text == str(have)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_tallest_is_first_in_the_only_order_that_fits(seed: int) -> None:
    sample = logic.order(training_rng(seed))
    facts = re.findall(r"(\w+) is \w+ than (\w+)\.", question(sample))
    people = sorted({name for fact in facts for name in fact})
    orders = [o for o in itertools.permutations(people) if all(o.index(a) < o.index(b) for a, b in facts)]
    assert len(orders) == 1
    most = {word for _, word, _ in logic.RELATIONS}
    asked_for = re.search(r"Who is the (\w+)\?", question(sample)).group(1)
    assert sample.text == f"{orders[0][0 if asked_for in most else -1]}."


@pytest.mark.parametrize("seed", SEEDS)
def test_a_comparison_is_unknown_exactly_when_both_orders_fit(seed: int) -> None:
    sample = logic.comparison_follows(training_rng(seed))
    *facts, (a, b) = re.findall(r"(\w+) is \w+ than (\w+)\.", question(sample))
    people = sorted({name for fact in facts for name in fact})
    fitting = [o for o in itertools.permutations(people) if all(o.index(x) < o.index(y) for x, y in facts)]
    claims = {o.index(a) < o.index(b) for o in fitting}
    assert sample.text == {(True,): "True.", (False,): "False."}.get(tuple(claims), "Unknown.")


def test_programs_print_what_they_print_alone() -> None:
    for sample in programs.program_samples(training_rng(5), 12):
        source = re.search(r"```python\n(.*)\n```", question(sample), re.DOTALL).group(1)
        done = subprocess.run([sys.executable, "-I", "-c", source], capture_output=True, text=True, check=True)
        assert done.stdout == sample.text + "\n"


def test_a_program_that_fails_is_reported_with_the_interpreters_words() -> None:
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        programs.run(["print(1)", "print(1 / 0)"])


@pytest.mark.parametrize("kind", retrieval.KINDS)
@pytest.mark.parametrize("characters", [1_000, 30_000])
def test_a_needle_is_there_once_and_the_length_is_as_asked(kind: str, characters: int) -> None:
    for seed in range(5):
        sample = retrieval.KINDS[kind](training_rng(seed), characters)
        text, asked_for = question(sample).rsplit("\n\n", 1)
        assert abs(len(text) - characters) < max(80, 0.02 * characters)
        for value in sample.text.split(", "):
            if kind != "variable_tracking":
                assert len(re.findall(rf"\b{value}\b", text)) >= 1
        if kind in ("single_needle", "key_value"):
            key = re.search(r"of (\w+)\?", asked_for).group(1)
            assert re.findall(rf"{key}(?: is|:) (\d+)", text) == [sample.text]


@pytest.mark.parametrize("seed", SEEDS)
def test_variables_are_those_that_the_assignments_reach(seed: int) -> None:
    sample = retrieval.variable_tracking(training_rng(seed), 2_000)
    values: dict[str, str] = {}
    for name, value in re.findall(r"VAR (\w+) = (\w+)\.", question(sample)):
        values[name] = values.get(value, value)
    wanted = re.search(r"value (\d+)\?", question(sample)).group(1)
    assert sorted(sample.text.split(", ")) == sorted(name for name, value in values.items() if value == wanted)


@pytest.mark.parametrize("seed", SEEDS)
def test_calls_fit_their_schema_and_say_what_was_said(seed: int) -> None:
    sample = tool_calls.one_call(training_rng(seed))
    (call,) = sample.answer.tool_calls
    (tool,) = [tool for tool in sample.tools if tool.name == call.name]
    arguments = json.loads(call.arguments)
    schemas = tool.parameters["properties"]
    assert set(tool.parameters["required"]) <= set(arguments) <= set(schemas)
    for name, value in arguments.items():
        assert type(value) is {"string": str, "integer": int, "boolean": bool}[schemas[name]["type"]]
        assert value in schemas[name].get("enum", [value])
    said = question(sample).lower()
    for value in arguments.values():
        spoken = {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value).lower()
        assert spoken in said or spoken.removeprefix("0") in said


@pytest.mark.parametrize("seed", SEEDS)
def test_shapes_are_counted_and_named_by_their_pixels(seed: int) -> None:
    sample = shapes.shapes(training_rng(seed))
    image = pixels(sample)
    seen = {name for name, colour in COLOURS.items() if near(image, colour).sum() > 60}  # each colour occurs once
    if question(sample) == "How many shapes are there?":
        assert sample.text == f"{('No', 'One', 'Two', 'Three', 'Four')[len(seen)]}."
    if question(sample).startswith("What colour"):
        assert sample.text.rstrip(".").lower() in seen
    if question(sample).startswith("Where"):
        colour = question(sample).split()[3]
        y, x = np.argwhere(near(image, COLOURS[colour])).mean(axis=0)
        place = f"{'Top' if y < image.shape[0] / 2 else 'Bottom'} {'left' if x < image.shape[1] / 2 else 'right'}."
        assert sample.text == place


@pytest.mark.parametrize("seed", SEEDS)
def test_bars_are_as_high_as_their_values_on_the_drawn_scale(seed: int) -> None:
    sample = charts.bar_chart(training_rng(seed))
    plot = pixels(sample)[: -charts.BOTTOM, charts.LEFT :]
    lines = np.flatnonzero(near(plot, charts.GREY)[:, 1])  # one for every STEP, at the left edge, where no bar is
    pixels_per_unit = np.diff([*lines, len(plot)]).mean() / charts.STEP
    colours = [colour for colour in COLOURS.values() if near(plot, colour).sum() > 60]
    heights = near(plot, colours[0]).sum(axis=0)
    bars = [max(heights) for full, heights in itertools.groupby(heights, key=bool) if full]
    values = [5 * round(bar / pixels_per_unit / 5) for bar in bars]
    asked_for = re.search(r"the value of (\w+)\?", question(sample))
    if asked_for:
        labels = next(row for row in charts.LABELS if asked_for.group(1) in row)
        assert sample.text == str(values[labels.index(asked_for.group(1))])
    elif question(sample).startswith("How many"):
        assert sample.text == str(len(values))
    else:
        chosen = values.index((max if "largest" in question(sample) else min)(values))
        assert sample.text.rstrip(".").lower() in {row[chosen].lower() for row in charts.LABELS}


@pytest.mark.parametrize("name", [name for name in ONE_BY_ONE if not name.startswith("retrieval")])
def test_a_seed_names_a_sample_for_good_and_pictures_need_no_resizing(name: str) -> None:
    for seed in range(20):
        first, again = (ONE_BY_ONE[name](training_rng(seed)) for _ in range(2))
        assert first == again
        for part in first.messages[0].content:
            if isinstance(part, Image):
                height, width, _ = pixels(first).shape
                assert load_image(part.data).num_tokens == height * width // CELL_SIZE**2 <= 24


def test_screens_show_their_whole_text_inside_the_glass() -> None:
    """Ink touches no border of the glass: nothing is cut off, the longest lines included."""
    for seed in range(200):
        image = pixels(screens.screens(training_rng(seed)))
        frame = image[0, 0]
        assert (np.abs(image[:5] - frame).sum(axis=2) < 12).all()
        assert (np.abs(image[:, :5] - frame).sum(axis=2) < 12).all()
        assert (np.abs(image[:, -5:] - frame).sum(axis=2) < 12).all()


def test_training_and_scoring_never_share_a_stream() -> None:
    streams = {int(make(seed).integers(1 << 62)) for seed in range(500) for make in (training_rng, scoring_rng)}
    assert len(streams) == 1000


def test_samples_come_by_name_and_an_unknown_name_is_told() -> None:
    assert len(list(samples("logic", training_rng(0), 3))) == 3
    assert len(list(samples("programs", training_rng(0), 3))) == 3
    with pytest.raises(DataError, match="there is no generator 'poetry'; there are arithmetic, arithmetic_easy"):
        list(samples("poetry", training_rng(0), 1))
