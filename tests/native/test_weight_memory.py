"""The memory plan and the runner agree: what weights will take, to the byte, and that what doesn't fit isn't loaded."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from musespark.engine import native as engine_native
from musespark.engine.native import NativeRunner, default_precision
from musespark.errors import ConfigError, NotEnoughMemory
from musespark.model.checkpoint import open_checkpoint, save_checkpoint
from musespark.model.config import ModelConfig
from musespark.model.pack_quantized import Quantization
from musespark.model.presets import preset
from musespark.model.quantize import quantize_checkpoint
from musespark.model.size import describe
from musespark.model.weight_memory import Precision, largest_tensor_bytes, loadable_precisions, planned_weight_bytes
from tests.model.files import TOY, random_tensors, toy_config, write_stored
from tests.model.test_integer_formats import bf16_scales, integers, stored

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
ODD = toy_config(
    mlp_layer_types=["dense", "sparse"],
    num_key_value_heads=1,
    moe_intermediate_size=72,
    intermediate_size=88,
    vocab_size=331,
)
LAYER = "model.language_model.layers.1."


def runner_of(folder: Path, precision: Precision) -> NativeRunner:
    return NativeRunner(
        open_checkpoint(folder), precision=precision, num_full_pages=1, num_sliding_pages=1, num_threads=2
    )


@pytest.fixture(
    scope="module",
    params=[TOY, ODD, preset("toy-glimmer"), preset("toy-llama4")],
    ids=["toy", "odd", "glimmer", "llama4"],
)
def config(request: pytest.FixtureRequest) -> ModelConfig:
    return request.param


@pytest.fixture(scope="module")
def folders(config: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> dict[Precision, Path]:
    """The same model stored in every precision."""
    folder = tmp_path_factory.mktemp("stored")
    save_checkpoint(folder / "float32", config, random_tensors(config))
    save_checkpoint(folder / "bf16", config, random_tensors(config), dtype="BF16")
    quantize_checkpoint(folder / "float32", folder / "int8", bits=8)
    quantize_checkpoint(folder / "float32", folder / "int4", bits=4)
    return {precision: folder / precision for precision in PRECISIONS}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_weights_take_what_was_planned(
    config: ModelConfig, folders: dict[Precision, Path], precision: Precision
) -> None:
    for folder in folders.values():
        checkpoint = open_checkpoint(folder)
        if precision in loadable_precisions(checkpoint):
            planned = planned_weight_bytes(checkpoint, precision)
            assert runner_of(folder, precision).weight_bytes == planned
            assert describe(config, checkpoint=checkpoint).loaded_bytes[precision] == planned
    # What `inspect` says of a preset, for which there is no file.
    taken = runner_of(folders[precision], precision).weight_bytes
    assert taken == describe(config).loaded_bytes[precision]


@pytest.mark.parametrize("bits", [8, 4])
def test_one_scale_a_row_and_wide_scales_are_planned_too(bits: int, tmp_path: Path) -> None:
    """Of one matrix only: what lies beside it in the same panels takes its group, or with int4 makes it bfloat16."""
    how = Quantization(bits, None)
    for name, scales in (("bf16", bf16_scales(64, 1) / 100), ("wide", bf16_scales(64, 1).float() / 100)):
        for matrix in ("self_attn.o_proj.weight", "self_attn.q_proj.weight"):
            values = integers((64, 64)) if bits == 8 else integers((64, 64)) % 8
            tensors = random_tensors() | stored(LAYER + matrix, values, scales, how)
            del tensors[LAYER + matrix]
            folder = write_stored(tmp_path / f"{name}-{matrix}", TOY, tensors, quantization_config=how.to_dict(()))
            checkpoint = open_checkpoint(folder)
            for precision in loadable_precisions(checkpoint):
                assert runner_of(folder, precision).weight_bytes == planned_weight_bytes(checkpoint, precision)


def test_int4_keeps_what_a_quantised_checkpoint_keeps_in_floats(tmp_path: Path) -> None:
    how = Quantization(4, 32)
    down = f"{LAYER}mlp.post_expert_proj.weight"
    tensors = random_tensors() | stored(down, integers((64, 32)) % 8, bf16_scales(64, 1) / 100, how)
    del tensors[down]
    checkpoint = open_checkpoint(write_stored(tmp_path / "one", TOY, tensors, quantization_config=how.to_dict(())))
    assert default_precision(checkpoint) == "int4"
    four, sixteen = (planned_weight_bytes(checkpoint, precision) for precision in ("int4", "bf16"))
    assert sixteen - four == 2 * 64 * 32 - 4 * 320  # four panels of 256 bytes and 32 of scales, filled up to 64


def test_what_is_stored_in_eight_bits_is_not_rounded_again(folders: dict[Precision, Path]) -> None:
    with pytest.raises(ConfigError, match=r"precision is int4, but .*int8 is stored in 8 bits"):
        runner_of(folders["int8"], "int4")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_model_that_does_not_fit_is_refused_with_the_numbers_before_it_is_read(
    config: ModelConfig, folders: dict[Precision, Path], precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint(folders[precision])
    weights = planned_weight_bytes(checkpoint, precision)
    full, sliding = engine_native.page_bytes(config, precision)
    needed = weights + weights // 50 + max(3 * full + 5 * sliding, largest_tensor_bytes(checkpoint))

    def load(available: int) -> int:
        """How often progress was told of."""
        told = []
        monkeypatch.setattr(engine_native, "available_memory_bytes", lambda: available)
        try:
            NativeRunner(
                checkpoint,
                precision=precision,
                num_full_pages=3,
                num_sliding_pages=5,
                num_threads=1,
                progress=lambda done, all_bytes: told.append((done, all_bytes)),
            )
        except NotEnoughMemory:
            assert not told
            raise
        return len(told)

    assert load(needed) > 0
    with pytest.raises(
        NotEnoughMemory, match=r"does not fit: in .* weights take .* GiB, a step .*; .* GiB of"
    ) as refusal:
        load(needed - 1)
    assert refusal.value.code == "not_enough_memory"
    assert f"weights take {weights / 2**30:,.2f} GiB" in refusal.value.message


def test_the_largest_tensor_is_counted_as_it_is_stored(tmp_path: Path) -> None:
    """Of the toy that is the embedding of two-frame patches, 32 of 1176; with that left out the text's embedding."""
    text_only = ModelConfig.from_dict({**TOY.to_dict(), "vision_config": None})
    for config, largest in ((TOY, 32 * 1176), (text_only, 320 * 64)):
        save_checkpoint(tmp_path / "float32", config, random_tensors(config))
        quantize_checkpoint(tmp_path / "float32", tmp_path / "int4", bits=4)
        assert largest_tensor_bytes(open_checkpoint(tmp_path / "float32")) == 4 * largest
        assert largest_tensor_bytes(open_checkpoint(tmp_path / "int4")) == 2 * largest


def test_unfused_experts_are_one_tensor(tmp_path: Path) -> None:
    """Experts are quantised one by one, but one layer's are read together."""
    experts = toy_config(num_local_experts=64, moe_hidden_size=64, moe_intermediate_size=64)
    save_checkpoint(tmp_path / "float32", experts, random_tensors(experts))
    quantize_checkpoint(tmp_path / "float32", tmp_path / "int4", bits=4)
    assert largest_tensor_bytes(open_checkpoint(tmp_path / "int4")) == 64 * 2 * 64 * 64 // 2
