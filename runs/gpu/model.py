"""The model that is measured, the bytes that a decoding step of it must read, and its twin in transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from musespark.engine.torch_runner.weights import dtype_of
from musespark.model.config import ModelConfig
from musespark.model.network import Network
from musespark.model.tensors import expected_tensors, is_fused_experts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHARED: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 5}
ROPE = {"rope_type": "default", "rope_theta": 500_000.0}

MODELS: dict[str, dict[str, Any]] = {
    "M": {  # as in benchmarks/models.py, which needs a peer's tools to import
        "model_type": "llama4",
        "image_token_index": 10,
        "text_config": {
            **SHARED,
            "vocab_size": 32_064,
            "hidden_size": 2048,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "intermediate_size": 1536,
            "max_position_embeddings": 131_072,
            "rope_parameters": ROPE,
        },
    },
    "tiny": {
        "model_type": "llama4",
        "image_token_index": 10,
        "text_config": {
            **SHARED,
            "vocab_size": 320,
            "hidden_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "intermediate_size": 48,
            "intermediate_size_mlp": 96,
            "num_local_experts": 4,
            "max_position_embeddings": 4096,
            "attention_chunk_size": 512,
            "rope_parameters": ROPE,
        },
    },
}


def bytes_of_step(config: ModelConfig, dtype: torch.dtype, batch: int, context: int) -> float:
    """Bytes that a decoding step of `batch` sequences of `context` tokens reads: weights once, keys and values once.

    Of the experts as many as `batch` tokens hit on average if each is as likely; of the embeddings none to speak of.
    """
    text = config.text
    hit = 1.0
    if text.num_local_experts:
        hit = 1 - (1 - text.num_experts_per_tok / text.num_local_experts) ** batch
    total = 0.0
    for name, shape in expected_tensors(config).items():
        if "embed_tokens" in name or "vision" in name or "projector" in name:
            continue
        num_values = 1
        for size in shape:
            num_values *= size
        total += num_values * dtype_of(name, shape, dtype).itemsize * (hit if is_fused_experts(name) else 1.0)
    kept = sum(
        context if kind == "full_attention" else min(context, text.local_span) for kind in text.layer_types
    )  # keys, over all layers
    return total + batch * kept * 2 * text.num_key_value_heads * text.head_dim * dtype.itemsize


def transformers_twin(
    config: ModelConfig, dtype: torch.dtype, device: torch.device, network: Network | None = None
) -> PreTrainedModel:
    """The same shape as transformers computes it, with the weights of `network` if given, else its own."""
    from transformers import Llama4ForCausalLM, Llama4TextConfig

    text = Llama4TextConfig(**config.to_dict()["text_config"])
    text._attn_implementation = "sdpa"
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            twin = Llama4ForCausalLM(text).eval()
    finally:
        torch.set_default_dtype(before)
    if network is not None:
        weights = {}
        for name, tensor in network.state_dict().items():
            is_across = ".feed_forward.experts." in name  # ours are (E, out, in)
            weights[name.removeprefix("language_model.")] = tensor.transpose(1, 2) if is_across else tensor
        twin.load_state_dict(weights, strict=True)
    return twin
