"""Small random networks of muse_glimmer and llama4, and their twins in transformers."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from musespark.chat.images import PatchedImage
from musespark.model.config import ModelConfig, ModelType
from musespark.model.network import Llama4, MuseGlimmer, MuseSpark, Network
from musespark.model.network.llama4 import Llama4Router
from tests.model.files import transformers_model
from tests.model.network.builders import (
    IMAGE_TOKEN,
    VOCAB_SIZE,
    picture,
    random_config,
    random_network,
    router_margin,
)


def glimmer_config(seed: int, **text: Any) -> ModelConfig:
    """A configuration with odd head counts; sizes are those of `random_config`."""
    data = random_config(seed).to_dict()
    fields = {
        n: v for n, v in data["text_config"].items() if "moe" not in n and "expert" not in n and n != "hidden_act"
    }
    return ModelConfig.from_dict(
        {
            **{name: data[name] for name in ("image_token_id", "projector_hidden_size")},
            "model_type": "muse_glimmer",
            "text_config": fields | {"model_type": "muse_glimmer_text", **text},
            "vision_config": data["vision_config"] | {"model_type": "muse_glimmer_vision"},
        }
    )


def llama4_config(seed: int, **text: Any) -> ModelConfig:
    """Any layers without rotary embedding, with and without experts, qk norm, temperature and scaled frequencies."""
    r = np.random.default_rng(seed)
    layers, experts = int(r.integers(1, 6)), int(r.integers(1, 6))
    kv_heads = int(r.integers(1, 4))
    vision_heads, head_dim = int(r.choice([1, 3])), int(r.choice([8, 12]))
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": float(r.choice([100.0, 10_000.0]))}
    if seed % 2:
        high = float(r.choice([1.0, 4.0]))
        rope |= {"rope_type": "llama3", "factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": high}
        rope["original_max_position_embeddings"] = int(r.integers(4, 64))
    text_config = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": int(r.choice([18, 24, 40])),
        "intermediate_size": int(r.choice([10, 18])),
        "intermediate_size_mlp": int(r.choice([20, 48])),
        "num_hidden_layers": layers,
        "num_attention_heads": kv_heads * int(r.integers(1, 4)),
        "num_key_value_heads": kv_heads,
        "head_dim": int(r.choice([6, 8, 16])),
        "max_position_embeddings": 16_384,
        "num_local_experts": experts,
        "num_experts_per_tok": int(r.integers(1, experts + 1)),
        "interleave_moe_layer_step": int(r.integers(1, 4)),
        "no_rope_layers": [int(r.integers(0, 2)) for _ in range(layers)],
        "attention_chunk_size": int(r.integers(2, 12)),
        "use_qk_norm": bool(r.integers(0, 2)),
        "attn_temperature_tuning": bool(r.integers(0, 4)),
        "floor_scale": int(r.integers(2, 9)),
        "attn_scale": float(r.uniform(0.1, 0.8)),
        "rope_parameters": rope,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 5,
    }
    vision_config = {
        "hidden_size": vision_heads * head_dim,
        "intermediate_size": 4 * vision_heads * head_dim,
        "num_hidden_layers": int(r.integers(1, 4)),
        "num_attention_heads": vision_heads,
        "image_size": 14 * int(r.choice([4, 6])),
        **dict.fromkeys(("projector_input_dim", "projector_output_dim", "vision_output_dim"), 20),
    }
    return ModelConfig.from_dict(
        {
            "model_type": "llama4",
            "text_config": text_config | text,
            "vision_config": vision_config,
            "image_token_index": IMAGE_TOKEN,
        }
    )


def random_glimmer(config: ModelConfig, seed: int = 0) -> MuseGlimmer:
    network = MuseGlimmer(config).eval()
    _randomise(network, seed)
    return network


def random_llama4(config: ModelConfig, seed: int = 0) -> Llama4:
    network = Llama4(config).eval()
    _randomise(network, seed)
    return network


def family_network(family: ModelType, seed: int, **text: Any) -> Network:
    """A small random network of the family, with these fields of its text_config.

    With `num_hidden_layers` the kinds of layers are by the family's rule, unless they are given, too.
    """
    if "num_hidden_layers" in text:
        lists = ["no_rope_layers"] if family == "llama4" else ["layer_types", "layer_rope_theta"]
        text = dict.fromkeys(lists) | text
    if family == "muse_spark":
        return random_network(random_config(seed, **text), seed)
    if family == "muse_glimmer":
        return random_glimmer(glimmer_config(seed, **text), seed)
    return random_llama4(llama4_config(seed, **text), seed)


def _randomise(network: Network, seed: int) -> None:
    """Weights far from their initial values."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            std = tensor.shape[-1] ** -0.5 if tensor.dim() > 1 and "embed" not in name else 0.3
            tensor.normal_(std=std, generator=generator)
            if name.endswith("layernorm.weight") and isinstance(network, Llama4):
                tensor.add_(1.0)


def twin(network: Network, attention: str = "eager") -> PreTrainedModel:
    """The same weights in transformers, float32; every name must match."""
    with warnings.catch_warnings():
        model = transformers_model(network.config).eval()
    model.set_attn_implementation(attention)
    model.load_state_dict(network.state_dict(), strict=True)
    return model


def tile(config: ModelConfig, seed: int) -> PatchedImage:
    """A tile of noise, of the one size that the tower takes."""
    assert config.tile_vision is not None
    return picture(config.tile_vision.side, config.tile_vision.side, seed)


def tile_pixels(tiles: list[PatchedImage]) -> dict[str, torch.Tensor]:
    """The tiles as transformers takes them: (n, 3, height, width)."""
    arrays = []
    for image in tiles:
        rows, columns = image.grid
        pixels = image.patches.reshape(rows, columns, 3, 14, 14).transpose(2, 0, 3, 1, 4)
        arrays.append(torch.from_numpy(pixels.reshape(3, 14 * rows, 14 * columns).copy()))
    return {"pixel_values": torch.stack(arrays)}


def prompt_with_tiles(network: Llama4, seed: int, num_tokens: int) -> tuple[torch.Tensor, list[PatchedImage]]:
    """One row of tokens with two tiles; `num_tokens`, at least 10, counts the text. Router ties are passed over."""
    for attempt in range(seed, seed + 100_000, 1000):
        r = np.random.default_rng(attempt)
        tiles = [tile(network.config, seed), tile(network.config, seed + 1)]
        ids = r.integers(12, VOCAB_SIZE, num_tokens).tolist()
        first, second = ([IMAGE_TOKEN] * image.num_tokens for image in tiles)
        token_ids = torch.tensor([ids[:5] + first + ids[5:9] + second + ids[9:]])
        if _router_margin(network, token_ids, tiles) > 1e-5:
            return token_ids, tiles
    raise AssertionError("no prompt without a tie in a router")


def clear_ids(network: Network, num_tokens: int, seed: int) -> list[int]:
    """Tokens of text that leave no router in doubt: a tie may fall either way in two right programs."""
    for attempt in range(seed, seed + 100_000, 1000):
        ids = np.random.default_rng(attempt).integers(12, VOCAB_SIZE, num_tokens).tolist()
        margin = _router_margin(network, torch.tensor([ids]), []) if isinstance(network, Llama4) else 1.0
        if isinstance(network, MuseSpark):
            margin = router_margin(network, torch.tensor([ids]))
        if margin > 1e-5:
            return ids
    raise AssertionError("no prompt without a tie in a router")


@torch.no_grad()
def _router_margin(network: Llama4, token_ids: torch.Tensor, tiles: list[PatchedImage]) -> float:
    _, routings = network.hidden_states(token_ids, images=tiles)
    assert len(routings) == sum(isinstance(module, Llama4Router) for module in network.modules())
    margins = [1.0]
    for routing in routings:
        k = routing.indices.shape[1]
        if k < routing.logits.shape[1]:
            ranked = routing.logits.sort(dim=-1, descending=True).values
            margins.append(float((ranked[:, k - 1] - ranked[:, k]).min()))
    return min(margins)
