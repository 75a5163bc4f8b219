"""Tensors of more than 2^31 elements, in sparse files that take no disk: every place in them is 64 bits wide."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch

from musespark.errors import CheckpointError
from musespark.model.checkpoint import open_checkpoint
from musespark.model.pack_quantized import Quantization
from musespark.model.quantize import quantized_parts
from musespark.model.tensor_file import DTYPES, RawTensor, TensorFile, TensorWriter
from musespark.model.tensors import expected_tensors
from musespark.model.weights import Fp8, Plain, Quantized
from tests.model.files import entry, safetensors_bytes, toy_config

WIDTH = 1024
ROWS = (1 << 31) // WIDTH + 3  # 2^31 + 3,072 elements: a count in int32 would be negative
LAST = np.arange(2 * WIDTH).reshape(2, WIDTH) % 100  # the last two rows; all before them are zeros


def sparse_file(path: Path, tensors: dict[str, tuple[str, tuple[int, ...]]]) -> Path:
    """A safetensors file of zeros with LAST at the end of each tensor, written without our writer."""
    header, offset = {}, 0
    for name, (dtype, shape) in tensors.items():
        size = math.prod(shape) * DTYPES[dtype].itemsize
        header[name] = entry(dtype, list(shape), offset, offset + size)
        offset += size
    text = json.dumps(header).encode()
    start = safetensors_bytes(text + b" " * (-len(text) % 64))  # aligned, as writers do: other tensors are copied
    with path.open("wb") as file:
        file.write(start)
        file.truncate(len(start) + offset)
        for name, (dtype, shape) in tensors.items():
            if math.prod(shape) >= LAST.size:
                values = LAST.astype(np.float32).view(np.uint32) >> 16 if dtype == "BF16" else LAST
                data = values.astype(DTYPES[dtype]).tobytes()
                file.seek(len(start) + header[name]["data_offsets"][1] - len(data))
                file.write(data)
    assert path.stat().st_blocks * 512 < 1 << 26, "this file system has no sparse files"
    return path


@pytest.mark.parametrize("dtype", ["BF16", "I8", "F8_E4M3"])
def test_the_last_rows_of_the_second_of_two_such_tensors_are_read(tmp_path: Path, dtype: str) -> None:
    path = sparse_file(tmp_path / "file", {"first": (dtype, (ROWS, WIDTH)), "second": (dtype, (2, ROWS, WIDTH // 2))})
    raw = TensorFile(path).tensor("second")
    assert raw.shape == (2, ROWS, WIDTH // 2)
    assert raw.data.size == (1 << 31) + 3 * WIDTH
    tail = LAST.reshape(4, WIDTH // 2)
    if dtype == "BF16":
        weight = Plain(raw).expert(1).rows(ROWS - 5, ROWS)
    elif dtype == "I8":
        scales = np.broadcast_to(np.float32(2), (2, ROWS, 1))
        weight = Quantized(8, WIDTH // 2, raw.data, scales).expert(1).rows(ROWS - 5, ROWS)
    else:
        scales = np.broadcast_to(np.float32(2), (2, ROWS, 1))
        weight = Fp8(raw.data, scales).expert(1).rows(ROWS - 5, ROWS)
    values = weight.float32()
    assert values.shape == (5, WIDTH // 2)
    assert not values[0].any()
    if dtype == "F8_E4M3":
        tail = torch.from_numpy(tail.astype(np.uint8)).view(torch.float8_e4m3fn).float().numpy()
    np.testing.assert_array_equal(values[1:], tail * (1 if dtype == "BF16" else 2))


def test_a_header_that_is_one_byte_or_2_to_the_32_elements_off_is_refused(tmp_path: Path) -> None:
    path = sparse_file(tmp_path / "file", {"a": ("I8", (ROWS, WIDTH))})
    TensorFile(path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)
    with pytest.raises(CheckpointError, match="truncated"):
        TensorFile(path)
    # 2^32 elements too many, which 32-bit arithmetic would not see.
    size = ROWS * WIDTH
    start = safetensors_bytes({"a": entry("I8", [ROWS + (1 << 32) // WIDTH, WIDTH], 0, size)})
    with path.open("wb") as file:
        file.write(start)
        file.truncate(len(start) + size)
    with pytest.raises(CheckpointError, match="but its offsets hold"):
        TensorFile(path)


def test_rows_are_written_behind_the_four_gigabyte_line(tmp_path: Path) -> None:
    """Only the last rows are written; the writer says what is missing, and the file is where it should be."""
    missing = (ROWS - 2) * WIDTH * 4
    with (
        pytest.raises(AssertionError, match=f"{missing:,} bytes of tensors were not written"),
        TensorWriter(tmp_path / "file", {"a": ("F32", (ROWS, WIDTH))}) as out,
    ):
        out.write("a", LAST.astype(np.float32), ROWS - 2)
    with safetensors.safe_open(tmp_path / "file", "np") as file:
        rows = file.get_slice("a")
        assert rows.get_shape() == [ROWS, WIDTH]
        np.testing.assert_array_equal(rows[ROWS - 2 :], LAST.astype(np.float32))


def test_a_checkpoint_with_such_a_head_opens_and_gives_its_last_rows(tmp_path: Path) -> None:
    config = toy_config(vocab_size=ROWS, hidden_size=WIDTH)
    tensors = {name: ("F32" if "gate" in name else "BF16", shape) for name, shape in expected_tensors(config).items()}
    sparse_file(tmp_path / "model.safetensors", tensors)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    checkpoint = open_checkpoint(tmp_path)
    for name in ("lm_head.weight", "model.language_model.embed_tokens.weight"):
        weight = checkpoint.weight(name)
        assert isinstance(weight, Plain)
        np.testing.assert_array_equal(weight.rows(ROWS - 2, ROWS).float32(), LAST)
    sizes = {part.name: part.size_bytes for part in quantized_parts(config, Quantization(4, 16))}
    assert sizes["lm_head.weight"] == ROWS * WIDTH // 2 + ROWS * WIDTH // 16 * 2 + 16


def test_a_row_index_of_a_raw_tensor_is_not_cut_to_32_bits(tmp_path: Path) -> None:
    raw = TensorFile(sparse_file(tmp_path / "file", {"a": ("I8", (ROWS * WIDTH, 1))})).tensor("a")
    place = np.array([ROWS * WIDTH - 1])
    assert RawTensor(raw.dtype, (1, 1), raw.data[place]).data.tolist() == [[LAST[-1, -1]]]
