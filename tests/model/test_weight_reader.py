"""What a runner reads is what `Checkpoint.weight` says, in every form, in memory that is nobody else's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from musespark.errors import CheckpointError
from musespark.model.checkpoint import Checkpoint, open_checkpoint, save_checkpoint
from musespark.model.config import ModelConfig
from musespark.model.manifest import MANIFEST
from musespark.model.pack_quantized import Quantization, dequantize, unpack
from musespark.model.presets import preset
from musespark.model.quantize import quantize_checkpoint
from musespark.model.tensor_file import RawTensor
from musespark.model.weight_reader import StoredWeight, WeightReader
from tests.model.files import TOY, random_tensors, write_stored
from tests.model.test_integer_formats import bf16_scales, integers, stored
from tests.model.test_nvfp4_format import nvfp4_tensors, write
from tests.native.test_formats import in_fp8, in_int8_with_a_scale_a_row

DOWN = "model.language_model.layers.1.mlp.experts.down_proj"


def in_dtype(dtype: str, config: ModelConfig = TOY) -> Callable[[Path], Path]:
    def store(folder: Path) -> Path:
        if dtype == "F16":
            save_checkpoint(folder, config, {n: x.astype(np.float16) for n, x in random_tensors(config).items()})
        else:
            save_checkpoint(folder, config, random_tensors(config), dtype="BF16" if dtype == "BF16" else None)
        return folder

    return store


def quantized(bits: int, config: ModelConfig = TOY) -> Callable[[Path], Path]:
    def store(folder: Path) -> Path:
        save_checkpoint(folder.with_name("plain"), config, random_tensors(config))
        quantize_checkpoint(folder.with_name("plain"), folder, bits=8 if bits == 8 else 4)
        return folder

    return store


def with_wide_scales(folder: Path) -> Path:
    """Stacked experts of four bits, a float32 scale for a row."""
    how = Quantization(4, None)
    tensors = random_tensors() | stored(DOWN, integers((4, 32, 48)) % 8, bf16_scales(4, 32, 1).float() / 7, how)
    del tensors[DOWN]
    return write_stored(folder, TOY, tensors, quantization_config=how.to_dict(()))


FORMS: dict[str, Callable[[Path], Path]] = {
    "float32": in_dtype("F32"),
    "bf16": in_dtype("BF16"),
    "f16": in_dtype("F16"),
    "int8": quantized(8),
    "int4": quantized(4),
    "int8 as it is": in_int8_with_a_scale_a_row,
    "int4 with wide scales": with_wide_scales,
    "fp8": in_fp8,
    "nvfp4": lambda folder: write(folder, nvfp4_tensors()),
    "transposed experts": in_dtype("BF16", preset("toy-llama4")),
    "int4 of transposed experts": quantized(4, preset("toy-llama4")),
}


def values(weight: StoredWeight, shape: tuple[int, ...]) -> np.ndarray:
    """float32 of what was read, by the formulas of the formats."""
    if weight.scales is None:
        data = weight.data.view(np.float16) if weight.kind == "F16" else weight.data
        assert weight.kind in ("F32", "F16", "BF16")
        return RawTensor(weight.kind, data.shape, data).float32()
    scales = weight.scales
    if scales.dtype == np.uint16:
        scales = (scales.astype(np.uint32) << 16).view(np.float32)
    assert weight.group_size * scales.shape[-1] == shape[-1]
    packed = weight.data
    return dequantize(unpack(packed.view("<i4"), 4, shape[-1]) if weight.kind == "I4" else packed, scales)


@pytest.mark.parametrize("form", FORMS)
def test_every_weight_is_read_as_it_is(form: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(FORMS[form](tmp_path / "stored"))
    told: list[tuple[int, int]] = []
    reader = WeightReader(checkpoint, lambda *numbers: told.append(numbers))
    kinds = set()
    for name in checkpoint.names():
        weight, expected = reader.read(name), checkpoint.weight(name).float32()
        np.testing.assert_array_equal(values(weight, expected.shape), expected)
        for array in (weight.data, weight.scales):
            assert array is None or array.flags.c_contiguous
        kinds.add(weight.kind)
    reader.finish()
    assert kinds >= {{"int8": "I8", "int4": "I4", "f16": "F16", "bf16": "BF16"}.get(form, "F32")} - (
        {"F32"} if "transposed" in form else set()
    )
    done, all_bytes = zip(*told, strict=True)
    assert list(done) == sorted(done)
    assert set(all_bytes) == {done[-1]}


@pytest.mark.parametrize("form", ["int4", "int4 with wide scales", "int8 as it is"])
def test_a_scale_that_is_not_a_number_is_refused_by_name(form: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(FORMS[form](tmp_path / "stored"))
    name = next(name for name in checkpoint.stored_names() if name.endswith("_scale") and ".layers.1.mlp" in name)
    file = checkpoint.file(name)
    entry = file.entries[name]
    content = bytearray(file.path.read_bytes())
    content[entry.end - (2 if entry.dtype == "BF16" else 4) : entry.end] = (
        b"\x80\x7f" if entry.dtype == "BF16" else b"\x00\x00\x80\x7f"  # infinity
    )
    file.path.write_bytes(content)
    (file.path.parent / MANIFEST).unlink(missing_ok=True)
    damaged = open_checkpoint(file.path.parent)
    with pytest.raises(CheckpointError, match=rf"{name} in .*safetensors holds NaN or infinity"):
        read_all(damaged)


def read_all(checkpoint: Checkpoint) -> None:
    reader = WeightReader(checkpoint)
    for name in checkpoint.names():
        reader.read(name)
    reader.finish()


@pytest.mark.parametrize("form", ["float32", "int4"])
def test_a_damaged_file_is_found_while_it_is_read(form: str, tmp_path: Path) -> None:
    folder = FORMS[form](tmp_path / "stored")
    read_all(open_checkpoint(folder, check_while_reading=True))
    (path,) = folder.glob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged"):
        open_checkpoint(folder)
    late = open_checkpoint(folder, check_while_reading=True)
    with pytest.raises(CheckpointError, match="is damaged"):
        read_all(late)
