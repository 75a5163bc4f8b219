"""NativeRunner: a checkpoint on the CPU without torch. The network itself is C++ (csrc/); this file is its front door.

Weights are read and repacked when the runner is made, one tensor at a time, and owned by it, so the checkpoint may be
closed afterwards. `forward` and `encode_image` are one native call each, with the GIL released.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from musespark.engine import _native
from musespark.engine.machine_memory import available_memory_bytes, total_memory_bytes
from musespark.engine.native_vision import NativeEncoding, native_tower
from musespark.engine.rotary import rotary_frequencies, scaled_frequencies
from musespark.errors import CheckpointError, ConfigError, EngineFailed, NotEnoughMemory
from musespark.model.checkpoint import Checkpoint
from musespark.model.config import ModelConfig
from musespark.model.weight_memory import (
    Precision,
    largest_tensor_bytes,
    loadable_precisions,
    planned_weight_bytes,
    rounding_group,
)
from musespark.model.weight_reader import Progress, WeightReader

if TYPE_CHECKING:
    from musespark.chat.images import PatchedImage
    from musespark.engine.runner import Batch

Isa = Literal["avx512", "avx512_base", "avx2", "portable"]
KvPrecision = Literal["float32", "bf16", "int8"]
Fetched = tuple[str, np.ndarray, np.ndarray | None, int]  # dtype, values, scales, group size

MAX_THREADS: int = _native.build_info()["max_threads"]
STEP_SHARE = 50  # rows of a step of 512 tokens take about a 200th of the weights of the published shapes


class NativeRunner:
    """The `Runner` of serving. Its logits are the same bits whatever else is in the batch, in any chunking and on any
    number of threads; they differ between instruction sets by float rounding.

    precision float32: everything in float32. bf16: weights, matrix operands and KV pages in bfloat16, sums in float32.
    int8: text weights in int8 groups as stored (quantised here if the checkpoint is not), operands quantised per token
    and group, KV and image tower as in bf16. int4: the same in four bits, but what a quantised checkpoint keeps in
    floats is kept in bf16. Norms, router, residual stream and soft cap are float32 in all of them.
    kv_precision: of the pages; int8 halves them, with a scale for each token and head, and attends in integers.
    num_threads None: as many as this process may use. isa None: the best that this machine has.
    progress is told how many bytes of the weights have been read, and of how many.
    Raises NotEnoughMemory before anything is read, CheckpointError for tensors that can't be loaded, ConfigError for
    the other arguments.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        precision: Precision | None = None,
        kv_precision: KvPrecision | None = None,
        num_full_pages: int,
        num_sliding_pages: int,
        num_threads: int | None = None,
        isa: Isa | None = None,
        progress: Progress | None = None,
    ) -> None:
        """precision None: `default_precision(checkpoint)`; kv_precision None: `default_kv_precision(precision)`."""
        self.config: ModelConfig = checkpoint.config
        self.precision: Precision = default_precision(checkpoint) if precision is None else precision
        self.kv_precision: KvPrecision = kv_precision or default_kv_precision(self.precision)
        self.num_full_pages = num_full_pages
        self.num_sliding_pages = num_sliding_pages
        threads = usable_cores() if num_threads is None else num_threads
        if self.precision not in get_args(Precision):
            raise ConfigError(f"precision is {precision!r}; it must be one of {', '.join(get_args(Precision))}")
        if self.kv_precision not in get_args(KvPrecision):
            raise ConfigError(f"kv_precision is {kv_precision!r}; it must be one of {', '.join(get_args(KvPrecision))}")
        if not 1 <= threads <= MAX_THREADS:
            raise ConfigError(f"num_threads is {threads:,}; it must be from 1 to {MAX_THREADS}")
        if (
            isa is not None
            and isa not in available_isas()
            and not (isa == "avx512" and "avx512_base" in available_isas())
        ):
            raise ConfigError(f"isa {isa!r} can't run on this machine; there are {', '.join(available_isas())}")
        if self.precision not in loadable_precisions(checkpoint):
            raise ConfigError(
                f"precision is {self.precision}, but {checkpoint.folder} is stored in 8 bits; load it in int8, or "
                "quantise the original to 4 bits"
            )
        pages = page_bytes(self.config, self.precision, self.kv_precision)
        _check_memory(checkpoint, self.precision, pages, num_full_pages, num_sliding_pages)
        reader = WeightReader(checkpoint, progress)
        rounding = rounding_group(checkpoint.quantization is not None, self.precision)
        tower = native_tower(self.config)
        try:
            self._model = _native.Model(
                text=_text(self.config),
                vision=tower,
                fetch=lambda name: _fetch(reader, name, rounding),
                precision=self.precision,
                kv_precision=self.kv_precision,
                num_full_pages=num_full_pages,
                num_sliding_pages=num_sliding_pages,
                num_threads=threads,
                isa=isa or "",
            )
        except ValueError as error:
            raise CheckpointError(f"{checkpoint.folder} can't be loaded: {error}") from None
        self._closed = False
        try:
            reader.finish()
        except CheckpointError:
            self.close()
            raise

    @property
    def isa(self) -> Isa:
        """The instruction set in use."""
        return self._model.isa

    @property
    def num_threads(self) -> int:
        return self._model.num_threads

    @property
    def weight_bytes(self) -> int:
        """What the weights take in memory."""
        return self._model.weight_bytes

    def forward(self, batch: Batch) -> npt.NDArray[np.float32]:
        """Logits (R, V) float32 of `batch.logit_rows`. Raises ValueError for a batch that breaks the contract (a page,
        token or position out of range, arrays that don't fit), TypeError for arrays of another type; nothing is written
        then."""
        self._refuse_if_closed()
        logits = np.empty((len(batch.logit_rows), self.config.text.vocab_size), np.float32)
        self._model.forward(
            batch.token_ids,
            batch.positions,
            batch.query_start,
            batch.full_block_table,
            batch.sliding_block_table,
            batch.embed_rows,
            batch.embeds,
            batch.logit_rows,
            logits,
        )
        return logits

    def encode_image(self, image: PatchedImage) -> npt.NDArray[np.float32]:
        """Features (num_tokens, D) float32 of one image, for Llama 4 of one tile, ready to take the place of text
        embeddings. Raises ValueError without a tower, or for a grid that it can't take."""
        features = self.start_image(image).run()
        assert features is not None, "without a budget it runs to the end"
        return features

    def start_image(self, image: PatchedImage) -> NativeEncoding:
        """The same in pieces: the work is done by the `run` of what this returns. Raises as `encode_image` does."""
        self._refuse_if_closed()
        rows, columns = image.grid
        if rows * columns != len(image.patches):  # before memory for the features is asked for
            raise ValueError(f"patches must be rows * columns; {len(image.patches):,} are not {rows} x {columns}")
        features = np.empty((image.num_tokens, self.config.text.hidden_size), np.float32)
        return NativeEncoding(self, self._model.start_image(image.patches, rows, columns, features), features)

    def continue_image(self, image: _native.StartedImage, budget_s: float) -> bool:
        """Of NativeEncoding: whether it is done."""
        self._refuse_if_closed()
        return self._model.continue_image(image, budget_s)

    def close(self) -> None:
        """Free the memory, after a call that is running. Further calls raise EngineFailed."""
        self._closed = True
        self._model.close()

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise EngineFailed("the runner is closed")


def _check_memory(
    checkpoint: Checkpoint, precision: Precision, pages: tuple[int, int], num_full_pages: int, num_sliding_pages: int
) -> None:
    for name, count in (("num_full_pages", num_full_pages), ("num_sliding_pages", num_sliding_pages)):
        if not 0 <= count < 2**31:
            raise ConfigError(f"{name} is {count:,}; it must be from 0 to 2,147,483,647")
    kv, total = num_full_pages * pages[0] + num_sliding_pages * pages[1], total_memory_bytes()
    if kv > total:
        raise ConfigError(
            f"{num_full_pages:,} full and {num_sliding_pages:,} sliding pages take {kv / 2**30:,.1f} GiB; "
            f"this machine has {total / 2**30:,.1f} GiB of memory"
        )
    weights, available = planned_weight_bytes(checkpoint, precision), available_memory_bytes()
    step = weights // STEP_SHARE
    # Pages fill up while the runner works; while it is made, a tensor that is being read takes their place.
    if weights + step + max(kv, largest_tensor_bytes(checkpoint)) > available:
        raise NotEnoughMemory(
            f"{checkpoint.folder} does not fit: in {precision} its weights take {weights / 2**30:,.2f} GiB, a step "
            f"{step / 2**30:,.2f} GiB and pages for contexts {kv / 2**30:,.2f} GiB; {available / 2**30:,.2f} GiB of "
            f"this machine's {total / 2**30:,.2f} GiB are free; use a coarser precision or a larger machine"
        )


def default_precision(checkpoint: Checkpoint) -> Precision:
    """What a checkpoint is meant for: int8 or int4 if it has integers of that size, else bf16."""
    if checkpoint.quantization is None:
        return "bf16"
    return "int4" if checkpoint.quantization.bits == 4 else "int8"


def default_kv_precision(precision: Precision) -> KvPrecision:
    """float32 where everything is, else bf16."""
    return "float32" if precision == "float32" else "bf16"


def page_bytes(config: ModelConfig, precision: Precision, kv_precision: KvPrecision | None = None) -> tuple[int, int]:
    """Bytes of one full page and of one sliding page: K and V of 64 tokens in all layers of the group.

    kv_precision None: what `precision` has by default.
    """
    full, sliding = _native.page_bytes(_text(config), kv_precision or default_kv_precision(precision))
    return full, sliding


def available_isas() -> tuple[Isa, ...]:
    """The instruction sets that this build has and this machine can run, the fastest first."""
    return tuple(_native.build_info()["isas"])


def build_info() -> dict[str, Any]:
    """Compiler and instruction sets of the native core, for `musespark inspect` and bug reports."""
    return dict(_native.build_info())


def usable_cores() -> int:
    """Cores that this process may run on, or fewer where its container is given the time of fewer."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, cores_in_quota() or cores, MAX_THREADS)


def cores_in_quota(own: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """The cores' worth of time in the control group of this process (Linux, version 2), rounded up; None: no limit.

    `docker run --cpus 2` shows every core of the machine: a thread on each would use up the time of a tenth of a second
    at once, and then all of them stand still together.
    """
    try:
        groups = [line.removeprefix("0::/") for line in own.read_text().splitlines() if line.startswith("0::/")]
    except OSError:
        return None
    limits = []
    for group in groups:
        for folder in (Path(group), *Path(group).parents):  # a limit holds for the groups below it, too
            with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
                quota, period = (root / folder / "cpu.max").read_text().split()
                limits.append(max(1, -(-int(quota) // int(period))))
    return min(limits, default=None)


def _fetch(reader: WeightReader, name: str, rounding_group: int) -> Fetched:
    """One tensor as the native core reads it. Of floats, the group in which they are rounded if integers are wanted."""
    weight = reader.read(name)
    return weight.kind, weight.data, weight.scales, rounding_group if weight.scales is None else weight.group_size


def _text(config: ModelConfig) -> dict[str, Any]:
    text = config.text
    frequencies = scaled_frequencies(rotary_frequencies(text.head_dim, text.rope_theta), text.rope_scaling)
    return asdict(text) | {
        "model_type": config.model_type,
        "local_span": text.local_span,
        "chunked": "chunked_attention" in text.layer_types,
        "rotary_frequencies": frequencies.tolist(),
        "local": [kind != "full_attention" for kind in text.layer_types],
        "sparse": [kind == "sparse" for kind in text.mlp_layer_types],
        "rope": list(text.layer_uses_rope),
    }
