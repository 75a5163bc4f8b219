"""What the text matrices of a checkpoint read while it reads a calibration text, layer after layer."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musespark.model.checkpoint import Checkpoint
from musespark.model.network.gptq import Objective, round_by_inputs
from musespark.model.network.layers import Linear
from musespark.model.network.llama4 import Llama4Experts
from musespark.model.network.moe import Experts, Routing
from musespark.model.network.streaming import StreamedNetwork
from musespark.model.network.text import Layer
from musespark.model.pack_quantized import Quantization
from musespark.model.quantize import Rounder
from musespark.model.tensors import is_quantizable

METHOD = "GPTQ with scale search, 1"  # goes up with every change of the numbers


class TextCalibration:
    """A `model.quantize.Calibration`. Holds one layer in float32 and what its matrices read.

    The text runs through the original layers, whatever has been rounded before: so matrices may be left out, which is
    how a run that was cut short goes on.
    """

    values_at_once = 1 << 25  # 128 MiB in float32: there is a step of Python for each column of so many values

    def __init__(self, source: Checkpoint | Path, token_ids: np.ndarray) -> None:
        """token_ids (B, T) int64. Raises CheckpointError."""
        self.identity = f"{METHOD}: {token_ids.shape} {hashlib.sha256(token_ids.tobytes()).hexdigest()}"
        self._stream = StreamedNetwork(source)
        self._hidden = self._stream.embed(torch.from_numpy(token_ids))
        self._num_done = 0  # layers that the text has passed
        self._inputs: dict[str, Tensor] = {}  # module -> (n, in), of the last of these
        self._last: tuple[Tensor, Objective] | None = None

    def rounder(self, name: str, quantization: Quantization) -> Rounder:
        inputs = self._inputs_of(name.removesuffix(".weight"))
        if self._last is None or self._last[0] is not inputs:  # q, k and v read the same, and so do gate and up
            self._last = None  # so that two are never held
            self._last = inputs, Objective.of(inputs)
        group_size = quantization.inputs_per_scale(inputs.shape[1])
        return partial(round_by_inputs, objective=self._last[1], bits=quantization.bits, group_size=group_size)

    def _inputs_of(self, module: str) -> Tensor:
        network = self._stream.network
        in_layer = re.search(r"\.layers\.(\d+)\.", module)
        index = int(in_layer[1]) if in_layer else self._stream.num_layers
        while self._num_done <= index and module not in self._inputs:
            self._inputs = {}
            if self._num_done == self._stream.num_layers:
                norm = self._stream.load(network.text_model.norm)
                with torch.no_grad():
                    self._inputs = {self._stream.name(network.head): norm(self._hidden).flatten(0, 1)}
            else:
                self._pass_layer(records=self._num_done == index)
            self._num_done += 1
        return self._inputs[module]

    def _pass_layer(self, *, records: bool) -> None:
        index = self._num_done
        layer = self._stream.layer(index)
        prefix = self._stream.name(self._stream.network.text_model.layers[index])
        if records:
            with _Recording(layer, prefix) as recording:
                self._hidden = self._stream.run(layer, index, self._hidden)
            self._inputs = recording.inputs()
        else:
            self._hidden = self._stream.run(layer, index, self._hidden)


class _Recording:
    """Keeps what the matrices of a layer read while the context lasts."""

    def __init__(self, layer: Layer, prefix: str) -> None:
        self._seen: dict[str, list[Tensor]] = {}
        self._layer, self._prefix = layer, prefix

    def __enter__(self) -> _Recording:
        self._hooks = []
        for name, module in self._layer.named_modules():
            path = f"{self._prefix}.{name}"
            hook: Callable[..., None] | None = None
            if isinstance(module, Linear) and is_quantizable(f"{path}.weight"):
                hook = partial(self._linear, path)
            elif isinstance(module, Experts | Llama4Experts):
                hook = partial(self._experts, path)
            if hook is not None:
                self._hooks.append(module.register_forward_pre_hook(hook))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def inputs(self) -> dict[str, Tensor]:
        """Module -> (n, in) float32. Modules that read the same tensors share one."""
        joined: dict[tuple[int, ...], Tensor] = {}
        result = {}
        for path, tensors in self._seen.items():
            same = tuple(map(id, tensors))
            if same not in joined:
                joined[same] = torch.cat([tensor.flatten(0, -2).float() for tensor in tensors])
            result[path] = joined[same]
        return result

    def _linear(self, path: str, _: nn.Module, args: tuple[Tensor]) -> None:
        self._seen.setdefault(path, []).append(args[0])

    def _experts(self, path: str, experts: Experts | Llama4Experts, args: tuple[Tensor, Routing]) -> None:
        for e, (outer, inner) in enumerate(_expert_inputs(experts, *args)):
            for projection in ("gate_proj", "up_proj"):
                self._seen.setdefault(f"{path}.{e}.{projection}", []).append(outer)
            self._seen.setdefault(f"{path}.{e}.down_proj", []).append(inner)


def _expert_inputs(
    experts: Experts | Llama4Experts, hidden: Tensor, routing: Routing
) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each expert, what its gate and up read, (n, in), and what its down reads, (n, F)."""
    for e in range(experts.down_proj.shape[0]):
        rows, slots = torch.where(routing.indices == e)
        outer = hidden[rows].float()
        if isinstance(experts, Llama4Experts):
            outer = outer * routing.weights[rows, slots, None]
            gate, up = (outer @ experts.gate_up_proj[e]).chunk(2, dim=-1)
        else:
            gate, up = F.linear(outer, experts.gate_up_proj[e]).chunk(2, dim=-1)
        yield outer, F.silu(gate) * up
