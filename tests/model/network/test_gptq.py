"""Rounding by inputs: the published rule in its slow form, the error that it is there to lessen, and the edges."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from musespark.model.network.gptq import DAMPING, Objective, round_by_inputs
from musespark.model.pack_quantized import Bits
from musespark.model.quantize import round_to_groups


def bfloat16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def restored(rounded: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    values, scales = rounded[0].astype(np.float64), bfloat16(rounded[1]).astype(np.float64)
    return values * np.repeat(scales, values.shape[1] // scales.shape[1], axis=1)


def correlated_inputs(num_rows: int, width: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    mixed = random.standard_normal((num_rows, width)) @ random.standard_normal((width, width))
    return (mixed * np.exp(random.standard_normal(width))).astype(np.float32)


def moment(inputs: np.ndarray) -> np.ndarray:
    """H as gptq.py defines it, in float64."""
    second = inputs.astype(np.float64).T @ inputs / len(inputs)
    diagonal = second.diagonal()
    shrunk = second * (len(inputs) / (len(inputs) + inputs.shape[1]))
    np.fill_diagonal(shrunk, diagonal + DAMPING * diagonal.mean())
    return shrunk


def optimal_brain_rounding(matrix: np.ndarray, h: np.ndarray, scales: np.ndarray, low: int, high: int) -> np.ndarray:
    """Optimal brain quantisation in its plain form (equations 2 and 3 of arXiv 2210.17323): after each column, the
    rest of the row is corrected by the inverse of H, from which that column is then removed."""
    left, inverse = matrix.astype(np.float64), np.linalg.inv(h)
    values = np.zeros_like(left)
    for i in range(left.shape[1]):
        scale = scales[:, i]
        values[:, i] = np.clip(np.round(left[:, i] / scale), low, high)
        error = (left[:, i] - values[:, i] * scale) / inverse[i, i]
        left -= error[:, None] * inverse[i]
        inverse = inverse - np.outer(inverse[:, i], inverse[i]) / inverse[i, i]
    return values


@pytest.mark.parametrize(("bits", "low", "high"), [(4, -8, 7), (8, -127, 127)])
@pytest.mark.parametrize("group_size", [8, 32, 192])
def test_integers_are_those_of_the_plain_rule_with_the_same_scales(
    bits: Bits, low: int, high: int, group_size: int
) -> None:
    inputs = correlated_inputs(500, 192)
    matrix = np.random.default_rng(1).standard_normal((24, 192)).astype(np.float32)
    values, scales = round_by_inputs(matrix, Objective.of(torch.from_numpy(inputs)), bits, group_size)
    every_scale = np.repeat(bfloat16(scales), group_size, axis=1)
    expected = optimal_brain_rounding(matrix, moment(inputs), every_scale, low, high)
    # float32 here and float64 there: a value that falls between two integers may fall to the other side.
    assert (values == expected).mean() > 0.995
    assert np.abs(values - expected).max() <= 1


@pytest.mark.parametrize("bits", [4, 8])
def test_the_output_is_nearer_than_with_rounding_to_nearest(bits: Bits) -> None:
    inputs, fresh = np.split(correlated_inputs(4000, 96), 2)
    matrix = np.random.default_rng(1).standard_normal((32, 96)).astype(np.float32)
    errors = {}
    for name, rounded in (
        ("nearest", round_to_groups(matrix, bits, 32)),
        ("by inputs", round_by_inputs(matrix, Objective.of(torch.from_numpy(inputs)), bits, 32)),
    ):
        errors[name] = np.linalg.norm(fresh @ (restored(rounded) - matrix).T)
    assert errors["by inputs"] < 0.8 * errors["nearest"]


def test_without_any_input_the_error_of_the_weights_is_not_above_that_of_the_nearest() -> None:
    matrix = np.random.default_rng(1).standard_normal((32, 96)).astype(np.float32)
    objective = Objective.of(torch.empty(0, 96))
    error = np.linalg.norm(restored(round_by_inputs(matrix, objective, 4, 32)) - matrix)
    assert error < np.linalg.norm(restored(round_to_groups(matrix, 4, 32)) - matrix)


def test_inputs_that_are_always_zero_and_fewer_rows_than_inputs_stay_finite() -> None:
    inputs = correlated_inputs(3, 64)
    inputs[:, 10:40] = 0
    matrix = np.random.default_rng(1).standard_normal((8, 64)).astype(np.float32)
    matrix[0] = 0
    matrix[1, :32] = 1e-42
    rounded = round_by_inputs(matrix, Objective.of(torch.from_numpy(inputs)), 4, 16)
    assert np.isfinite(restored(rounded)).all()
    assert restored(rounded)[0].tolist() == [0.0] * 64
    assert np.abs(restored(rounded) - matrix).max() < 2


def test_rows_do_not_depend_on_the_rows_beside_them() -> None:
    matrix = np.random.default_rng(1).standard_normal((9, 64)).astype(np.float32)
    objective = Objective.of(torch.from_numpy(correlated_inputs(100, 64)))
    values, scales = round_by_inputs(matrix, objective, 4, 16)
    values_too, scales_too = round_by_inputs(matrix[4:7], objective, 4, 16)
    assert (values[4:7] == values_too).mean() > 0.99  # the products of other shapes sum in another order
    np.testing.assert_array_equal(scales[4:7, 0], scales_too[:, 0])
