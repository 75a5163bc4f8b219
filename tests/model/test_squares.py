"""Copies by squares are numpy's own copies."""

from __future__ import annotations

import numpy as np
import pytest

from musespark.model.squares import contiguous, copy_by_squares


@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (255, 257), (256, 512), (2, 300, 513)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_transposed_matrices_are_copied_square_by_square_and_equal(shape: tuple[int, ...], dtype: type) -> None:
    stored: np.ndarray = np.random.default_rng(0).integers(0, 255, shape).astype(dtype)
    transposed = stored.swapaxes(-1, -2)
    copied = contiguous(transposed)
    assert copied.flags.c_contiguous
    np.testing.assert_array_equal(copied, transposed)
    back = np.zeros_like(stored)
    copy_by_squares(copied, back.swapaxes(-1, -2))
    np.testing.assert_array_equal(back, stored)


def test_what_lies_in_order_is_not_copied_and_what_does_not_is_whatever_its_shape() -> None:
    values = np.arange(24.0).reshape(2, 3, 4)
    assert np.shares_memory(contiguous(values[1]), values)
    for odd in (values[..., ::2], values[::-1], values[0, 0, ::2], values.transpose(2, 0, 1)):
        assert contiguous(odd).flags.c_contiguous
        np.testing.assert_array_equal(contiguous(odd), odd)
