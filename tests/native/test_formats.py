"""Published formats that the native core doesn't know: it gets their values as floats, and loses nothing by it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from musespark.engine.native import default_precision
from musespark.model.checkpoint import open_checkpoint, save_checkpoint
from musespark.model.pack_quantized import Quantization
from tests.model.files import TOY, random_tensors, write_stored
from tests.model.test_fp8_formats import CHANNEL, fp8, scales
from tests.model.test_integer_formats import bf16_scales, integers, stored
from tests.model.test_nvfp4_format import nvfp4_tensors, write
from tests.native.runners import Stream, batch_of, open_native, pages_for

LAYER = "model.language_model.layers.1."
Q_PROJ, DOWN = f"{LAYER}self_attn.q_proj.weight", f"{LAYER}mlp.experts.down_proj"


def in_nvfp4(folder: Path) -> Path:
    return write(folder, nvfp4_tensors())


def in_fp8(folder: Path) -> Path:
    tensors = random_tensors() | {
        Q_PROJ: fp8(64, 64),
        f"{Q_PROJ}_scale": scales(64, 1) / 50,
        DOWN: fp8(4, 32, 48),
        f"{DOWN}_scale": scales(4, 32, 1) / 50,
    }
    return write_stored(folder, TOY, tensors, quantization_config=CHANNEL)


def in_int8_with_a_scale_a_row(folder: Path) -> Path:
    how = Quantization(8, None, is_packed=False)
    tensors = random_tensors() | stored(DOWN, integers((4, 32, 48)), bf16_scales(4, 32, 1) / 100, how)
    return write_stored(folder, TOY, tensors, quantization_config=how.to_dict(()))


@pytest.mark.parametrize(
    ("store", "precision"), [(in_nvfp4, "bf16"), (in_fp8, "bf16"), (in_int8_with_a_scale_a_row, "int8")]
)
def test_logits_are_those_of_the_same_values_in_float32(
    tmp_path: Path, store: Callable[[Path], Path], precision: str
) -> None:
    checkpoint = open_checkpoint(store(tmp_path / "stored"))
    assert default_precision(checkpoint) == precision
    values = {name: checkpoint.weight(name).float32() for name in checkpoint.names()}
    save_checkpoint(tmp_path / "floats", TOY, values)
    ids = np.random.default_rng(0).integers(12, TOY.text.vocab_size, 70).tolist()
    batch = batch_of(Stream(ids, pages_for(70)))
    logits = open_native(tmp_path / "stored").forward(batch)
    assert np.isfinite(logits).all()
    assert np.array_equal(logits, open_native(tmp_path / "floats").forward(batch))
    assert np.isfinite(open_native(tmp_path / "stored", precision=precision).forward(batch)).all()
