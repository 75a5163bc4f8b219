"""Which tensors a checkpoint holds, and their shapes: one list for loader, quantiser and counts.

Names and shapes are those of the `state_dict()` of transformers' `…ForConditionalGeneration`. This file lists those of
the Muse families; Llama 4's are in `llama4_tensors.py`. Absent on purpose, because they have no weight: the q, k and o
norms, the embedding norm and the perception norm, and post_attention_layernorm of `muse_spark` (not of `muse_glimmer`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from musespark.model.llama4_tensors import Shape, llama4_tensors, with_bias

if TYPE_CHECKING:
    from musespark.model.config import AudioConfig, ModelConfig, TextConfig, VisionConfig

TEXT_PREFIX = "model.language_model."
TEXT_PREFIXES = (TEXT_PREFIX, "language_model.")  # the second is Llama 4's
VISION_PREFIXES = ("model.vision_tower.", "model.vision_adapter.", "model.vision_projection.")
AUDIO_PREFIX = "model.audio_tower."  # described for the counts; skipped at load, because audio is not run


def expected_tensors(config: ModelConfig) -> dict[str, Shape]:
    """Name -> shape of every tensor that a checkpoint of `config` must hold, without the audio tower."""
    return llama4_tensors(config) if config.model_type == "llama4" else _muse_tensors(config)


def _muse_tensors(config: ModelConfig) -> dict[str, Shape]:
    text = config.text
    tensors: dict[str, Shape] = {f"{TEXT_PREFIX}embed_tokens.weight": (text.vocab_size, text.hidden_size)}
    for layer in range(text.num_hidden_layers):
        tensors |= _decoder_layer(text, layer, gated=config.model_type == "muse_spark")
    tensors[f"{TEXT_PREFIX}norm.weight"] = (text.hidden_size,)
    tensors["lm_head.weight"] = (text.vocab_size, text.hidden_size)
    if config.vision is not None:
        tensors |= _vision(config.vision)
        wide, hidden = config.projector_hidden_size, config.vision.merged_size
        tensors["model.vision_adapter.fc1.weight"] = (wide, hidden)
        tensors["model.vision_adapter.fc2.weight"] = (wide, wide)
        tensors["model.vision_projection.weight"] = (text.hidden_size, wide)
    return tensors


def is_float32(name: str) -> bool:
    """Whether published checkpoints keep this tensor in float32: the router decides on small differences."""
    return name.endswith((".mlp.gate.weight", ".e_score_correction_bias"))


def is_buffer(name: str) -> bool:
    """Whether torch holds this tensor as a buffer, which counts of parameters leave out."""
    return name.endswith(".e_score_correction_bias")


def is_fused_experts(name: str) -> bool:
    """Whether the tensor stacks one matrix per expert, (E, out, in), or transposed."""
    return name.endswith((".experts.gate_up_proj", ".experts.down_proj"))


def is_transposed(name: str) -> bool:
    """Whether these fused experts are stored (E, in, out), as Llama 4's are; unfused ones never are."""
    return ".feed_forward.experts." in name and is_fused_experts(name)


def is_quantizable(name: str) -> bool:
    """Whether the tensor is a text Linear weight: projections, experts, lm_head; no embedding, norm, gate or router."""
    if name in ("lm_head.weight", "language_model.lm_head.weight") or is_fused_experts(name):
        return True
    return name.startswith(TEXT_PREFIXES) and name.endswith("_proj.weight")


def expert_parts(name: str, shape: Shape) -> list[tuple[str, Shape]]:
    """The unfused spelling of one fused expert tensor, in stacking order: [(name, (out, in)), ...].

    `experts.gate_up_proj` (E, 2I, H) is `experts.0.gate_proj.weight`, `experts.0.up_proj.weight`, `experts.1.…`;
    `experts.down_proj` (E, H, I) is `experts.0.down_proj.weight`, `experts.1.…`. Of transposed experts, `shape` is
    (E, in, out), and the parts are (out, in) all the same.
    """
    prefix, _, fused = name.rpartition(".")
    num_experts, out, width = shape
    if is_transposed(name):
        out, width = width, out
    projections = ("gate_proj", "up_proj") if fused == "gate_up_proj" else ("down_proj",)
    part = (out // len(projections), width)
    return [(f"{prefix}.{e}.{projection}.weight", part) for e in range(num_experts) for projection in projections]


def _decoder_layer(text: TextConfig, layer: int, *, gated: bool) -> dict[str, Shape]:
    """One layer; `gated` for muse_spark, whose residual gates replace the weight of the norm after attention."""
    d, heads, kv = text.hidden_size, text.num_attention_heads * text.head_dim, text.num_key_value_heads * text.head_dim
    tensors: dict[str, Shape] = {
        "input_layernorm.weight": (d,),
        "self_attn.q_proj.weight": (heads, d),
        "self_attn.k_proj.weight": (kv, d),
        "self_attn.v_proj.weight": (kv, d),
        "self_attn.gate_proj.weight": (heads, d),
        "self_attn.o_proj.weight": (d, heads),
        ("post_attention_residual_gate.gate" if gated else "post_attention_layernorm.weight"): (d,),
        "pre_feedforward_layernorm.weight": (d,),
    }
    if text.mlp_layer_types[layer] == "dense":
        tensors |= {
            "mlp.gate_proj.weight": (text.intermediate_size, d),
            "mlp.up_proj.weight": (text.intermediate_size, d),
            "mlp.down_proj.weight": (d, text.intermediate_size),
        }
    else:
        experts, latent, wide = text.num_local_experts, text.moe_hidden_size, text.moe_intermediate_size
        tensors |= {
            "mlp.gate.weight": (experts, d),
            "mlp.gate.e_score_correction_bias": (experts,),
            "mlp.pre_expert_proj.weight": (latent, d),
            "mlp.pre_expert_norm.weight": (latent,),
            "mlp.experts.gate_up_proj": (experts, 2 * wide, latent),
            "mlp.experts.down_proj": (experts, latent, wide),
            "mlp.experts.post_expert_norm.weight": (latent,),
            "mlp.post_expert_proj.weight": (d, latent),
        }
    tensors["post_feedforward_layernorm.weight"] = (d,)
    if gated:
        tensors["post_feedforward_residual_gate.gate"] = (d,)
    return {f"{TEXT_PREFIX}layers.{layer}.{name}": shape for name, shape in tensors.items()}


def _vision(vision: VisionConfig) -> dict[str, Shape]:
    d, wide = vision.hidden_size, vision.intermediate_size
    tensors: dict[str, Shape] = {
        "patch_embedder.patch_embedding.weight": (d, vision.patch_temporal * 3 * vision.patch_size**2),
        "patch_embedder.position_embedding_table.weight": (vision.pos_emb_height * vision.pos_emb_width, d),
        **with_bias("ln_pre", d),
        **with_bias("ln_post", d),
    }
    for layer in range(vision.num_hidden_layers):
        prefix = f"layers.{layer}."
        tensors |= with_bias(f"{prefix}norm1", d) | with_bias(f"{prefix}norm2", d)
        for name in ("q_proj", "k_proj", "v_proj", "proj"):
            tensors |= with_bias(f"{prefix}attn.{name}", d, d)
        tensors |= with_bias(f"{prefix}mlp.fc1", wide, d) | with_bias(f"{prefix}mlp.fc2", d, wide)
    return {f"model.vision_tower.{name}": shape for name, shape in tensors.items()}


def audio_tensors(audio: AudioConfig, out_hidden_size: int) -> dict[str, Shape]:
    """Name -> shape of the audio tower's tensors, for the counts."""
    tensors: dict[str, Shape] = {}
    width_in = 1  # a waveform sample
    for stage, (patch, d, depth) in enumerate(zip(audio.patch_sizes, audio.hidden_sizes, audio.depths, strict=True)):
        prefix = f"layers.{stage}."
        tensors |= with_bias(f"{prefix}patch_embedder.proj", d, patch * width_in)
        tensors[f"{prefix}patch_embedder.norm.weight"] = (d,)
        wide = int(d * audio.mlp_ratio)
        for block in range(depth):
            name = f"{prefix}conv_blocks.{block}."
            tensors |= {f"{name}conv.weight": (d, 1, audio.conv_kernel_size), f"{name}conv.bias": (d,)}
            tensors[f"{name}norm.weight"] = (d,)
            tensors |= with_bias(f"{name}mlp.fc1", wide, d) | with_bias(f"{name}mlp.fc2", d, wide)
        width_in = d
    tensors["norm.weight"] = (width_in,)
    tensors |= with_bias("proj", out_hidden_size, width_in)
    tensors["post_proj_norm.weight"] = (out_hidden_size,)
    return {f"{AUDIO_PREFIX}{name}": shape for name, shape in tensors.items()}
