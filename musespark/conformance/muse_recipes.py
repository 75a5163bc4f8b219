"""The checkpoints and prompts for muse_spark and muse_glimmer. What is odd about a number is there to be noticed."""

from __future__ import annotations

from typing import Any

from musespark.chat.tokenizer import SPECIAL_TOKENS
from musespark.conformance.recipes import VOCAB_SIZE, LogitCase, Picture, Recipe

TOKENS = {name: i for i, name in enumerate(SPECIAL_TOKENS)}
_IDS = {
    "vocab_size": VOCAB_SIZE,
    "bos_token_id": TOKENS["<|begin_of_text|>"],
    "eos_token_id": TOKENS["<|end_of_text|>"],
    "pad_token_id": TOKENS["<|finetune_right_pad|>"],
}


# Longer than any prompt of the checkpoint, so that only the cases made for it know of the window.
_NO_WINDOW = {"sliding_window": 256}


def _text(**fields: Any) -> dict[str, Any]:
    """Nine query heads on three key-value heads, so that no head count is a power of two."""
    return {
        **_IDS,
        "hidden_size": 36,
        "intermediate_size": 20,
        "num_hidden_layers": 5,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 6,
        "max_position_embeddings": 512,
        "sliding_window": 5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
        "qk_scale_factor": 3.5,
        "output_multiplier": 0.4,
        "final_logit_softcapping": 5.0,
        **fields,
    }


def _vision(**fields: Any) -> dict[str, Any]:
    """A position table and windows of 8 patches: what the published tower does from 33 patches on, this does from 9."""
    return {
        "hidden_size": 24,
        "intermediate_size": 28,
        "num_hidden_layers": 5,
        "num_attention_heads": 3,
        "pos_emb_height": 8,
        "pos_emb_width": 8,
        **fields,
    }


def _spark(text: dict[str, Any], **vision: Any) -> dict[str, Any]:
    experts = {
        "routed_scaling_factor": 1.0,
        "residual_gate_temperature": 0.3,
        "moe_hidden_size": 12,  # twice the experts' width, so that a transposed gate_up_proj has the same shape
        "moe_intermediate_size": 6,
        "num_local_experts": 7,
        "num_experts_per_tok": 3,
    }
    return {
        "model_type": "muse_spark",
        "text_config": experts | text,
        "vision_config": _vision(**vision),
        "projector_hidden_size": 20,
        "image_token_id": TOKENS["<|patch|>"],
    }


def _glimmer(text: dict[str, Any], **vision: Any) -> dict[str, Any]:
    return {
        "model_type": "muse_glimmer",
        "text_config": text,
        "vision_config": _vision(**vision),
        "projector_hidden_size": 20,
        "image_token_id": TOKENS["<|patch|>"],
    }


# What both families do alike.
_ATTENTION = (
    "full-layers-counted-from-the-first",
    "rope-on-full-layers",
    "rope-of-neighbours",
    "rope-theta-of-the-class",
    "qk-scale-instead-of-head-scale",
    "no-qk-norm",
    "no-output-gate",
    "kv-heads-interleaved",
)
_HEAD = ("no-embedding-norm", "final-norm-centred", "no-soft-cap", "no-output-multiplier")
_TOWER = (
    "patches-channel-last",
    "one-frame-instead-of-two",
    "rows-before-columns",
    "cells-patch-major",
    "tanh-gelu",
    "no-perception-norm",
)
_PAST_THE_TABLE = ("position-table-clamped", "windows-ignored", "last-vision-layer-windowed")

_WINDOW = LogitCase(
    "window",
    "a sequence of two windows and a bit: the first keys leave the window one by one",
    (12,),
    ("window-one-too-long", "window-one-too-short", "no-window"),
)
_WIDE = ("image-wide", "a picture of 4 x 8 patches, which is not square", (6, Picture(4, 8), 6))
_LARGE = LogitCase(
    "image-large",
    "a picture of 20 x 10 patches, larger than the position table and than a window of attention",
    (3, Picture(20, 10), 4),
    _PAST_THE_TABLE,
    positions=tuple(range(-8, 0)),
)
_TWO = LogitCase(
    "two-images",
    "two pictures in one prompt, of 6 x 2 and 2 x 4 patches, with text between",
    (3, Picture(6, 2), 2, Picture(2, 4), 5),
    ("images-see-each-other", "images-swapped"),
)
_PAGES = LogitCase(
    "pages",
    "a window of 70 tokens over 150: neither is a multiple of a cache's page",
    (150,),
    ("window-one-too-long", "window-one-too-short"),
    positions=(0, 63, 64, 69, 70, 71, 127, 128, 139, 140, 141, 149),
)

MUSE_SPARK = (
    Recipe(
        "muse_spark.attention",
        "muse_spark",
        _spark(_text(mlp_layer_types=["dense"] * 5)),
        (
            _WINDOW,
            LogitCase(
                "layers",
                "every fourth layer from the last is full and without rotary embedding; dense layers only",
                (24,),
                (*_ATTENTION, "no-norm-of-output-heads"),
            ),
        ),
    ),
    Recipe(
        "muse_spark.experts",
        "muse_spark",
        _spark(_text(num_hidden_layers=3, **_NO_WINDOW)),
        (
            LogitCase(
                "experts",
                "seven experts of which three answer, in a latent space",
                (30,),
                (
                    "correction-bias-in-the-weights",
                    "correction-bias-ignored",
                    "router-without-output-multiplier",
                    "router-reads-softmax",
                    "expert-norm-after-the-weight",
                    "up-before-gate",
                    "experts-transposed",
                    "pre-expert-norm-plain",
                ),
            ),
        ),
    ),
    Recipe(
        "muse_spark.stream",
        "muse_spark",
        _spark(
            _text(
                **_NO_WINDOW,
                num_hidden_layers=4,
                mlp_layer_types=["sparse", "dense", "dense", "sparse"],
                output_multiplier=0.9,
            )
        ),
        (
            LogitCase(
                "residual",
                "gates of the residual stream over their whole range, norms before and after each branch",
                (20,),
                (
                    "plain-residual-sum",
                    "gate-temperature-ignored",
                    "gate-not-clamped",
                    "no-norm-after-attention",
                    "norm-after-feedforward-centred",
                    "layer-norms-plain",
                ),
            ),
            LogitCase("head", "what stands before the first layer and after the last", (20,), _HEAD),
        ),
    ),
    Recipe(
        "muse_spark.vision",
        "muse_spark",
        _spark(_text(num_hidden_layers=2, **_NO_WINDOW)),
        (LogitCase(*_WIDE, (*_TOWER, "position-table-straight")), _LARGE, _TWO),
    ),
    Recipe(
        "muse_spark.pages", "muse_spark", _spark(_text(sliding_window=70, mlp_layer_types=["dense"] * 5)), (_PAGES,)
    ),
)

MUSE_GLIMMER = (
    Recipe(
        "muse_glimmer.text",
        "muse_glimmer",
        _glimmer(_text(num_attention_heads=6, num_key_value_heads=2, hidden_size=30, output_multiplier=0.9)),
        (
            _WINDOW,
            LogitCase(
                "layers",
                "dense layers with plain sums, and weights in the norms after each branch",
                (24,),
                (
                    *_ATTENTION,
                    "output-heads-normed-as-in-spark",
                    "norms-after-branches-scale-their-input",
                    "norms-after-branches-plain",
                    "layer-norms-plain",
                    "up-before-gate",
                ),
            ),
            LogitCase("head", "what stands before the first layer and after the last", (20,), _HEAD),
        ),
    ),
    Recipe(
        "muse_glimmer.vision",
        "muse_glimmer",
        _glimmer(_text(num_hidden_layers=2, **_NO_WINDOW)),
        (LogitCase(*_WIDE, (*_TOWER, "position-table-scrambled")), _LARGE, _TWO),
    ),
    Recipe("muse_glimmer.pages", "muse_glimmer", _glimmer(_text(sliding_window=70)), (_PAGES,)),
)
