"""Attention over pages, in every format of the pages and every instruction set, against softmax in float64."""

from __future__ import annotations

import numpy as np
import pytest

from musespark.engine._native import kernels
from musespark.engine.native import available_isas

ISAS = available_isas()
FORMATS = {"float32": 2e-6, "bf16": 0.015, "int8": 0.03}  # and the error that each may have, of the largest value
RANGE = 16 * 64  # keys that are summed up in one chain

# head_dim, kv heads, query heads, keys, queries, window
CASES = [
    (64, 2, 8, 700, 9, 10**9),
    (128, 1, 8, 300, 70, 10**9),
    (30, 1, 3, 130, 40, 70),
    (6, 2, 2, 64, 1, 64),
    (20, 1, 1, 65, 65, 1),
    (64, 1, 4, 2 * RANGE + 70, 3, RANGE + 5),
    (32, 2, 10, RANGE + 1, 5, 10**9),
]


class Case:
    def __init__(
        self, head_dim: int, num_kv_heads: int, num_heads: int, num_keys: int, num_queries: int, window: int
    ) -> None:
        random = np.random.default_rng([head_dim, num_keys])
        self.keys, self.values = (random.standard_normal((num_keys, num_kv_heads, head_dim), np.float32) for _ in "kv")
        self.queries = random.standard_normal((num_queries, num_heads, head_dim), np.float32) * 2
        self.end = np.arange(num_keys - num_queries + 1, num_keys + 1)
        self.first = np.maximum(self.end - window, 0)

    def attend(self, fmt: str, isa: str, rows: slice = slice(None), num_threads: int = 1) -> np.ndarray:
        out = np.full_like(self.queries[rows], np.nan)
        attention = kernels.Attention(self.keys, self.values, fmt, num_threads, isa)
        attention.run(self.queries[rows], self.first[rows], self.end[rows], out)
        return out

    def expected(self) -> np.ndarray:
        """The obvious way: every score, then softmax, then the mean of the values."""
        out = np.zeros(self.queries.shape)
        _, num_heads, head_dim = out.shape
        group = num_heads // self.keys.shape[1]
        for t, h in np.ndindex(out.shape[:2]):
            seen = slice(self.first[t], self.end[t])
            score = self.keys[seen, h // group].astype(np.float64) @ self.queries[t, h] / np.sqrt(head_dim)
            weight = np.exp(score - score.max())
            out[t, h] = weight / weight.sum() @ self.values[seen, h // group]
        return out


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("sizes", CASES, ids=str)
def test_attention_is_that_of_float64(sizes: tuple[int, ...], fmt: str, isa: str) -> None:
    case = Case(*sizes)
    expected = case.expected()
    assert np.abs(case.attend(fmt, isa) - expected).max() <= FORMATS[fmt] * np.abs(expected).max()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("sizes", CASES, ids=str)
def test_a_row_does_not_depend_on_its_neighbours_or_on_threads(sizes: tuple[int, ...], fmt: str, isa: str) -> None:
    """One query with several threads is shared by ranges of its keys, many are not."""
    case = Case(*sizes)
    whole = case.attend(fmt, isa)
    for num_threads in (1, 2, 5):
        assert np.array_equal(case.attend(fmt, isa, num_threads=num_threads), whole)
        for rows in (slice(-1, None), slice(0, 1), slice(len(whole) // 2, None)):
            assert np.array_equal(case.attend(fmt, isa, rows, num_threads), whole[rows])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize(("what", "bad"), [("keys", np.nan), ("values", np.nan), ("values", np.inf)])
def test_what_is_not_finite_is_seen_by_those_who_see_it_and_by_no_others(
    what: str, bad: float, fmt: str, isa: str
) -> None:
    case = Case(64, 1, 2, 200, 50, 20)
    whole = case.attend(fmt, isa)
    getattr(case, what)[170, 0, 5] = bad  # queries 20 to 39 see it
    out = case.attend(fmt, isa)
    assert not np.isfinite(out[20:40]).all(axis=(1, 2)).any()
    if what == "keys" or fmt == "int8":  # zero times a value that is not finite is NaN, for all who see its page
        assert np.array_equal(out[:20], whole[:20])
        assert np.array_equal(out[40:], whole[40:])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("fmt", ["bf16", "int8"])
def test_many_small_weights_count_beside_a_large_one(fmt: str, isa: str) -> None:
    """As after a first token that everything attends to: each of 4,000 keys has a thousandth of its weight, but all of
    them together four times as much. In int8 a step of the whole row would round all of them to nothing; a step of the
    page does so for the 63 in the page of the first token, 0.013 of all."""
    case = Case(64, 1, 1, 4000, 1, 10**9)
    case.keys[:] = 0
    case.queries[:] = 0
    case.keys[0, 0, 0] = case.queries[0, 0, 0] = np.sqrt(8 * np.log(1000))
    case.values[:] = 1.0
    case.values[0] = -1.0
    expected = case.expected()
    assert abs(expected.max() - 0.6) < 0.01
    assert np.abs(case.attend(fmt, isa) - expected).max() <= (0.014 if fmt == "int8" else 0.01)


def test_queries_that_see_nothing_or_go_back_are_refused() -> None:
    case = Case(64, 1, 1, 100, 3, 50)
    for first, end in (
        ([5, 5, 5], [5, 6, 7]),
        ([-1, 0, 0], [1, 2, 3]),
        ([0, 0, 0], [9, 8, 10]),
        ([0] * 3, [1, 2, 101]),
    ):
        case.first, case.end = np.array(first), np.array(end)
        with pytest.raises(ValueError, match="see some keys"):
            case.attend("bf16", ISAS[0])
