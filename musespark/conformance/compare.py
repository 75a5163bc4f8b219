"""An answer beside what was expected: pass or fail, with the largest difference and its place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from musespark.chat.tokenizer import Tokenizer
from musespark.conformance.spelling import spell
from musespark.conformance.suite import Answer, Case
from musespark.model.json_file import show

Status = Literal["pass", "fail", "unsupported"]


@dataclass(frozen=True, slots=True)
class Result:
    """difference: the largest of a value, None where values are not numbers or there is no answer. where: its place."""

    case: Case
    status: Status
    difference: float | None = None
    where: str = ""
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {
            "id": self.case.id,
            "kind": self.case.kind,
            "family": self.case.family,
            "status": self.status,
            "difference": self.difference,
            "tolerance": self.case.tolerance,
            "where": self.where,
            "note": self.note,
            "guards": [asdict(guard) for guard in self.case.guards],
        }


class BadAnswer(Exception):
    """The answer is not of the form that the case asks for; the message names the field."""


def compare(case: Case, given: Answer, expected: Answer, answer: Answer, tokenizer: Tokenizer, source: str) -> Result:
    """`source` names the answer in notes: a file, or an engine."""
    try:
        match case.kind:
            case "logits":
                return _compare_logits(case, given, expected, answer)
            case "patches":
                return _compare_patches(case, given, expected, answer)
            case "render":
                return _compare_ids(case, expected, answer, tokenizer)
            case "parse":
                return _compare_fields(case, expected, answer, ("reasoning", "content", "tool_calls"))
            case "grids":
                return _compare_grids(case, given, expected, answer)
    except BadAnswer as error:
        return Result(case, "fail", note=f"{source}: {error}")
    raise AssertionError(case.kind)


def _compare_logits(case: Case, given: Answer, expected: Answer, answer: Answer) -> Result:
    logits = _floats(answer, "logits", expected["logits"].shape)
    positions = given["positions"].tolist()

    def place(index: tuple[int, ...]) -> str:
        return f"position {positions[index[0]]}, token {index[1]}"

    return _nearest(case, "logits", logits, expected["logits"], place)


def _compare_patches(case: Case, given: Answer, expected: Answer, answer: Answer) -> Result:
    grid = answer.get("grid")
    wanted = expected["grid"].tolist()
    if not isinstance(grid, np.ndarray) or grid.shape != (2,):
        raise BadAnswer("grid must be two integers, rows and columns")
    if grid.tolist() != wanted:
        return Result(case, "fail", where="grid", note=f"the grid is {grid.tolist()}, expected {wanted}")
    count, rows = int(expected["num_patches"][0]), given["rows"]
    patches = _floats(answer, "patches", (count, expected["patches"].shape[1]))

    def place(index: tuple[int, ...]) -> str:
        return f"patch {rows[index[0]]}, value {index[1]}"

    return _nearest(case, "patches", patches[rows], expected["patches"], place)


def _nearest(case: Case, name: str, got: np.ndarray, expected: np.ndarray, place: Any) -> Result:
    bad = np.argwhere(~np.isfinite(got))
    if len(bad):
        raise BadAnswer(f"{name} holds NaN or infinity at {place(tuple(bad[0].tolist()))}")
    difference = np.abs(got.astype(np.float64) - expected)
    worst = np.unravel_index(int(difference.argmax()), difference.shape)
    largest = float(difference[worst])
    status: Status = "pass" if largest <= case.tolerance else "fail"
    return Result(case, status, largest, place(tuple(int(i) for i in worst)))


def _floats(answer: Answer, name: str, shape: tuple[int, ...]) -> np.ndarray:
    array = answer.get(name)
    if not isinstance(array, np.ndarray):
        raise BadAnswer(f"{name} is missing")
    if array.dtype not in (np.float32, np.float16):
        raise BadAnswer(f"{name} is {array.dtype}; it must be F32 or F16")
    if array.shape != shape:
        raise BadAnswer(f"{name} has the shape {list(array.shape)}, expected {list(shape)}")
    return array


def _compare_ids(case: Case, expected: Answer, answer: Answer, tokenizer: Tokenizer) -> Result:
    ids, wanted = answer.get("token_ids"), expected["token_ids"]
    if not isinstance(ids, list) or not all(type(i) is int for i in ids):
        raise BadAnswer("token_ids must be a list of integers")
    if ids == wanted:
        return Result(case, "pass", 0.0)
    first = next((i for i, (a, b) in enumerate(zip(ids, wanted, strict=False)) if a != b), min(len(ids), len(wanted)))
    got, right = (spell(part[first : first + 24], tokenizer) for part in (ids, wanted))
    return Result(case, "fail", where=f"token {first}", note=f"it goes on {show(got)}, expected {show(right)}")


def _compare_fields(case: Case, expected: Answer, answer: Answer, names: tuple[str, ...]) -> Result:
    for name in names:
        if name not in answer:
            raise BadAnswer(f"{name} is missing")
        if _canonical(answer[name]) != _canonical(expected[name]):
            return Result(case, "fail", where=name, note=f"it is {show(answer[name])}, expected {show(expected[name])}")
    return Result(case, "pass", 0.0)


def _canonical(value: Any) -> str:
    """JSON in which 1, 1.0 and true are three things, and the order of keys is none."""
    return json.dumps(value, sort_keys=True)


def _compare_grids(case: Case, given: Mapping[str, Any], expected: Answer, answer: Answer) -> Result:
    for name in ("grids", "num_tokens"):
        got, wanted = answer.get(name), expected[name]
        if not isinstance(got, list) or len(got) != len(wanted):
            raise BadAnswer(f"{name} must be a list of {len(wanted)}")
        for size, a, b in zip(given["sizes"], got, wanted, strict=True):
            if _canonical(a) != _canonical(b):
                where = f"{name} of {size[0]} x {size[1]}"
                return Result(case, "fail", where=where, note=f"it is {show(a)}, expected {show(b)}")
    return Result(case, "pass", 0.0)
