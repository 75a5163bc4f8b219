"""What llama.cpp calls the parts of our families, and which of our configurations it can run at all.

llama.cpp knows `llama4` and `muse-glimmer`. Much of both is fixed in its source, not read from the file (chunk and
temperature of Llama 4, the eps of Glimmer's post-norms), so a configuration that says otherwise is refused: the file
would load and speak nonsense. Source: `src/models/llama4.cpp` and `muse-glimmer.cpp` of the llama.cpp that
llama-cpp-python 0.3.36 brings.

Layouts that differ from ours: fused experts are (E, in, out) here and two tensors (E, out, in) there; Glimmer's q and k
pair head_dim halves here and neighbours there, norms hold `weight - 1` here and `weight` there, and `qk_scale_factor`
becomes the weight of a q norm. Llama 4's q and k pair neighbours in both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from musespark.errors import ConfigError
from musespark.model.config import ModelConfig, RopeScaling, TextConfig
from musespark.model.tensor_file import RawTensor
from musespark.model.tensors import Shape
from musespark.model.weights import Plain, Weight

if TYPE_CHECKING:
    from gguf import GGUFWriter

    from musespark.model.checkpoint import Checkpoint

ARCHITECTURES = {"llama4": "llama4", "muse_glimmer": "muse-glimmer"}

# What llama.cpp takes for granted of Llama 4.
CHUNK_SIZE = FLOOR_SCALE = 8192
ATTN_SCALE = 0.1
NO_ROPE_INTERVAL = 4
EXPERTS_WITHOUT_QK_NORM = 128  # how it knows Maverick
# And of Muse Glimmer.
POST_NORM_EPS = 1e-8

PIECE_VALUES = 1 << 22  # values converted at once; a few MB in float32


@dataclass(frozen=True, slots=True)
class Target:
    """One tensor of the file. pieces() gives its values in order, cut into matrices (rows, in) or one vector.

    kind: a "matrix" takes the type that was asked for, an "embedding" that or a wider one, "small" stays float32.
    """

    name: str
    shape: Shape
    kind: str
    pieces: Callable[[], Iterator[Weight]]


def refuse_unknown(config: ModelConfig) -> None:
    """Raises ConfigError naming every field of `config` that llama.cpp can't honour, or its family."""
    if config.model_type not in ARCHITECTURES:
        raise ConfigError(
            f"llama.cpp doesn't know {config.model_type}, so there is no GGUF of it; "
            f"it knows {' and '.join(ARCHITECTURES)}"
        )
    problems = list(_llama4_problems(config.text) if config.model_type == "llama4" else _glimmer_problems(config.text))
    if problems:
        raise ConfigError(f"llama.cpp can't run this {config.model_type}: {'; '.join(problems)}")


def write_metadata(writer: GGUFWriter, config: ModelConfig) -> None:
    """The numbers of the architecture, under llama.cpp's names."""
    text = config.text
    writer.add_block_count(text.num_hidden_layers)
    writer.add_context_length(text.max_position_embeddings)
    writer.add_embedding_length(text.hidden_size)
    writer.add_feed_forward_length(text.intermediate_size)
    writer.add_head_count(text.num_attention_heads)
    writer.add_head_count_kv(text.num_key_value_heads)
    writer.add_key_length(text.head_dim)
    writer.add_value_length(text.head_dim)
    writer.add_rope_dimension_count(text.head_dim)
    writer.add_rope_freq_base(text.rope_theta)
    writer.add_layer_norm_rms_eps(text.rms_norm_eps)
    writer.add_vocab_size(text.vocab_size)
    if config.model_type == "llama4":
        writer.add_expert_count(text.num_local_experts)
        writer.add_expert_used_count(text.num_experts_per_tok)
        writer.add_expert_feed_forward_length(text.moe_intermediate_size)
        writer.add_interleave_moe_layer_step(_moe_step(text) or 0)
    else:
        writer.add_sliding_window(text.sliding_window)
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in text.layer_types])
        writer.add_final_logit_softcapping(text.final_logit_softcapping)
        writer.add_logit_scale(text.output_multiplier)


def targets(checkpoint: Checkpoint) -> list[Target]:
    """Every tensor of the text model, in the order of the file. The image tower is a file of its own in llama.cpp."""
    config = checkpoint.config
    text, is_llama4 = config.text, config.model_type == "llama4"
    prefix = "language_model." if is_llama4 else ""
    body = "language_model.model." if is_llama4 else "model.language_model."
    wide = _Source(checkpoint)
    found = [
        wide.matrix("token_embd.weight", f"{body}embed_tokens.weight", kind="embedding"),
        wide.matrix("output.weight", f"{prefix}lm_head.weight"),
        wide.vector("output_norm.weight", f"{body}norm.weight"),
    ]
    if text.rope_scaling is not None:
        found.append(_values("rope_freqs.weight", rope_factors(text, text.rope_scaling)))
    for layer in range(text.num_hidden_layers):
        names = f"{body}layers.{layer}.", f"blk.{layer}."
        found += _llama4_layer(wide, text, layer, *names) if is_llama4 else _glimmer_layer(wide, text, *names)
    return found


def rope_factors(text: TextConfig, scaling: RopeScaling) -> np.ndarray:
    """What llama.cpp divides each pair's angle by, float32 (head_dim / 2,); see `RopeScaling`."""
    frequencies = text.rope_theta ** -(np.arange(0, text.head_dim, 2) / text.head_dim)
    turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    fast = (turns >= low).astype(float) if low == high else np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - fast) / scaling.factor + fast)).astype(np.float32)


def _llama4_layer(wide: _Source, text: TextConfig, layer: int, ours: str, theirs: str) -> list[Target]:
    found = [
        wide.vector(f"{theirs}attn_norm.weight", f"{ours}input_layernorm.weight"),
        wide.vector(f"{theirs}ffn_norm.weight", f"{ours}post_attention_layernorm.weight"),
        *(wide.matrix(f"{theirs}attn_{x}.weight", f"{ours}self_attn.{x}_proj.weight") for x in "qkv"),
        wide.matrix(f"{theirs}attn_output.weight", f"{ours}self_attn.o_proj.weight"),
    ]
    mlp = f"{ours}feed_forward."
    if text.mlp_layer_types[layer] == "dense":
        return found + wide.swiglu(theirs, mlp)
    width = text.moe_intermediate_size
    return [
        *found,
        wide.vector(f"{theirs}ffn_gate_inp.weight", f"{mlp}router.weight"),
        wide.experts(f"{theirs}ffn_gate_exps.weight", f"{mlp}experts.gate_up_proj", 0, width),
        wide.experts(f"{theirs}ffn_up_exps.weight", f"{mlp}experts.gate_up_proj", width, 2 * width),
        wide.experts(f"{theirs}ffn_down_exps.weight", f"{mlp}experts.down_proj", 0, text.hidden_size),
        *wide.swiglu(theirs, f"{mlp}shared_expert.", "_shexp"),
    ]


def _glimmer_layer(wide: _Source, text: TextConfig, ours: str, theirs: str) -> list[Target]:
    norms = {
        "attn_norm": "input_layernorm",
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    }
    attention = f"{ours}self_attn."
    return [
        *(wide.vector(f"{theirs}{name}.weight", f"{ours}{norms[name]}.weight", plus=1.0) for name in norms),
        wide.matrix(f"{theirs}attn_q.weight", f"{attention}q_proj.weight", head_dim=text.head_dim),
        wide.matrix(f"{theirs}attn_k.weight", f"{attention}k_proj.weight", head_dim=text.head_dim),
        wide.matrix(f"{theirs}attn_v.weight", f"{attention}v_proj.weight"),
        wide.matrix(f"{theirs}attn_gate.weight", f"{attention}gate_proj.weight"),
        wide.matrix(f"{theirs}attn_output.weight", f"{attention}o_proj.weight"),
        _values(f"{theirs}attn_q_norm.weight", np.full(text.head_dim, text.qk_scale_factor, np.float32)),
        _values(f"{theirs}attn_k_norm.weight", np.ones(text.head_dim, np.float32)),
        *wide.swiglu(theirs, f"{ours}mlp."),
    ]


class _Source:
    """Makes targets out of a checkpoint's tensors. Nothing is read before a target's pieces are."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def matrix(self, name: str, ours: str, *, kind: str = "matrix", head_dim: int | None = None) -> Target:
        """A matrix as it is, or with `head_dim`, each head's rows reordered from halves to neighbours."""
        pieces = partial(self._cut, ours) if head_dim is None else partial(self._interleaved, ours, head_dim)
        return Target(name, self._checkpoint.shape(ours), kind, pieces)

    def vector(self, name: str, ours: str, *, plus: float = 0.0) -> Target:
        """A norm, or the router: float32 in every file."""

        def pieces() -> Iterator[Weight]:
            values = self._checkpoint.weight(ours).float32()
            yield _plain(values + np.float32(plus) if plus else values)

        return Target(name, self._checkpoint.shape(ours), "small", pieces)

    def experts(self, name: str, ours: str, start: int, stop: int) -> Target:
        """Rows [start, stop) of every expert: (E, stop - start, in)."""
        num_experts, width, _ = self._checkpoint.shape(ours)  # stored (E, in, out)
        cut = partial(self._expert_rows, ours, num_experts, start, stop)
        return Target(name, (num_experts, stop - start, width), "matrix", cut)

    def swiglu(self, theirs: str, ours: str, suffix: str = "") -> list[Target]:
        parts = ("gate", "up", "down")
        return [self.matrix(f"{theirs}ffn_{part}{suffix}.weight", f"{ours}{part}_proj.weight") for part in parts]

    def _cut(self, ours: str) -> Iterator[Weight]:
        rows, width = self._checkpoint.shape(ours)
        weight, step = self._checkpoint.weight(ours), max(1, PIECE_VALUES // width)
        for start in range(0, rows, step):
            yield weight.rows(start, min(start + step, rows))

    def _interleaved(self, ours: str, head_dim: int) -> Iterator[Weight]:
        weight = self._checkpoint.weight(ours)
        order = np.arange(head_dim).reshape(2, -1).T.ravel()  # 0, d/2, 1, d/2 + 1, …
        for start in range(0, self._checkpoint.shape(ours)[0], head_dim):
            head = weight.rows(start, start + head_dim)
            yield head.with_arrays(*(array[order] for array in head.arrays()))

    def _expert_rows(self, ours: str, num_experts: int, start: int, stop: int) -> Iterator[Weight]:
        weight = self._checkpoint.weight(ours)
        for expert in range(num_experts):
            yield weight.expert(expert).rows(start, stop)


def _plain(values: np.ndarray) -> Plain:
    return Plain(RawTensor("F32", values.shape, values))


def _values(name: str, values: np.ndarray) -> Target:
    return Target(name, values.shape, "small", lambda: iter([_plain(values)]))


def _moe_step(text: TextConfig) -> int | None:
    """`interleave_moe_layer_step`: every so manieth layer is sparse, the first of them at step - 1. None if not so."""
    n = text.num_hidden_layers
    sparse = [i for i, kind in enumerate(text.mlp_layer_types) if kind == "sparse"]
    return next((step for step in range(1, n + 1) if sparse == list(range(step - 1, n, step))), None)


def _llama4_problems(text: TextConfig) -> Iterator[str]:
    longest = text.max_position_embeddings
    uses_rope = tuple((i + 1) % NO_ROPE_INTERVAL != 0 for i in range(text.num_hidden_layers))
    chunked = tuple("chunked_attention" if rope else "full_attention" for rope in uses_rope)
    if text.layer_uses_rope != uses_rope or text.layer_types != chunked:
        yield f"it has every {NO_ROPE_INTERVAL}th layer full and without rotary embedding, and no other"
    if "full_attention" not in text.layer_types:  # it makes an input for such layers, and fails where nothing reads it
        yield f"num_hidden_layers is {text.num_hidden_layers}, and it needs a full layer, the {NO_ROPE_INTERVAL}th"
    if text.attention_chunk_size != CHUNK_SIZE and longest > min(text.attention_chunk_size, CHUNK_SIZE):
        yield f"attention_chunk_size is {text.attention_chunk_size:,}, and it has {CHUNK_SIZE:,}"
    floor = text.floor_scale if text.attn_temperature_tuning else CHUNK_SIZE
    same = text.attn_temperature_tuning and text.floor_scale == FLOOR_SCALE and _close(text.attn_scale, ATTN_SCALE)
    if not same and longest >= min(floor, FLOOR_SCALE):  # before that, the temperature is 1 whatever is said of it
        told: dict[str, Any] = {"attn_temperature_tuning": text.attn_temperature_tuning}
        told |= {"floor_scale": text.floor_scale, "attn_scale": text.attn_scale}
        yield f"{', '.join(f'{k} {v}' for k, v in told.items())}: it has True, {FLOOR_SCALE} and {ATTN_SCALE}"
    if text.use_qk_norm == (text.num_local_experts == EXPERTS_WITHOUT_QK_NORM):
        yield (
            f"use_qk_norm is {text.use_qk_norm} with {text.num_local_experts} experts, and it norms q and k "
            f"unless there are {EXPERTS_WITHOUT_QK_NORM}"
        )
    if _moe_step(text) is None:
        yield "mlp_layer_types is not every so manieth layer"
    if text.num_shared_experts != 1:
        yield f"num_shared_experts is {text.num_shared_experts}, and it has 1"


def _glimmer_problems(text: TextConfig) -> Iterator[str]:
    if text.layer_uses_rope != tuple(kind == "sliding_attention" for kind in text.layer_types):
        yield "layer_rope_theta: it has rotary embedding on sliding layers and on no other"
    if "sliding_attention" not in text.layer_types:
        yield "layer_types has no sliding_attention, and it needs one such layer"
    if not _close(text.post_norm_eps, POST_NORM_EPS):
        yield f"post_norm_eps is {text.post_norm_eps}, and it has {POST_NORM_EPS}"


def _close(value: float, fixed: float) -> bool:
    """Equal in float32, which is all that the other side has."""
    return np.float32(value) == np.float32(fixed)
