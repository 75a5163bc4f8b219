"""The mistakes that the suite must find, made on purpose: each turns a right network into one that has it.

Writing a suite runs every mistake through the cases that guard against it, and refuses a case that would let it pass.
The list is what engines really got wrong, and what a reader of the formulas gets wrong first. A mistake changes one
network only: its configuration, its weights, or a method of its own modules; no class and no other network sees it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from musespark.conformance.suite import Family
from musespark.model.config import ModelConfig, TextConfig
from musespark.model.network import Network, build_network
from musespark.model.network.layers import CenteredRMSNorm
from musespark.model.network.moe import DenseMLP
from musespark.model.network.text import GroupedQueryAttention


@dataclass(frozen=True, slots=True)
class Mistake:
    """`says` ends the sentence "an engine that …"; `make` gives back the network that has it, perhaps the same one."""

    says: str
    make: Callable[[Network], Network]


Mistakes = Mapping[str, Mistake]


def all_mistakes() -> dict[Family, Mistakes]:
    from musespark.conformance import llama4_mistakes, muse_mistakes

    return {
        "muse_spark": muse_mistakes.SPARK,
        "muse_glimmer": muse_mistakes.GLIMMER,
        "llama4": llama4_mistakes.LLAMA4,
    }


def assemble(config: ModelConfig, weights: Mapping[str, Tensor]) -> Network:
    """A network of these very weights, which it owns from here on."""
    with torch.device("meta"):
        network = build_network(config)
    network.load_state_dict(weights, strict=True, assign=True)
    return network.eval()


def with_text(changes: Callable[[TextConfig], dict[str, Any]]) -> Callable[[Network], Network]:
    """The same weights under a changed text configuration."""
    return with_config(lambda config: {"text": replace(config.text, **changes(config.text))})


def with_config(changes: Callable[[ModelConfig], dict[str, Any]]) -> Callable[[Network], Network]:
    def make(network: Network) -> Network:
        return assemble(replace(network.config, **changes(network.config)), network.state_dict())

    return make


def overriding(
    kind: type[nn.Module], method: str, wrong: Callable[..., Any], name: str | tuple[str, ...] = ""
) -> Callable[[Network], Network]:
    """`wrong` in place of a method of every module of this kind whose name ends like this."""

    def make(network: Network) -> Network:
        for path, module in network.named_modules():
            if isinstance(module, kind) and path.endswith(name):
                setattr(module, method, MethodType(wrong, module))
        return network

    return make


def editing(kind: type[nn.Module], edit: Callable[[Any], None], name: str = "") -> Callable[[Network], Network]:
    """`edit` on every module of this kind whose name ends like this: its weights, or one of its numbers."""

    @torch.no_grad()
    def make(network: Network) -> Network:
        for path, module in network.named_modules():
            if isinstance(module, kind) and path.endswith(name):
                edit(module)
        return network

    return make


def on_images(change: Callable[[list[Any]], list[Any]]) -> Callable[[Network], Network]:
    """The images of a prompt, changed before they are encoded."""

    def make(network: Network) -> Network:
        right = network.encode_images
        network.encode_images = lambda images: right(change(list(images)))  # type: ignore[method-assign]
        return network

    return make


def channel_last(image: Any) -> Any:
    patches = image.patches.reshape(-1, 3, 14, 14).transpose(0, 2, 3, 1).reshape(len(image.patches), -1)
    return replace(image, patches=patches.copy())


def _interleaved(self: GroupedQueryAttention, q: Tensor, k: Tensor, v: Tensor, plan: Any) -> Tensor:
    groups = q.shape[1] // k.shape[1]
    return type(self).attend(self, q, k.repeat(1, groups, 1, 1), v.repeat(1, groups, 1, 1), plan)


def _swap_gate_and_up(mlp: DenseMLP) -> None:
    mlp.gate_proj, mlp.up_proj = mlp.up_proj, mlp.gate_proj


def add(amount: float) -> Callable[[Any], None]:
    def edit(module: Any) -> None:
        module.weight.add_(amount)

    return edit


def put(**values: Any) -> Callable[[Any], None]:
    """Set attributes of a module."""

    def edit(module: Any) -> None:
        for name, value in values.items():
            setattr(module, name, value)

    return edit


def both(*makes: Callable[[Network], Network]) -> Callable[[Network], Network]:
    def make(network: Network) -> Network:
        for one in makes:
            network = one(network)
        return network

    return make


swap_dense = editing(DenseMLP, _swap_gate_and_up)

SHARED: Mistakes = {
    "kv-heads-interleaved": Mistake(
        "lets query head h read key-value head h mod K instead of h div (H/K)",
        overriding(GroupedQueryAttention, "attend", _interleaved),
    ),
    "rope-on-full-layers": Mistake(
        "gives a rotary embedding to the layers that have none",
        with_text(lambda text: {"layer_uses_rope": (True,) * text.num_hidden_layers}),
    ),
    "patches-channel-last": Mistake(
        "flattens a patch as (y, x, channel) instead of (channel, y, x)",
        on_images(lambda images: [channel_last(image) for image in images]),
    ),
    "images-swapped": Mistake(
        "puts the features of the last image in the first image's place", on_images(lambda images: images[::-1])
    ),
}

WINDOWS: Mistakes = {
    "window-one-too-long": Mistake(
        "shows a query sliding_window keys before its own",
        with_text(lambda t: {"sliding_window": t.sliding_window + 1}),
    ),
    "window-one-too-short": Mistake(
        "shows a query sliding_window - 1 keys, its own among them",
        with_text(lambda text: {"sliding_window": text.sliding_window - 1}),
    ),
    "no-window": Mistake(
        "lets sliding layers see everything",
        with_text(lambda text: {"layer_types": ("full_attention",) * text.num_hidden_layers}),
    ),
    "qk-scale-instead-of-head-scale": Mistake(
        "multiplies by qk_scale_factor and no longer divides by the root of head_dim",
        with_text(lambda text: {"qk_scale_factor": text.qk_scale_factor * math.sqrt(text.head_dim)}),
    ),
    "layer-norms-plain": Mistake(
        "multiplies by the weight of input_layernorm and pre_feedforward_layernorm instead of 1 + weight",
        both(
            editing(CenteredRMSNorm, add(-1.0), "input_layernorm"),
            editing(CenteredRMSNorm, add(-1.0), "pre_feedforward_layernorm"),
        ),
    ),
}
