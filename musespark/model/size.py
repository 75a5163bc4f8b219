"""What a configuration costs, from its shapes alone: parameters, bytes, KV memory, and whether it fits a machine.

Nothing is allocated: the numbers are sums over `expected_tensors`, the list that the loader checks files against. They
are of weights and KV entries; activations, rounding to pages and the process itself come on top. What weights take in
memory is in weight_memory.py.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from musespark.errors import CheckpointError, ConfigError
from musespark.model.checkpoint import Checkpoint
from musespark.model.config import ModelConfig
from musespark.model.pack_quantized import Bits, Quantization
from musespark.model.quantize import default_group_size
from musespark.model.tensors import (
    Shape,
    audio_tensors,
    expected_tensors,
    expert_parts,
    is_buffer,
    is_float32,
    is_fused_experts,
    is_quantizable,
)
from musespark.model.weight_memory import Precision, loadable_precisions, planned_weight_bytes, weight_bytes_of

# The first pattern found in a tensor's name says which component it counts to.
COMPONENTS = {
    r"^(model|vision_model)\.vision_adapter\.": "vision_adapter",
    r"^(model\.vision_tower|vision_model)\.": "vision_tower",
    r"^(model\.vision_projection|multi_modal_projector)\.": "vision_projection",
    r"^model\.audio_tower\.": "audio_tower",
    r"^(language_model\.)?lm_head\.": "lm_head",
    r"\.embed_tokens\.": "embed_tokens",
    r"\.self_attn\.q_proj\.": "q_proj",
    r"\.self_attn\.k_proj\.": "k_proj",
    r"\.self_attn\.v_proj\.": "v_proj",
    r"\.self_attn\.gate_proj\.": "gate_proj",
    r"\.self_attn\.o_proj\.": "o_proj",
    r"\.mlp\.gate\.weight$|\.router\.weight$": "router",
    r"\.mlp\.pre_expert_proj\.": "pre_expert_proj",
    r"\.mlp\.post_expert_proj\.": "post_expert_proj",
    r"\.experts\.gate_up_proj$": "experts_gate_up_proj",
    r"\.experts\.down_proj$": "experts_down_proj",
    r"\.shared_expert\.": "shared_experts",
    r"\.(mlp|feed_forward)\.(gate|up|down)_proj\.": "dense_mlp",
    r"": "norms_and_gates",
}
OUTSIDE_BODY = ("embed_tokens", "lm_head", "vision_tower", "vision_adapter", "vision_projection", "audio_tower")


@dataclass(frozen=True, slots=True)
class Parameters:
    """Counts of weights. Names of models count `text_body`: the decoder without embedding and head.

    `active_*` are those that one text token is multiplied with. `total` leaves out `buffers`, the correction bias of
    the router, which is stored as well.
    """

    total: int
    buffers: int
    components: dict[str, int]
    attention: int
    experts: int
    one_expert: int
    text_body: int
    active_experts: int
    active_body: int
    active_with_lm_head: int


@dataclass(frozen=True, slots=True)
class KvCache:
    """Bytes of K and V of one sequence. Full layers grow with every token, sliding layers up to the window.

    The chunked layers of Llama 4 count as sliding ones with a window of a chunk, which is the most that they need.
    """

    bytes_per_layer_token: int
    num_full_layers: int
    num_sliding_layers: int
    sliding_window: int

    @property
    def full_bytes_per_token(self) -> int:
        return self.bytes_per_layer_token * self.num_full_layers

    @property
    def sliding_bytes_per_token(self) -> int:
        return self.bytes_per_layer_token * self.num_sliding_layers

    @property
    def largest_sliding_bytes(self) -> int:
        """What the sliding layers of one sequence take, however long it is."""
        return self.sliding_bytes_per_token * self.sliding_window

    def size_bytes(self, num_tokens: int) -> int:
        window = min(num_tokens, self.sliding_window)
        return self.full_bytes_per_token * num_tokens + self.sliding_bytes_per_token * window

    def longest_context(self, free_bytes: int) -> int:
        """The most tokens whose entries fit into `free_bytes`; 2^63 - 1 if there are no full layers to set a limit."""
        if free_bytes < self.largest_sliding_bytes + self.full_bytes_per_token * self.sliding_window:
            return max(0, free_bytes) // (self.full_bytes_per_token + self.sliding_bytes_per_token)
        if not self.full_bytes_per_token:
            return (1 << 63) - 1
        return (free_bytes - self.largest_sliding_bytes) // self.full_bytes_per_token

    def to_dict(self) -> dict[str, int]:
        return asdict(self) | {
            "full_bytes_per_token": self.full_bytes_per_token,
            "sliding_bytes_per_token": self.sliding_bytes_per_token,
            "largest_sliding_bytes": self.largest_sliding_bytes,
        }


@dataclass(frozen=True, slots=True)
class Flops:
    """Floating-point operations to compute one token, a product and a sum as two: matrix products only.

    attention: queries with keys and shares with values, for the last token of the report's context.
    """

    weights: int
    attention: int


@dataclass(frozen=True, slots=True)
class Fit:
    """Whether the weights and the KV entries of one sequence fit into a memory, at one precision."""

    precision: Precision
    weights_bytes: int
    kv_bytes: int
    fits: bool
    longest_context: int  # tokens, at most max_position_embeddings; 0 if the weights alone don't fit


@dataclass(frozen=True, slots=True)
class Report:
    """What `musespark inspect` prints.

    checkpoint_bytes counts the tensors of a whole checkpoint; loaded_bytes is what the native runner takes for them,
    without the audio tower, which is never loaded: of a checkpoint stored in that precision, or of the checkpoint that
    was given. A precision that the widths of the model, or the checkpoint, don't allow is absent. KV entries are
    float32 beside float32 weights and bf16 beside all others.
    """

    parameters: Parameters
    checkpoint_bytes: dict[Precision, int]
    loaded_bytes: dict[Precision, int]
    kv_cache: dict[Literal["float32", "bf16"], KvCache]
    flops_per_token: Flops
    context_tokens: int
    memory_bytes: int | None = None
    fits: tuple[Fit, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return asdict(self) | {"kv_cache": {name: kv.to_dict() for name, kv in self.kv_cache.items()}}


def describe(
    config: ModelConfig,
    *,
    context_tokens: int | None = None,
    memory_bytes: int | None = None,
    checkpoint: Checkpoint | None = None,
) -> Report:
    """The report on `config`; with `memory_bytes` also what fits there beside a sequence of `context_tokens`.

    checkpoint: one of `config`, whose weights are to be loaded as they are stored there.
    context_tokens is by default the longest that the model takes. Raises ConfigError if a number is out of range.
    """
    longest = config.text.max_position_embeddings
    context_tokens = longest if context_tokens is None else context_tokens
    if not 1 <= context_tokens <= longest:
        raise ConfigError(f"a context of {context_tokens:,} tokens is out of range; this model takes 1 to {longest:,}")
    if memory_bytes is not None and memory_bytes < 0:
        raise ConfigError(f"a memory of {memory_bytes:,} bytes is out of range")
    audio = {} if config.audio is None else audio_tensors(config.audio, config.text.hidden_size)
    groups = _groups(config)
    if checkpoint is None:
        loaded = {name: weight_bytes_of(config, name, group) for name, group in groups.items()}
    else:
        loaded = {name: planned_weight_bytes(checkpoint, name) for name in loadable_precisions(checkpoint)}
    parameters = _parameters(config, expected_tensors(config) | audio)
    report = Report(
        parameters=parameters,
        # The audio tower is never quantised.
        checkpoint_bytes={
            name: _stored_bytes(config, name, group) + _plain_bytes(audio, name) for name, group in groups.items()
        },
        loaded_bytes=loaded,
        kv_cache={"float32": _kv_cache(config, 4), "bf16": _kv_cache(config, 2)},
        flops_per_token=_flops(config, parameters, context_tokens),
        context_tokens=context_tokens,
    )
    if memory_bytes is None:
        return report
    fits = tuple(_fit(report, name, memory_bytes, longest) for name in report.loaded_bytes)
    return replace(report, memory_bytes=memory_bytes, fits=fits)


def _parameters(config: ModelConfig, shapes: Mapping[str, Shape]) -> Parameters:
    counts: Counter[str] = Counter(dict.fromkeys(COMPONENTS.values(), 0))
    for name, shape in shapes.items():
        component = next(component for pattern, component in COMPONENTS.items() if re.search(pattern, name))
        counts["buffers" if is_buffer(name) else component] += math.prod(shape)
    buffers = counts.pop("buffers", 0)
    text_body = sum(count for name, count in counts.items() if name not in OUTSIDE_BODY)
    experts = counts["experts_gate_up_proj"] + counts["experts_down_proj"]
    active_experts = experts // max(1, config.text.num_local_experts) * config.text.num_experts_per_tok
    active_body = text_body - experts + active_experts
    return Parameters(
        total=sum(counts.values()),
        buffers=buffers,
        components=dict(counts),
        attention=sum(counts[name] for name in ("q_proj", "k_proj", "v_proj", "gate_proj", "o_proj")),
        experts=experts,
        one_expert=3 * config.text.moe_intermediate_size * config.text.moe_hidden_size if experts else 0,
        text_body=text_body,
        active_experts=active_experts,
        active_body=active_body,
        active_with_lm_head=active_body + counts["lm_head"],
    )


def _groups(config: ModelConfig) -> dict[Precision, int | None]:
    """Each precision in which there can be a checkpoint -> the inputs that share a scale; None: it has no integers."""
    groups: dict[Precision, int | None] = {"float32": None, "bf16": None}
    quantized: tuple[tuple[Precision, Bits], ...] = (("int8", 8), ("int4", 4))
    for precision, bits in quantized:
        with contextlib.suppress(CheckpointError):  # no group divides the widths of this model
            groups[precision] = default_group_size(config, bits)
    return groups


def _stored_bytes(config: ModelConfig, precision: Precision, group_size: int | None) -> int:
    """Bytes of the tensors that `save_checkpoint` or `quantize_checkpoint` writes."""
    shapes = expected_tensors(config)
    if group_size is None:
        return _plain_bytes(shapes, precision)
    quantization = Quantization(4 if precision == "int4" else 8, group_size)
    kept = {name: shape for name, shape in shapes.items() if not is_quantizable(name)}
    packed = (_packed_bytes(name, shape, quantization) for name, shape in shapes.items() if name not in kept)
    return _plain_bytes(kept, "bf16") + sum(packed)


def _plain_bytes(shapes: Mapping[str, Shape], precision: Precision) -> int:
    return sum(
        math.prod(shape) * (4 if precision == "float32" or is_float32(name) else 2) for name, shape in shapes.items()
    )


def _packed_bytes(name: str, shape: Shape, quantization: Quantization) -> int:
    """int32 words, bfloat16 scales and one int64 shape a matrix; expert matrices are stored one by one."""
    num_experts = shape[0] if is_fused_experts(name) else 1
    parts = expert_parts(name, (1, *shape[1:])) if is_fused_experts(name) else [(name, shape)]
    num_bytes = 0
    for _, (num_rows, width) in parts:
        row_bytes = 4 * quantization.packed_width(width) + 2 * (width // quantization.inputs_per_scale(width))
        num_bytes += num_rows * row_bytes + 16
    return num_experts * num_bytes


def _kv_cache(config: ModelConfig, item_bytes: int) -> KvCache:
    text = config.text
    num_full = text.layer_types.count("full_attention")
    return KvCache(
        bytes_per_layer_token=2 * text.num_key_value_heads * text.head_dim * item_bytes,
        num_full_layers=num_full,
        num_sliding_layers=text.num_hidden_layers - num_full,
        sliding_window=text.local_span,
    )


def _flops(config: ModelConfig, parameters: Parameters, context_tokens: int) -> Flops:
    text, position = config.text, context_tokens - 1
    spans = {
        "full_attention": context_tokens,
        "sliding_attention": min(context_tokens, text.sliding_window),
        "chunked_attention": position % text.attention_chunk_size + 1 if text.attention_chunk_size else 0,
    }
    num_keys = sum(spans[kind] for kind in text.layer_types)
    return Flops(
        weights=2 * (parameters.active_with_lm_head - parameters.components["norms_and_gates"]),
        attention=4 * text.num_attention_heads * text.head_dim * num_keys,
    )


def _fit(report: Report, precision: Precision, memory_bytes: int, longest: int) -> Fit:
    weights = report.loaded_bytes[precision]
    kv_cache = report.kv_cache["float32" if precision == "float32" else "bf16"]
    kv_bytes = kv_cache.size_bytes(report.context_tokens)
    room = min(longest, kv_cache.longest_context(memory_bytes - weights))
    return Fit(precision, weights, kv_bytes, weights + kv_bytes <= memory_bytes, room)
