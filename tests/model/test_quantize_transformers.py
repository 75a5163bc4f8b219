"""transformers with compressed-tensors reads what we write, and computes what we compute."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import logging
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping

from musespark.model.checkpoint import save_checkpoint
from musespark.model.network import build_network, load_network
from musespark.model.network.calibration import TextCalibration
from musespark.model.pack_quantized import Bits
from musespark.model.presets import preset
from musespark.model.quantize import quantize_checkpoint
from tests.model.files import TRANSFORMERS_CLASSES

# docs/quantization.md tells the reader to say this once: transformers has Muse Spark's experts in one tensor and, other
# than for most models, no rule for putting it together from single experts.
register_checkpoint_conversion_mapping("muse_spark", get_checkpoint_conversion_mapping("qwen2_moe"))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", ["toy", "toy-glimmer", "toy-llama4"])
def test_transformers_computes_the_same_logits(tmp_path: Path, name: str, bits: Bits) -> None:
    config = preset(name)
    network = build_network(config)
    network.init_weights(1)
    save_checkpoint(tmp_path / "float", config, network.state_dict(), dtype="BF16")
    token_ids = np.random.default_rng(0).integers(20, config.text.vocab_size - 20, (2, 24))
    quantize_checkpoint(
        tmp_path / "float",
        tmp_path / "small",
        bits=bits,
        group_size=16,
        calibration=TextCalibration(tmp_path / "float", token_ids),
        shard_bytes=100_000,
    )
    ours = load_network(tmp_path / "small")
    if name == "toy":  # transformers expands single experts in the type of their scales, and leaves them in it
        for parameter_name, parameter in ours.named_parameters():
            if ".experts.gate_up_proj" in parameter_name or ".experts.down_proj" in parameter_name:
                parameter.data = parameter.data.bfloat16().float()
    logging.set_verbosity_error()
    _, model_class = TRANSFORMERS_CLASSES[config.model_type]
    model, loaded = model_class.from_pretrained(tmp_path / "small", dtype=torch.float32, output_loading_info=True)
    assert not loaded["unexpected_keys"]
    assert all(".audio_tower." in key for key in loaded["missing_keys"])
    for parameter in model.parameters():
        if parameter.dtype == torch.bfloat16:
            parameter.data = parameter.data.float()
    with torch.no_grad():
        expected = model(torch.from_numpy(token_ids)).logits
        found = ours.forward(torch.from_numpy(token_ids))
        original = network.forward(torch.from_numpy(token_ids))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (original - expected).abs().max() > 1e-3  # so that the quantised weights are what was loaded
