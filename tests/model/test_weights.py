"""The number formats of weights: tables against torch and hand-made values, pieces against the whole."""

from __future__ import annotations

import tracemalloc

import numpy as np
import torch

from musespark.model import weights
from musespark.model.weights import E2M1, E2M1_PAIRS, E4M3, Fp8, Nvfp4


def test_e4m3_codes_mean_what_torch_says() -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    np.testing.assert_array_equal(E4M3, codes.view(torch.float8_e4m3fn).float().numpy())
    assert [E4M3[0x01], E4M3[0x08], E4M3[0x38], E4M3[0x7E], E4M3[0xB8]] == [2**-9, 2**-6, 1, 448, -1]
    assert np.isnan(E4M3[[0x7F, 0xFF]]).all()


def test_e2m1_codes_are_those_of_the_microscaling_specification() -> None:
    # OCP MX 1.0, table of FP4: sign, two bits of exponent with bias 1, one of mantissa.
    positive = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    assert E2M1.tolist() == positive + [-value for value in positive]
    assert E2M1_PAIRS[0x72].tolist() == [1.0, 6.0]  # the lower four bits come first
    assert E2M1_PAIRS[0xB5].tolist() == [3.0, -1.5]


def test_nvfp4_by_hand() -> None:
    codes = np.zeros((1, 16), np.uint8)
    codes[0, 0] = 0x91  # 0.5, -0.5
    codes[0, 7] = 0x70  # 0, 6
    codes[0, 8] = 0x0A  # -1, 0
    scales = np.array([[0x38, 0x7E]], np.uint8)  # 1 and 448
    weight = Nvfp4(codes, scales, np.array([[0.25]], np.float32))
    expected = np.zeros((1, 32))
    expected[0, [0, 1, 15, 16]] = [0.125, -0.125, 1.5, -112.0]
    assert weight.float32().tolist() == expected.tolist()
    assert weight.raw.shape == weight.shape == (1, 32)


def random_bytes(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 0x7F, shape, np.uint8)


def test_pieces_are_those_of_the_whole() -> None:
    num_rows = 2 * (weights.BLOCK // 64) + 3  # two blocks and a bit
    tops = np.linspace(1, 2, 2 * num_rows, dtype=np.float32).reshape(2, num_rows, 1)
    fp8 = Fp8(random_bytes(2, num_rows, 64), tops)
    nvfp4 = Nvfp4(random_bytes(2, num_rows, 32), random_bytes(2, num_rows, 4), tops)
    for weight in (fp8, nvfp4):
        whole = weight.float32()
        assert whole.shape == (2, num_rows, 64)
        assert whole.all(axis=-1).any()
        np.testing.assert_array_equal(weight.expert(1).float32(), whole[1])
        last = num_rows - 1
        np.testing.assert_array_equal(weight.rows(last - 5, last).float32(), whole[:, last - 5 : last])
        np.testing.assert_array_equal(weight.expert(1).rows(last, num_rows).float32(), whole[1, last:])
        np.testing.assert_array_equal(weight.raw.data, whole)
        assert weight.raw is weight.raw
        assert all(array.base is not None for array in weight.expert(0).rows(0, 9).arrays())  # views, no copies


def test_reading_takes_little_more_memory_than_the_result() -> None:
    codes = random_bytes(8, 4 * weights.BLOCK // 1024, 1024)
    weight = Fp8(codes, np.ones((*codes.shape[:-1], 1), np.float32))
    tracemalloc.start()
    try:
        size = weight.float32().nbytes
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < size + 20 * weights.BLOCK


def test_a_scale_beyond_float32_gives_infinity_without_a_warning() -> None:
    weight = Fp8(np.array([[0x7E, 0xFE, 0x00]], np.uint8), np.array([[3e38]], np.float32))
    assert weight.float32().tolist() == [[np.inf, -np.inf, 0.0]]
