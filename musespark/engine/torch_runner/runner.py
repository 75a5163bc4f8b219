"""TorchRunner: the `Runner` of a GPU. The network is that of `model/network`; pages, experts and recording are ours.

On device "cpu" in float32 it is the same program, which is how it is tested. Letters: N rows, R of them with logits, D
hidden width, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from musespark.engine.machine_memory import available_memory_bytes
from musespark.engine.runner import PAGE_SIZE, Batch, Float32, WholeImage
from musespark.engine.torch_runner.experts import GroupedExperts, group_experts
from musespark.engine.torch_runner.graphs import Graphs
from musespark.engine.torch_runner.layout import Group, Layout, has_few_rows, plan
from musespark.engine.torch_runner.pages import COPIED_BYTES, Pages, keys_of_step
from musespark.engine.torch_runner.weights import load_weights, weight_bytes
from musespark.engine.view import Nothing, view_of_full_layers, view_of_local_layers
from musespark.errors import ConfigError, EngineFailed, NotEnoughMemory
from musespark.model.config import ModelConfig
from musespark.model.network import Network, build_network
from musespark.model.network.text import Layer
from musespark.model.weight_reader import Progress

if TYPE_CHECKING:
    from musespark.chat.images import PatchedImage
    from musespark.model.checkpoint import Checkpoint

DTYPES = {"bf16": torch.bfloat16, "float32": torch.float32}
MOST_RECORDED_ROWS = 256  # of a decode; beyond it the kernels are long enough
WORKSPACE_BYTES = 1 << 30  # on a GPU beside weights and pages: activations, copies of pages, torch's own
GROUPED_KERNEL_CARDS = ((9, 0), (10, 0), (10, 3))  # cards whose `grouped_mm` leaves group sizes on the device


class TorchRunner:
    """The `Runner` protocol on a torch device.

    Its logits are those of the reference network to float rounding. Unlike the native runner's, they depend on the
    shape of a batch by that much (libraries choose kernels by shape), so near a tie a greedy token may depend on
    its neighbours.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: torch.device | str = "cuda",
        dtype: torch.dtype | None = None,
        num_full_pages: int,
        num_sliding_pages: int,
        records: bool = True,
        progress: Progress | None = None,
    ) -> None:
        """dtype None: bfloat16. `records`: decode by CUDA graphs where the device can.

        Raises ConfigError without such a device, NotEnoughMemory before anything is read, CheckpointError.
        """
        device, dtype = usable_device(device), dtype or torch.bfloat16
        _check_memory(checkpoint.config, device, dtype, num_full_pages, num_sliding_pages)
        with torch.device("meta"):
            network = build_network(checkpoint.config).eval()
            group_experts(network, dtype)
        load_weights(network, checkpoint, dtype, device, progress)
        self._set_up(network, device, dtype, num_full_pages, num_sliding_pages, records)

    @classmethod
    def of_network(
        cls,
        network: Network,
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        num_full_pages: int,
        num_sliding_pages: int,
        records: bool = True,
    ) -> TorchRunner:
        """Around a network that is there already, with grouped experts and on the device: for measuring."""
        runner = cls.__new__(cls)
        runner._set_up(network, usable_device(device), dtype, num_full_pages, num_sliding_pages, records)
        return runner

    def _set_up(
        self,
        network: Network,
        device: torch.device,
        dtype: torch.dtype,
        num_full_pages: int,
        num_sliding_pages: int,
        records: bool,
    ) -> None:
        self.config: ModelConfig = network.config
        self.device = device
        self.dtype = dtype
        self.num_full_pages = num_full_pages
        self.num_sliding_pages = num_sliding_pages
        self._network: Network | None = network
        text = self.config.text
        groups = [
            Group("full", num_full_pages, view_of_full_layers(text)),
            Group("local", num_sliding_pages, view_of_local_layers(text)),
        ]
        self._groups = [group for group in groups if not isinstance(group.view, Nothing)]
        names = [group.name for group in self._groups]
        of_layer = [names.index("full" if kind == "full_attention" else "local") for kind in text.layer_types]
        # For each layer: the group that its keys are in, and its place among the layers of that group.
        self._places = [(group, of_layer[:layer].count(group)) for layer, group in enumerate(of_layer)]
        self._pages = [
            Pages(group, of_layer.count(index), text, dtype, device) for index, group in enumerate(self._groups)
        ]
        self._sequence_bytes = 2 * text.num_key_value_heads * text.head_dim * PAGE_SIZE * dtype.itemsize
        self._graphs = Graphs(self._all_logits, records=records and _can_record(network, device))

    @property
    def records(self) -> bool:
        """Whether decoding steps are CUDA graphs."""
        return self._graphs.records

    @torch.no_grad()
    def forward(self, batch: Batch) -> Float32:
        """Logits (R, V) float32 of `batch.logit_rows`. Raises ValueError for a page or token that isn't there."""
        self._open()
        self._check_tokens(batch)
        is_decode = has_few_rows(batch) and not len(batch.embed_rows) and len(batch.token_ids) <= MOST_RECORDED_ROWS
        step = plan(batch, self._groups, rounds=is_decode, rows_at_once=self._rows_at_once)
        for pages in self._pages:
            pages.clear(self._to_device(step.starting_pages[pages.group.name]))
        values = self._to_device(step.values)
        rows = self._to_device(batch.logit_rows.astype(np.int64))
        if is_decode:
            logits = self._graphs.run(step.layout, values).index_select(0, rows)
        else:
            values[self._to_device(batch.embed_rows.astype(np.int64))] = 0  # the id may be beyond the vocabulary
            embeds = (self._to_device(batch.embed_rows.astype(np.int64)), self._to_device(batch.embeds))
            logits = self._logits(self._hidden(step.layout, values, embeds).index_select(0, rows))
        return self._to_host(logits)

    @torch.no_grad()
    def encode_image(self, image: PatchedImage) -> Float32:
        """Features (num_tokens, D) float32 of one image. Raises ValueError without a tower."""
        network = self._open()
        if self.config.image_tower is None:
            raise ValueError("this checkpoint has no vision tower, so it takes no images")
        return self._to_host(network.encode_images([image])[0].float())

    def start_image(self, image: PatchedImage) -> WholeImage:
        return WholeImage(self.encode_image, image)

    def close(self) -> None:
        """Free the memory. Further calls raise EngineFailed."""
        self._network = None
        self._pages = []
        self._graphs = Graphs(self._all_logits, records=False)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _open(self) -> Network:
        if self._network is None:
            raise EngineFailed("the runner is closed")
        return self._network

    def _check_tokens(self, batch: Batch) -> None:
        """On a GPU an index out of range would end the process' use of the card."""
        text = self.config.text
        ids = batch.token_ids
        if len(batch.embed_rows):
            ids = np.delete(ids, batch.embed_rows)
        if ((ids < 0) | (ids >= text.vocab_size)).any():
            raise ValueError(f"a token is outside the vocabulary of {text.vocab_size:,}")
        if (batch.positions < 0).any() or (batch.positions >= text.max_position_embeddings).any():
            raise ValueError(f"this model takes positions 0 to {text.max_position_embeddings - 1}")

    def _rows_at_once(self, num_pages: int) -> int:
        return COPIED_BYTES // (self._sequence_bytes * num_pages)

    def _hidden(self, layout: Layout, values: Tensor, embeds: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """What the head reads, (N, D) float32."""
        text = self._open().text_model
        num_rows = layout.num_rows
        hidden = text.embed(values[None, :num_rows])
        if embeds is not None and len(embeds[0]):
            hidden[0].index_copy_(0, *embeds)
        rotary = text.rotary(values[None, num_rows : 2 * num_rows])
        keys = keys_of_step(layout, values, self._pages, self.config.text)
        for layer, (group, place) in zip(text.layers, self._places, strict=True):
            assert isinstance(layer, Layer)
            attention = layer.self_attn
            normed = layer.input_layernorm(hidden)
            q, k, v = attention.project(normed, rotary)
            heads = keys[group].attend(place, q, k, v, attention.head_dim**-0.5)
            hidden, _ = layer.join(hidden, attention.finish(normed, heads))
        return text.norm(hidden)[0]

    def _logits(self, hidden: Tensor) -> Tensor:
        return self._open().logits(hidden)

    def _all_logits(self, layout: Layout, values: Tensor) -> Tensor:
        return self._logits(self._hidden(layout, values))

    def _to_device(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        if self.device.type == "cpu":
            return tensor.clone()
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def _to_host(self, tensor: Tensor) -> Float32:
        if self.device.type == "cpu":
            return tensor.clone().numpy()
        # Pinned, several times as fast as ordinary memory; the array keeps it alive.
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        host.copy_(tensor, non_blocking=True)
        torch.cuda.current_stream().synchronize()
        return host.numpy()


def usable_device(device: torch.device | str) -> torch.device:
    """The device. Raises ConfigError if it is CUDA's and there is none."""
    device = torch.device(device)
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device is {device}; it must be cuda or cpu")
    if device.type == "cuda" and not torch.cuda.is_available():
        why = "this build of torch is without CUDA" if torch.version.cuda is None else "torch finds no GPU"
        raise ConfigError(f"device is cuda, but {why} (torch {torch.__version__}); use device cpu, or install another")
    return device


def page_bytes(config: ModelConfig, dtype: torch.dtype | None = None) -> tuple[int, int]:
    """Bytes of one full page and of one sliding page: K and V of 64 tokens in all layers of the group."""
    text = config.text
    one = 2 * PAGE_SIZE * text.num_key_value_heads * text.head_dim * (dtype or torch.bfloat16).itemsize
    num_full = text.layer_types.count("full_attention")
    return one * num_full, one * (text.num_hidden_layers - num_full)


def _can_record(network: Network, device: torch.device) -> bool:
    """Whether a step asks the host nothing: on a GPU, and no experts or those of one kernel."""
    if device.type != "cuda":
        return False
    experts = [module for module in network.modules() if isinstance(module, GroupedExperts)]
    if not experts:
        return True
    has_kernel = torch.cuda.get_device_capability(device) in GROUPED_KERNEL_CARDS
    return has_kernel and all(some.has_one_kernel for some in experts)


def _check_memory(
    config: ModelConfig, device: torch.device, dtype: torch.dtype, num_full_pages: int, num_sliding_pages: int
) -> None:
    """Raises NotEnoughMemory, or ConfigError for a number of pages that is none."""
    for name, count in (("num_full_pages", num_full_pages), ("num_sliding_pages", num_sliding_pages)):
        if not 0 <= count < 2**31:
            raise ConfigError(f"{name} is {count:,}; it must be from 0 to 2,147,483,647")
    full, sliding = page_bytes(config, dtype)
    weights, pages = weight_bytes(config, dtype), full * (num_full_pages + 1) + sliding * (num_sliding_pages + 1)
    if device.type == "cuda":
        free, where = torch.cuda.mem_get_info(device)[0] - WORKSPACE_BYTES, f"the GPU has left for them ({device})"
    else:
        free, where = available_memory_bytes(), "this machine has left"
    if weights + pages > free:
        raise NotEnoughMemory(
            f"the weights take {weights >> 20:,} MiB and the KV cache {pages >> 20:,} MiB; that is more than the "
            f"{max(0, free) >> 20:,} MiB that {where}; use a smaller model, or less KV memory"
        )
