"""Small random networks and pictures, and their twins in transformers."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import MuseSparkConfig, MuseSparkForConditionalGeneration

from musespark.chat.images import PatchedImage
from musespark.model.config import ModelConfig
from musespark.model.network import MuseSpark
from musespark.model.network.moe import Router

VOCAB_SIZE = 97
IMAGE_TOKEN = 10


def random_config(
    seed: int, *, layers: int | None = None, sliding_window: int | None = None, **text: Any
) -> ModelConfig:
    """A configuration with odd head counts, any number of experts, dense layers among sparse ones."""
    r = np.random.default_rng(seed)
    layers = layers or int(r.integers(1, 6))
    experts = int(r.integers(1, 8))
    kv_heads = int(r.integers(1, 4))
    heads = kv_heads * int(r.integers(1, 4))
    vision_heads = int(r.choice([1, 3]))
    text_config = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": heads * int(r.choice([9, 12, 20])),  # transformers wants a multiple of the heads
        "intermediate_size": int(r.choice([20, 48])),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": int(r.choice([6, 8, 16])),
        "max_position_embeddings": 512,
        "sliding_window": sliding_window or int(r.integers(2, 12)),
        "rope_parameters": {"rope_type": "default", "rope_theta": float(r.choice([100.0, 10_000.0]))},
        "qk_scale_factor": float(r.uniform(1, 6)),
        "output_multiplier": float(r.uniform(0.2, 1.0)),
        "final_logit_softcapping": float(r.choice([5.0, 20.0])),
        "routed_scaling_factor": float(r.choice([1.0, 2.5])),
        "residual_gate_temperature": float(r.choice([0.3, 1.0])),
        "moe_hidden_size": int(r.choice([12, 16])),
        "moe_intermediate_size": int(r.choice([10, 18])),
        "num_local_experts": experts,
        "num_experts_per_tok": int(r.integers(1, experts + 1)),
        "mlp_layer_types": [str(r.choice(["sparse", "sparse", "dense"])) for _ in range(layers)],
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 5,
    }
    vision_config = {
        "hidden_size": vision_heads * int(r.choice([8, 12])),
        "intermediate_size": 28,
        "num_hidden_layers": int(r.integers(1, 6)),
        "num_attention_heads": vision_heads,
        "pos_emb_height": 8,  # windows and the border of the position table matter from 9 patches on
        "pos_emb_width": 8,
    }
    data = {
        "model_type": "muse_spark",
        "text_config": text_config | text,
        "vision_config": vision_config,
        "projector_hidden_size": 20,
        "image_token_id": IMAGE_TOKEN,
    }
    return ModelConfig.from_dict(data)


def random_network(config: ModelConfig, seed: int = 0) -> MuseSpark:
    """Weights far from their initial values: norms, gates, biases and the correction bias all take part."""
    network = MuseSpark(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            std = tensor.shape[-1] ** -0.5 if tensor.dim() > 1 and "embed" not in name else 0.3
            tensor.normal_(std=std, generator=generator)
    return network


def twin(network: MuseSpark, attention: str = "eager") -> MuseSparkForConditionalGeneration:
    """The same weights in transformers, float32. Every name must match, the audio tower's apart."""
    config = MuseSparkConfig(**network.config.to_dict())
    config._attn_implementation = attention
    config.text_config._attn_implementation = config.vision_config._attn_implementation = attention
    config.text_config._experts_implementation = "eager"  # the grouped one takes only widths of 16 bytes
    with warnings.catch_warnings():
        model = MuseSparkForConditionalGeneration(config).eval()
    loaded = model.load_state_dict(network.state_dict(), strict=False)
    assert not loaded.unexpected_keys
    assert all(name.startswith("model.audio_tower.") for name in loaded.missing_keys), loaded.missing_keys
    return model


def picture(rows: int, columns: int, seed: int = 0) -> PatchedImage:
    """An image of noise, rows × columns patches."""
    patches = np.random.default_rng([seed, rows, columns]).uniform(-1, 1, (rows * columns, 588)).astype(np.float32)
    return PatchedImage(patches, (rows, columns), digest=f"{rows} {columns} {seed}".encode())


@torch.no_grad()
def router_margin(network: MuseSpark, token_ids: torch.Tensor, images: Sequence[PatchedImage] = ()) -> float:
    """The smallest distance, over tokens and layers, between the last expert chosen and the first one not chosen.

    Below float rounding, two right programs may choose differently, and comparing their logits says nothing.
    """
    _, routings = network.hidden_states(token_ids, images=images)
    routers = [module for module in network.modules() if isinstance(module, Router)]
    margins = [1.0]
    for router, routing in zip(routers, routings, strict=True):
        k = routing.indices.shape[1]
        if k < routing.logits.shape[1]:
            ranked = (routing.logits.sigmoid() + router.e_score_correction_bias).sort(dim=-1, descending=True).values
            margins.append(float((ranked[:, k - 1] - ranked[:, k]).min()))
    return min(margins)


def prompt_with_images(network: MuseSpark, seed: int, num_tokens: int) -> tuple[torch.Tensor, list[PatchedImage]]:
    """One row of tokens with two images of different, mostly not square grids, one larger than the position table.

    `num_tokens` counts the text, at least 10. Prompts that leave a router in doubt are passed over.
    """
    for attempt in range(seed, seed + 100_000, 1000):
        r = np.random.default_rng(attempt)
        small = picture(2 * int(r.integers(1, 4)), 2 * int(r.integers(1, 4)), seed)
        large = picture(2 * int(r.integers(5, 9)), 2 * int(r.integers(1, 9)), seed + 1)
        images = [small, large] if seed % 2 else [large, small]
        ids = r.integers(12, VOCAB_SIZE, num_tokens).tolist()
        first, second = ([IMAGE_TOKEN] * image.num_tokens for image in images)
        token_ids = torch.tensor([ids[:5] + first + ids[5:9] + second + ids[9:]])
        if router_margin(network, token_ids, images) > 1e-5:
            return token_ids, images
    raise AssertionError("no prompt without a tie in a router")


def pixel_inputs(images: list[PatchedImage]) -> dict[str, torch.Tensor]:
    """The images as transformers takes them: the frame twice, and (frames, rows, columns) per image."""
    return {
        "pixel_values": torch.cat([torch.from_numpy(image.patches).repeat(1, 2) for image in images]),
        "image_grid_thw": torch.tensor([[1, *image.grid] for image in images]),
    }
