"""Single kernels of every instruction set that this machine has, against float64 and against each other."""

from __future__ import annotations

import math

import numpy as np
import pytest

from musespark.engine._native import kernels
from musespark.engine.native import available_isas
from musespark.model.pack_quantized import pack
from musespark.model.tensor_file import float32_to_bfloat16

ISAS = available_isas()
# Rows around the register tiles and the row blocks, outputs around the panels of 16, inputs around vectors and groups.
SHAPES = [
    (1, 1, 1),
    (1, 16, 64),
    (2, 17, 10),
    (3, 31, 33),
    (5, 97, 64),
    (7, 64, 96),
    (9, 48, 100),
    (49, 35, 128),
    (100, 200, 40),
]


def rounded(values: np.ndarray) -> np.ndarray:
    """To bfloat16 and back."""
    return (float32_to_bfloat16(values).astype(np.uint32) << 16).view(np.float32)


def product(weights: np.ndarray, x: np.ndarray, fmt: str, isa: str, num_threads: int = 1) -> np.ndarray:
    out = np.full((len(x), len(weights)), np.nan, np.float32)
    kernels.product(weights, fmt, x, out, num_threads, isa)
    return out


def random_operands(rows: int, outputs: int, inputs: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng([rows, outputs, inputs])
    return random.standard_normal((outputs, inputs), np.float32), random.standard_normal((rows, inputs), np.float32)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float32_products_are_those_of_float64(shape: tuple[int, int, int], isa: str) -> None:
    weights, x = random_operands(*shape)
    expected = x.astype(np.float64) @ weights.T.astype(np.float64)
    size = np.abs(x).astype(np.float64) @ np.abs(weights).T
    assert (np.abs(product(weights, x, "float32", isa) - expected) <= 1e-6 * size + 1e-9).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bf16_products_are_exact_products_of_rounded_operands(shape: tuple[int, int, int], isa: str) -> None:
    weights, x = random_operands(*shape)
    expected = rounded(x).astype(np.float64) @ rounded(weights).T.astype(np.float64)
    size = np.abs(x).astype(np.float64) @ np.abs(weights).T
    assert (np.abs(product(weights, x, "bf16", isa) - expected) <= 1e-6 * size + 1e-9).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("group_size", [4, 32, 64, 128])
@pytest.mark.parametrize("rows", [1, 2, 3, 6, 7, 50])
def test_int8_products_are_exact_at_the_extremes(rows: int, group_size: int, isa: str) -> None:
    """Scales of one and integer rows: the result is an integer, and every instruction set must give that one."""
    random = np.random.default_rng(rows)
    weights = random.choice(np.array([-128, -127, -1, 0, 1, 127], np.int8), (33, 2 * group_size))
    x = random.choice(np.array([-127, -126, -1, 0, 1, 127], np.float32), (rows, 2 * group_size))
    x[:, [0, group_size]] = 127  # so that the dynamic scale of either group is exactly one
    out = np.empty((rows, 33), np.float32)
    kernels.int8_product(weights, np.ones((33, 2), np.float32), x, out, isa)
    assert np.array_equal(out, x.astype(np.int64) @ weights.T.astype(np.int64))


@pytest.mark.parametrize("isa", ISAS)
def test_int8_scales_are_applied_by_group_of_row_and_of_output(isa: str) -> None:
    random = np.random.default_rng(0)
    weights = random.integers(-127, 128, (20, 96)).astype(np.int8)
    scales = random.uniform(0.001, 0.1, (20, 3)).astype(np.float32)
    x = random.standard_normal((5, 96), np.float32) * np.repeat([1.0, 100.0, 0.01], 32).astype(np.float32)
    out = np.empty((5, 20), np.float32)
    kernels.int8_product(weights, scales, x, out, isa)
    groups = x.reshape(5, 3, 32).astype(np.float64)
    step = np.abs(groups).max(axis=2, keepdims=True) / 127
    quantised = (np.rint(groups / step) * step).reshape(5, 96)
    expected = quantised @ (weights * np.repeat(scales.astype(np.float64), 32, axis=1)).T
    assert np.allclose(out, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def int4_product(weights: np.ndarray, scales: np.ndarray, x: np.ndarray, isa: str, fmt: str = "int4") -> np.ndarray:
    """weights int8 from -8 to 7, in the words in which a checkpoint has them."""
    out = np.full((len(x), len(weights)), np.nan, np.float32)
    kernels.int4_product(pack(weights, 4).view(np.uint8), fmt, scales, x, out, isa)
    return out


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("group_size", [8, 32, 48, 64, 128, 200])
@pytest.mark.parametrize("rows", [1, 2, 3, 6, 7, 50])
def test_int4_products_are_exact_at_the_extremes(rows: int, group_size: int, isa: str) -> None:
    """As above, all sixteen values. A row has a scale of its own for every 16 to 64 inputs: 64 of a group of 128, 40 of
    one of 200. The largest input comes in each of these, and so their scale is one, too."""
    random = np.random.default_rng(rows)
    weights = random.integers(-8, 8, (33, 2 * group_size)).astype(np.int8)
    weights[:, :8], weights[:, -8:] = -8, 7
    x = random.choice(np.array([-127, -126, -1, 0, 1, 127], np.float32), (rows, 2 * group_size))
    x[:, ::8] = 127
    got = int4_product(weights, np.ones((33, 2), np.float32), x, isa)
    assert np.array_equal(got, x.astype(np.int64) @ weights.T.astype(np.int64))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("group_size", [4, 12])
def test_int4_groups_that_are_not_eights_are_held_in_bytes_and_lose_nothing(group_size: int, isa: str) -> None:
    random = np.random.default_rng(0)
    weights = random.integers(-8, 8, (33, 3 * group_size)).astype(np.int8)
    scales = random.uniform(0.001, 0.1, (33, 3)).astype(np.float32)
    x = random.standard_normal((5, 3 * group_size), np.float32)
    in_bytes = np.empty((5, 33), np.float32)
    kernels.int8_product(weights, scales, x, in_bytes, isa)
    assert np.array_equal(int4_product(weights, scales, x, isa), in_bytes)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("group_size", [8, 32, 128, 480])
def test_int4_products_are_those_of_the_same_integers_in_bytes(group_size: int, isa: str) -> None:
    """To the bit: half the memory is all that four bits change."""
    random = np.random.default_rng(group_size)
    weights = random.integers(-8, 8, (70, 480 // group_size * group_size)).astype(np.int8)
    scales = random.uniform(0.001, 0.1, (70, weights.shape[1] // group_size)).astype(np.float32)
    x = random.standard_normal((50, weights.shape[1]), np.float32)
    in_bytes = np.empty((50, 70), np.float32)
    kernels.int8_product(weights, scales, x, in_bytes, isa)
    assert np.array_equal(int4_product(weights, scales, x, isa), in_bytes)
    assert np.array_equal(int4_product(weights, scales, x, isa, "int8"), in_bytes)


@pytest.mark.parametrize("isa", ISAS)
def test_one_scale_for_a_whole_row_does_not_make_its_inputs_coarse(isa: str) -> None:
    """A step of 1000 / 127 would round all the others to zero: an error of about 370 scales. They have steps of their
    own, about 3 / 127, which make one of 2 or 3 scales."""
    random = np.random.default_rng(0)
    weights = random.integers(-8, 8, (40, 6400)).astype(np.int8)
    scales = random.uniform(0.001, 0.1, (40, 1)).astype(np.float32)
    x = random.standard_normal((3, 6400), np.float32)
    weights[:, 64:128] = 0
    x[:, 77] = 1000
    expected = x.astype(np.float64) @ (weights * scales.astype(np.float64)).T
    assert (np.abs(int4_product(weights, scales, x, isa) - expected) < 20 * scales.T).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("fmt", "largest"), [("int8", 127), ("int4", 7)])
def test_float_weights_are_quantised_to_within_half_a_step(fmt: str, largest: int, isa: str) -> None:
    weights, _ = random_operands(1, 40, 50)
    identity = np.eye(50, dtype=np.float32)
    got = product(weights, identity, fmt, isa).T
    padded = np.pad(np.abs(weights), ((0, 0), (0, 14))).reshape(40, 2, 32)
    step = np.repeat(rounded(padded.max(axis=2) / largest), 32, axis=1)[:, :50]
    assert (np.abs(got - weights) <= 0.5001 * step).all()


@pytest.mark.parametrize("fmt", ["int8", "int4"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_integer_products_are_the_same_bits_on_every_instruction_set(shape: tuple[int, int, int], fmt: str) -> None:
    weights, x = random_operands(*shape)
    results = [product(weights, x, fmt, isa) for isa in ISAS]
    assert all(np.array_equal(result, results[0]) for result in results)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("fmt", ["float32", "bf16", "int8", "int4"])
def test_a_row_of_a_product_does_not_depend_on_its_neighbours_or_on_threads(fmt: str, isa: str) -> None:
    weights, x = random_operands(100, 200, 96)
    alone = np.concatenate([product(weights, x[i : i + 1], fmt, isa) for i in range(100)])
    for num_threads in (1, 2, 5):
        assert np.array_equal(product(weights, x, fmt, isa, num_threads), alone)
    assert np.array_equal(product(weights, x[3:20], fmt, isa), alone[3:20])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("fmt", ["float32", "bf16", "int8", "int4"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_broken_row_breaks_itself_and_no_other(bad: float, fmt: str, isa: str) -> None:
    weights, x = random_operands(4, 20, 64)
    whole = product(weights, x, fmt, isa)
    x[2, 5] = bad
    out = product(weights, x, fmt, isa)
    assert not np.isfinite(out[2]).any()
    assert np.array_equal(out[[0, 1, 3]], whole[[0, 1, 3]])


@pytest.mark.parametrize("isa", ISAS)
def test_a_broken_weight_does_not_turn_into_a_number(isa: str) -> None:
    weights, x = random_operands(2, 20, 64)
    weights[7, 40] = np.nan
    for fmt in ("float32", "bf16", "int8", "int4"):
        broken = ~np.isfinite(product(weights, x, fmt, isa))
        assert broken[:, 7].all()
        assert broken.sum() == 2


def erf(x: np.ndarray) -> np.ndarray:
    return np.vectorize(math.erf)(x)


def unit(x: np.ndarray, eps: float = 1e-5) -> np.ndarray:
    return x / np.sqrt((x**2).mean() + eps)


FUNCTIONS = {
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: 0.5 * x * (1 + erf(x / math.sqrt(2))),
    "soft_cap": lambda x: 20 * np.tanh(0.5 * x / 20),
    "rms_norm": unit,
    "layer_norm": lambda x: unit(x - x.mean()),
}


def mapped(name: str, x: np.ndarray, isa: str) -> np.ndarray:
    y = x.copy()
    kernels.map(name, y, isa)
    return y


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_a_row_are_those_of_float64(name: str, isa: str) -> None:
    for n in (1, 2, 15, 16, 17, 64, 1001):
        x = (np.linspace(-30, 30, n) if n > 2 else np.full(n, 0.7)).astype(np.float32)
        expected = FUNCTIONS[name](x.astype(np.float64))
        assert np.abs(mapped(name, x, isa) - expected).max() <= 4e-6, n


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_a_row_are_the_same_bits_on_every_instruction_set(name: str) -> None:
    x = np.random.default_rng(1).standard_normal(64, np.float32) * 3
    results = [mapped(name, x, isa) for isa in ISAS]
    assert all(np.array_equal(result, results[0]) for result in results)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["sigmoid", "silu", "gelu", "soft_cap"])
def test_functions_at_the_ends_of_the_numbers(name: str, isa: str) -> None:
    x = np.array([-np.inf, -1e38, -1000.0, 1000.0, 1e38, np.inf, np.nan] * 5, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = FUNCTIONS[name](x.astype(np.float64)).astype(np.float32)
    got = mapped(name, x, isa)
    if name in ("silu", "gelu"):  # -inf · 0 may be NaN; the limits of finite numbers may not
        got, expected = got[1::7], expected[1::7]
    assert np.array_equal(np.isnan(got), np.isnan(expected))
    assert np.allclose(got, expected, atol=1e-5, equal_nan=True)


def test_an_unknown_instruction_set_is_refused_with_what_there_is() -> None:
    with pytest.raises(ValueError, match=r"'mmx'.*portable"):
        mapped("sigmoid", np.ones(1, np.float32), "mmx")


@pytest.mark.parametrize("num_threads", [1, 2, 3, 8, 32])
def test_every_task_of_a_parallel_loop_runs_exactly_once(num_threads: int) -> None:
    """Far more threads than cores: late threads must find nothing, or a task of the loop that runs now."""
    for num_tasks in (1, 2, 7, 100):
        counts = np.zeros(num_tasks, np.int64)
        kernels.count_tasks(counts, num_threads, 2000)
        assert (counts == 2000).all()
