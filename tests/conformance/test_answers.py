"""Answers in files, as another engine writes them: right ones pass, and what is wrong is said with file and field."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from musespark.conformance.check import check, write_answers
from musespark.conformance.compare import Result
from musespark.conformance.engines import AnswersEngine, ReferenceEngine
from musespark.conformance.suite import Suite, read_answer, write_answer
from musespark.errors import DataError

LOGITS, PATCHES = "muse_spark.attention.window", "muse_spark.patches.wide"
RENDER, PARSE, GRIDS = "muse_glimmer.render.calls", "muse_spark.parse.types", "llama4.grids.sizes"


@pytest.fixture(scope="module")
def right(suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("answers") / "right"
    assert write_answers(suite, ReferenceEngine(), folder) == (len(suite.cases), 0)
    return folder


@pytest.fixture
def answers(right: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(right, tmp_path / "answers"))


def result_of(suite: Suite, answers: Path, case: str) -> Result:
    (result,) = check(suite, AnswersEngine(answers, suite), only=case)
    return result


def change(answers: Path, case: str, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Rewrite one file of answers after `edit` on its fields."""
    (path,) = answers.glob(f"{case}.*")
    content = {
        name: np.array(value) if isinstance(value, np.ndarray) else value for name, value in read_answer(path).items()
    }
    edit(content)
    write_answer(path, content)


def test_right_answers_pass(suite: Suite, answers: Path) -> None:
    assert {result.status for result in check(suite, AnswersEngine(answers, suite))} == {"pass"}


def test_a_case_without_an_answer_is_unsupported(suite: Suite, answers: Path) -> None:
    (answers / f"{LOGITS}.safetensors").unlink()
    result = result_of(suite, answers, LOGITS)
    assert (result.status, result.note) == ("unsupported", f"there is no {LOGITS}.safetensors")


@pytest.mark.parametrize(("by", "status"), [(2.9e-4, "pass"), (3.1e-4, "fail")])
def test_the_tolerance_is_the_largest_difference_that_passes(
    suite: Suite, answers: Path, by: float, status: str
) -> None:
    def shift(content: dict[str, Any]) -> None:
        content["logits"][5, 17] = content["logits"][5, 17] + by

    change(answers, LOGITS, shift)
    result = result_of(suite, answers, LOGITS)
    assert result.status == status
    assert result.difference == pytest.approx(by, rel=0.01)
    assert result.where == "position 5, token 17"


def test_half_precision_is_read_and_judged_like_any_other(suite: Suite, answers: Path) -> None:
    change(answers, LOGITS, lambda content: content.update(logits=content["logits"].astype(np.float16)))
    assert result_of(suite, answers, LOGITS).status == "fail"  # a half has three digits; the tolerance asks for four


@pytest.mark.parametrize(
    ("case", "edit", "note"),
    [
        (LOGITS, lambda c: c["logits"].__setitem__((3, 9), np.nan), "NaN or infinity at position 3, token 9"),
        (LOGITS, lambda c: c["logits"].__setitem__((0, 0), np.inf), "NaN or infinity at position 0, token 0"),
        (LOGITS, lambda c: c.update(logits=c["logits"][:-1]), "logits has the shape [11, 288], expected [12, 288]"),
        (LOGITS, lambda c: c.update(logits=c["logits"].astype(np.int64)), "logits is int64; it must be F32 or F16"),
        (LOGITS, lambda c: c.update(scores=c.pop("logits")), "logits is missing"),
        (PATCHES, lambda c: c["patches"].__setitem__((0, 0), np.nan), "NaN or infinity at patch 0, value 0"),
        (PATCHES, lambda c: c.update(patches=c["patches"][1:]), "patches has the shape [31, 588], expected [32, 588]"),
        (PATCHES, lambda c: c.pop("grid"), "grid must be two integers"),
        (RENDER, lambda c: c.update(token_ids="none"), "token_ids must be a list of integers"),
        (PARSE, lambda c: c.pop("tool_calls"), "tool_calls is missing"),
        (GRIDS, lambda c: c["grids"].pop(), "grids must be a list of "),
    ],
)  # fmt: skip
def test_what_is_no_answer_fails_with_the_name_of_file_and_field(
    suite: Suite, answers: Path, case: str, edit: Callable[[dict[str, Any]], Any], note: str
) -> None:
    change(answers, case, edit)
    result = result_of(suite, answers, case)
    assert result.status == "fail"
    assert result.note.startswith(f"{answers}/{case}.")
    assert note in result.note


@pytest.mark.parametrize(
    ("case", "edit", "where"),
    [
        (PATCHES, lambda c: c.update(grid=c["grid"][::-1].copy()), "grid"),
        (PATCHES, lambda c: c["patches"].__setitem__((31, 7), c["patches"][31, 7] + 0.01), "patch 31, value 7"),
        (RENDER, lambda c: c["token_ids"].pop(), "token "),
        (RENDER, lambda c: c["token_ids"].__setitem__(0, 1), "token 0"),
        (RENDER, lambda c: c["token_ids"].append(40), "token "),
        (PARSE, lambda c: c["tool_calls"][0]["arguments"].update(city=123), "tool_calls"),
        (PARSE, lambda c: c["tool_calls"][0]["arguments"].update(days=2.0), "tool_calls"),
        (PARSE, lambda c: c.update(content="x"), "content"),
        (GRIDS, lambda c: c["num_tokens"].__setitem__(0, 148), "num_tokens of 1 x 1"),
    ],
)
def test_a_wrong_answer_fails_with_its_place(
    suite: Suite, answers: Path, case: str, edit: Callable[[dict[str, Any]], Any], where: str
) -> None:
    change(answers, case, edit)
    result = result_of(suite, answers, case)
    assert result.status == "fail"
    assert result.where.startswith(where)


def test_the_order_of_keys_in_arguments_does_not_matter(suite: Suite, answers: Path) -> None:
    def turn(content: dict[str, Any]) -> None:
        call = content["tool_calls"][0]
        call["arguments"] = dict(reversed(call["arguments"].items()))

    change(answers, PARSE, turn)
    assert result_of(suite, answers, PARSE).status == "pass"


@pytest.mark.parametrize("suffix", ["json", "safetensors"])
def test_a_damaged_file_fails_its_case_and_no_other(suite: Suite, answers: Path, suffix: str) -> None:
    case = PARSE if suffix == "json" else LOGITS
    path = answers / f"{case}.{suffix}"
    path.write_bytes(path.read_bytes()[:-20])
    assert str(path) in result_of(suite, answers, case).note
    failed = [result.case.id for result in check(suite, AnswersEngine(answers, suite)) if result.status == "fail"]
    assert failed == [case]


def test_a_file_that_answers_no_case_is_refused_by_name(suite: Suite, answers: Path, tmp_path: Path) -> None:
    (answers / "muse_spark.attention.windows.safetensors").write_bytes(b"")
    with pytest.raises(DataError, match=r"muse_spark\.attention\.windows\.safetensors answers no case"):
        AnswersEngine(answers, suite)
    with pytest.raises(DataError, match="is not a folder"):
        AnswersEngine(tmp_path / "none", suite)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no answers"):
        AnswersEngine(tmp_path / "empty", suite)


def test_answers_are_not_written_over_anything(suite: Suite, answers: Path) -> None:
    with pytest.raises(DataError, match="not an empty folder"):
        write_answers(suite, ReferenceEngine(), answers)


def test_json_with_a_nan_is_not_an_answer(suite: Suite, answers: Path) -> None:
    path = answers / f"{PARSE}.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["tool_calls"][0]["arguments"]["days"] = float("nan")
    path.write_text(json.dumps(content), encoding="utf-8")
    assert result_of(suite, answers, PARSE).status == "fail"
