"""Which tensors a `llama4` checkpoint holds, and their shapes: the names of `Llama4ForConditionalGeneration`.

Fused experts are stored for x @ W, that is (E, in, out), gate columns before up columns; every other matrix is
(out, in). The q and k norms have no weight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from musespark.model.config import ModelConfig, TextConfig, TileVisionConfig

Shape = tuple[int, ...]


def llama4_tensors(config: ModelConfig) -> dict[str, Shape]:
    """Name -> shape of every tensor."""
    text = config.text
    prefix = "language_model.model."
    tensors: dict[str, Shape] = {f"{prefix}embed_tokens.weight": (text.vocab_size, text.hidden_size)}
    for layer in range(text.num_hidden_layers):
        tensors |= {f"{prefix}layers.{layer}.{name}": shape for name, shape in _decoder_layer(text, layer).items()}
    tensors[f"{prefix}norm.weight"] = (text.hidden_size,)
    tensors["language_model.lm_head.weight"] = (text.vocab_size, text.hidden_size)
    if config.tile_vision is not None:
        wide = config.projector_hidden_size
        tensors |= {f"vision_model.{name}": shape for name, shape in _vision(config.tile_vision, wide).items()}
        tensors["multi_modal_projector.linear_1.weight"] = (text.hidden_size, wide)
    return tensors


def with_bias(name: str, out: int, *width: int) -> dict[str, Shape]:
    """A Linear (out, in), or a LayerNorm (out,), with its bias (out,)."""
    return {f"{name}.weight": (out, *width), f"{name}.bias": (out,)}


def _decoder_layer(text: TextConfig, layer: int) -> dict[str, Shape]:
    d, heads, kv = text.hidden_size, text.num_attention_heads * text.head_dim, text.num_key_value_heads * text.head_dim
    tensors: dict[str, Shape] = {
        "input_layernorm.weight": (d,),
        "self_attn.q_proj.weight": (heads, d),
        "self_attn.k_proj.weight": (kv, d),
        "self_attn.v_proj.weight": (kv, d),
        "self_attn.o_proj.weight": (d, heads),
        "post_attention_layernorm.weight": (d,),
    }
    if text.mlp_layer_types[layer] == "dense":
        return tensors | _swiglu("feed_forward.", d, text.intermediate_size)
    experts, wide = text.num_local_experts, text.moe_intermediate_size
    return tensors | {
        "feed_forward.router.weight": (experts, d),
        "feed_forward.experts.gate_up_proj": (experts, d, 2 * wide),
        "feed_forward.experts.down_proj": (experts, wide, d),
        **_swiglu("feed_forward.shared_expert.", d, wide),
    }


def _swiglu(prefix: str, d: int, wide: int) -> dict[str, Shape]:
    return {
        f"{prefix}gate_proj.weight": (wide, d),
        f"{prefix}up_proj.weight": (wide, d),
        f"{prefix}down_proj.weight": (d, wide),
    }


def _vision(vision: TileVisionConfig, adapter_width: int) -> dict[str, Shape]:
    d, wide = vision.hidden_size, vision.intermediate_size
    tensors: dict[str, Shape] = {
        "class_embedding": (d,),
        "positional_embedding_vlm": (vision.side**2 + 1, d),
        "patch_embedding.linear.weight": (d, 3 * vision.patch_size**2),
        **with_bias("layernorm_pre", d),
        **with_bias("layernorm_post", d),
    }
    for layer in range(vision.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        tensors |= with_bias(f"{prefix}input_layernorm", d) | with_bias(f"{prefix}post_attention_layernorm", d)
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            tensors |= with_bias(f"{prefix}self_attn.{name}", d, d)
        tensors |= with_bias(f"{prefix}mlp.fc1", wide, d) | with_bias(f"{prefix}mlp.fc2", d, wide)
    tensors["vision_adapter.mlp.fc1.weight"] = (adapter_width, wide)
    tensors["vision_adapter.mlp.fc2.weight"] = (adapter_width, adapter_width)
    return tensors
