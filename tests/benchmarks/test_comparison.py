"""What turns runs into a table: percentiles, ratios and verdicts, by hand-computed cases."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
from comparison import Result, append, busy_share, by_turns, number, percentile, table
from engine import newest
from engine_http import busy_core
from http_client import Answer, Load, one_token_words, words
from models import make_tokenizer


def result(ours: tuple[float, ...], theirs: tuple[float, ...], **fields: object) -> Result:
    return Result("decode", "S", "int4", "llama.cpp q4_0", "tokens/s", ours, theirs, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([3.0, 1.0, 2.0], 50, 2.0),
        ([15.0, 20.0, 35.0, 40.0, 50.0], 30, 20.0),  # the example of the nearest-rank method
        ([15.0, 20.0, 35.0, 40.0, 50.0], 40, 20.0),
        ([15.0, 20.0, 35.0, 40.0, 50.0], 100, 50.0),
        (list(range(1, 101)), 99, 99),
        (list(range(1, 102)), 99, 100),
        ([7.0], 99, 7.0),
    ],
)
def test_a_percentile_is_the_nearest_rank(values: list[float], percent: float, expected: float) -> None:
    assert percentile(values, percent) == expected


def test_a_percentile_of_nothing_is_no_number() -> None:
    assert math.isnan(percentile([], 99))


def test_a_ratio_is_of_medians_and_a_wild_run_does_not_move_it() -> None:
    found = result((300.0, 310.0, 290.0), (100.0, 10.0, 110.0), wanted=2.8)
    assert found.ratio == 3.0
    assert found.best_ratio == pytest.approx(310 / 110)
    assert found.verdict == "reached"


def test_a_ratio_that_only_a_disturbed_peer_gives_is_called_so() -> None:
    disturbed = result((300.0, 310.0, 290.0), (100.0, 90.0, 200.0), wanted=2.0)
    assert disturbed.verdict == "reached by medians only"
    assert result((150.0,), (100.0,), wanted=2.0).verdict == "NOT reached"
    assert result((150.0,), (100.0,)).verdict == ""


def test_what_should_be_low_is_reached_from_below() -> None:
    assert result((0.05, 0.07), (0.2, 0.2), wanted=0.5, better="lower").verdict == "reached"
    assert result((0.11,), (0.2,), wanted=0.5, better="lower").verdict == "NOT reached"


def test_sides_take_turns_and_no_side_is_always_the_first() -> None:
    calls: list[str] = []

    def side(name: str, figure: float) -> float:
        calls.append(name)
        return figure

    assert by_turns(3, lambda: side("a", 1.0), lambda: side("b", 2.0)) == [(1.0, 1.0, 1.0), (2.0, 2.0, 2.0)]
    assert calls == ["a", "b", "b", "a", "a", "b"]


@pytest.mark.parametrize(
    ("value", "text"), [(0.0612, "0.0612"), (5.307, "5.31"), (592.4, "592"), (1437.0, "1,437"), (0.0, "0.00")]
)
def test_numbers_have_three_digits_at_least(value: float, text: str) -> None:
    assert number(value) == text


def test_the_table_says_what_was_not_reached() -> None:
    line = table([result((150.0,), (100.0,), wanted=2.0, facts={"share": 0.61})]).splitlines()[1:]
    assert " ".join(line[0].split()) == "decode S int4 llama.cpp q4_0 150 100 tokens/s 1.50 1.50 >= 2 1 NOT reached"
    assert line[1].split() == ["share", "0.610"]


def test_what_was_collected_over_several_calls_is_shown_with_the_newest_of_each(tmp_path: Path) -> None:
    file = tmp_path / "out" / "engine.jsonl"
    for ours in (100.0, 200.0):
        append(file, {"results": [result((ours,), (50.0,)).to_dict()]})
    append(file, {"results": [result((1.0,), (), facts={"a": 1}).to_dict() | {"row": "start"}]})
    assert len(file.read_text().splitlines()) == 3
    assert json.loads(file.read_text().splitlines()[0])["results"][0]["ratio"] == 2.0
    found = newest(file)
    assert [(one.row, one.ours) for one in found] == [("decode", (200.0,)), ("start", (1.0,))]
    assert math.isnan(found[1].ratio)


def test_a_busy_core_is_seen() -> None:
    with busy_core():
        share = busy_share(0.5)
    if share is not None:  # no /proc/stat elsewhere
        assert 0.4 / (os.cpu_count() or 1) < share <= 1


def test_a_load_counts_tokens_of_all_clients_over_the_time_of_all() -> None:
    answers = [Answer(0.1 * i, 1.0, prompt_tokens=128, completion_tokens=64) for i in range(1, 11)]
    load = Load.of(answers, seconds=2.0)
    assert load.tokens_per_s == 320.0
    assert load.first_p50_s == pytest.approx(0.5)
    assert load.first_p99_s == 1.0
    assert (load.prompt_tokens, load.requests) == (128, 10)


def test_a_prompt_of_words_has_as_many_tokens_as_words() -> None:
    tokenizer = make_tokenizer("llama4")
    choose_from = one_token_words(tokenizer.description["model"]["vocab"], tokenizer.encode)
    assert len(choose_from) > 500
    text = words(choose_from, 200, seed=1)
    assert abs(len(tokenizer.encode(text)) - 200) <= 3  # the first has lost its space
    assert words(choose_from, 200, seed=1) == text
    assert words(choose_from, 200, seed=2) != text
