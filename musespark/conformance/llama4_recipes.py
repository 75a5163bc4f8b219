"""The checkpoints and prompts for llama4, in the manner of Scout and of Maverick."""

from __future__ import annotations

from typing import Any

from musespark.conformance.recipes import LLAMA4_SPECIAL, VOCAB_SIZE, LogitCase, Picture, Recipe

TOKENS = {name: i for i, name in enumerate(LLAMA4_SPECIAL)}
_TILE = Picture(6, 6)
# Layers 3, 7, … are without rotary embedding: three kinds of neighbourhood, and the fourth layer sees everything.
_STEP = {
    "rope_type": "llama3",
    "factor": 16.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 1.0,
    "original_max_position_embeddings": 24,
}


def _config(vision: dict[str, Any] | None = None, **text: Any) -> dict[str, Any]:
    tower = {
        "hidden_size": 24,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "image_size": 84,
        **dict.fromkeys(("projector_input_dim", "projector_output_dim", "vision_output_dim"), 20),
    }
    return {
        "model_type": "llama4",
        "image_token_index": TOKENS["<|patch|>"],
        "vision_config": tower | (vision or {}),
        "text_config": {
            "vocab_size": VOCAB_SIZE,
            "bos_token_id": TOKENS["<|begin_of_text|>"],
            "eos_token_id": TOKENS["<|end_of_text|>"],
            "pad_token_id": TOKENS["<|finetune_right_pad|>"],
            "hidden_size": 24,
            "intermediate_size": 12,  # half of hidden_size, so that a transposed gate_up_proj has the same shape
            "intermediate_size_mlp": 20,
            "num_hidden_layers": 5,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "head_dim": 8,
            "max_position_embeddings": 16_384,
            "num_local_experts": 5,
            "num_experts_per_tok": 1,
            "interleave_moe_layer_step": 1,
            "no_rope_layer_interval": 4,
            "attention_chunk_size": 8,
            "use_qk_norm": True,
            "attn_temperature_tuning": True,
            "floor_scale": 8,
            "attn_scale": 0.5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
            **text,
        },
    }


_EXPERTS = ("score-on-the-output", "score-from-softmax", "no-shared-expert", "up-before-gate", "experts-transposed")

LLAMA4 = (
    Recipe(
        "llama4.scout",
        "llama4",
        _config(rope_parameters=_STEP | {"rope_theta": 100.0}),
        (
            LogitCase(
                "chunk",
                "two chunks of 8 tokens and two more: a query sees its own chunk, the first of a chunk only itself",
                (18,),
                ("chunk-as-window", "chunk-one-too-long", "no-chunk", "chunk-on-the-other-layers"),
            ),
            LogitCase(
                "layers",
                "Scout in small: experts in every layer, frequencies divided in a step, normed heads",
                (40,),
                (
                    "rope-flags-inverted",
                    "rope-on-full-layers",
                    "rope-of-halves",
                    "rope-scaling-ignored",
                    "rope-scaling-8-and-4",
                    "no-qk-norm",
                    "qk-norm-over-all-heads",
                    "qk-norm-on-full-layers",
                    "kv-heads-interleaved",
                    *_EXPERTS,
                ),
            ),
            LogitCase(
                "temperature",
                "queries of full layers grow at positions 7, 15, 23, …",
                (30,),
                ("no-temperature", "temperature-one-position-late", "temperature-on-every-layer"),
            ),
        ),
    ),
    Recipe(
        "llama4.maverick",
        "llama4",
        _config(
            num_hidden_layers=4,
            interleave_moe_layer_step=2,
            use_qk_norm=False,
            num_local_experts=7,
            attention_chunk_size=64,
        ),
        (
            LogitCase(
                "layers",
                "Maverick in small: dense layers of another width between sparse ones, heads not normed",
                (40,),
                ("qk-norm-forced", "no-temperature", "rope-of-halves", "score-on-the-output", "no-shared-expert"),
            ),
        ),
    ),
    Recipe(
        "llama4.early-file",
        "llama4",
        _config(num_hidden_layers=4),
        (
            LogitCase(
                "temperature",
                "attn_temperature_tuning is the integer 4 of early files, which means true",
                (30,),
                ("no-temperature",),
            ),
        ),
        as_published={"attn_temperature_tuning": 4},
    ),
    Recipe(
        "llama4.edge-8192",
        "llama4",
        _config(
            hidden_size=12,
            intermediate_size=6,
            num_hidden_layers=2,
            num_attention_heads=1,
            num_key_value_heads=1,
            no_rope_layers=[1, 0],
            attention_chunk_size=8192,
            floor_scale=8192,
            num_local_experts=1,
        ),
        (
            LogitCase(
                "edge",
                "the published chunk and temperature step at their real size, 8192",
                (8194,),
                ("no-chunk", "chunk-as-window", "no-temperature", "temperature-one-position-late"),
                positions=(8189, 8190, 8191, 8192, 8193),
            ),
        ),
    ),
    Recipe(
        "llama4.vision",
        "llama4",
        _config(num_hidden_layers=2, no_rope_layers=[1, 0], attention_chunk_size=64, attn_temperature_tuning=False),
        (
            LogitCase(
                "tile",
                "an image of one tile",
                (5, "<|image_start|>", "<|image|>", _TILE, "<|image_end|>", 6),
                (
                    "class-token-first",
                    "cells-channel-major",
                    "patches-channel-last",
                    "rows-before-columns",
                    "patches-counted-from-zero",
                    "vision-rope-of-halves",
                    "tanh-gelu",
                ),
            ),
            LogitCase(
                "tiles",
                "an image of 1 x 2 tiles with separators, and the global tile last",
                (
                    *(3, "<|image_start|>", _TILE, "<|tile_x_separator|>", _TILE, "<|tile_y_separator|>"),
                    *("<|image|>", _TILE, "<|image_end|>", 5),
                ),
                ("global-tile-first", "tiles-see-each-other"),
            ),
            LogitCase(
                "two-images",
                "two images of one tile each, with text between",
                (
                    *(3, "<|image_start|>", "<|image|>", _TILE, "<|image_end|>", 4),
                    *("<|image_start|>", "<|image|>", _TILE, "<|image_end|>", 5),
                ),
                ("images-swapped", "tiles-see-each-other"),
            ),
        ),
    ),
    Recipe(
        "llama4.pages",
        "llama4",
        _config(attention_chunk_size=70, floor_scale=64, num_local_experts=1),
        (
            LogitCase(
                "pages",
                "chunks of 70 tokens over 150: neither is a multiple of a cache's page",
                (150,),
                ("chunk-one-too-long", "chunk-as-window", "no-temperature"),
                positions=(0, 63, 64, 69, 70, 71, 127, 128, 139, 140, 141, 149),
            ),
        ),
    ),
)
