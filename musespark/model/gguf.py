"""Write a checkpoint as one GGUF file for llama.cpp: text weights, tokenizer and metadata.

The header is written by the `gguf` package, and so is the rounding to q8_0 and q4_0; the weights go through piece by
piece, so that memory stays small however large a tensor is. Integers of the same width are taken over as they are where
both formats hold them exactly, without rounding again. Which tensors there are is in `gguf_families.py`, the tokenizer
in `gguf_vocab.py`; how a file replaces another, and goes on after a kill, in `gguf_file.py`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from musespark.chat.formats import open_tokenizer
from musespark.errors import CheckpointError, SetupError
from musespark.model.checkpoint import open_checkpoint
from musespark.model.checkpoint_folder import need_space
from musespark.model.gguf_families import ARCHITECTURES, Target, refuse_unknown, targets, write_metadata
from musespark.model.gguf_file import replacing_file
from musespark.model.gguf_vocab import write_vocabulary
from musespark.model.squares import contiguous
from musespark.model.weights import Quantized, Weight

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

    from musespark.chat.tokenizer import Tokenizer
    from musespark.model.config import ModelConfig

GgufType = Literal["f32", "bf16", "q8_0", "q4_0"]
ALIGNMENT = 32  # of every tensor, the format's default
BLOCK = 32  # values that share a scale in q8_0 and q4_0
HEADER_SPACE = 64 << 20  # more than any vocabulary takes


@dataclass(frozen=True, slots=True)
class _Stored:
    """One tensor as it will be stored."""

    target: Target
    type: GGMLQuantizationType
    size_bytes: int


def convert_to_gguf(
    source: Path | str,
    target: Path | str,
    *,
    type: GgufType = "bf16",
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the checkpoint folder `source` into the file `target`, which appears whole or not at all.

    After a kill, the same call goes on from the last whole tensor. type: of the matrices; norms and routers are float32
    in all, and beside q4_0 the embedding is q8_0. Quantised checkpoints are expanded first, but for integers that both
    formats hold. progress(done, all) counts bytes. Raises ConfigError for what llama.cpp can't run, CheckpointError for
    files, SetupError without the `gguf` package.
    """
    assert type in get_args(GgufType)
    gguf = _package()
    source, target = Path(source), Path(target)
    checkpoint = open_checkpoint(source)
    refuse_unknown(checkpoint.config)
    tokenizer = open_tokenizer(source)
    stored = [_stored(gguf, tensor, type) for tensor in targets(checkpoint)]
    sizes = [_padded(tensor.size_bytes) for tensor in stored]
    with replacing_file(target, plan=_plan(source, target, type, stored)) as begun:
        num_kept = max(0, begun.num_parts - 1)  # the first part is the header
        total, done = sum(sizes), sum(sizes[:num_kept])
        need_space(target, total - done + HEADER_SPACE)
        if begun.num_parts == 0:
            _write_header(gguf, begun.path, checkpoint.config, source, tokenizer, type, stored)
            begun.note_part()
        with begun.path.open("ab") as file:
            for tensor in stored[num_kept:]:
                for data in _encoded(gguf, tensor):
                    file.write(data.data)
                    done += data.nbytes
                    if progress is not None:
                        progress(done, total)
                done += file.write(bytes(-tensor.size_bytes % ALIGNMENT))
                file.flush()
                begun.note_part()


def _write_header(
    gguf: Any,
    path: Path,
    config: ModelConfig,
    source: Path,
    tokenizer: Tokenizer,
    type: GgufType,
    stored: Sequence[_Stored],
) -> None:
    """Everything before the first tensor."""
    writer = gguf.GGUFWriter(path, ARCHITECTURES[config.model_type])
    writer.add_name(source.resolve().name)
    writer.add_file_type(gguf.LlamaFileType[("ALL_" if type == "f32" else "MOSTLY_") + type.upper()])
    if type in ("q8_0", "q4_0"):
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    write_metadata(writer, config)
    write_vocabulary(writer, source, tokenizer, config)
    for tensor in stored:
        shape = tensor.target.shape
        writer.add_tensor_info(tensor.target.name, shape, np.dtype(np.float32), tensor.size_bytes, tensor.type)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    finally:
        writer.close()
    with path.open("ab") as file:
        file.write(bytes(-file.tell() % ALIGNMENT))


def _package() -> Any:
    try:
        import gguf
    except ImportError:
        raise SetupError(
            "GGUF files are written with the gguf package, which serving does not install: pip install -e '.[gguf]'"
        ) from None
    return gguf


def _stored(gguf: Any, target: Target, type: GgufType) -> _Stored:
    name = {"small": "f32", "embedding": "q8_0" if type == "q4_0" else type}.get(target.kind, type)
    chosen = gguf.GGMLQuantizationType[name.upper()]
    block, block_bytes = gguf.GGML_QUANT_SIZES[chosen]
    if target.shape[-1] % block:
        raise CheckpointError(
            f"{target.name} has {target.shape[-1]:,} inputs; {name} needs a multiple of {block}, take f32 or bf16"
        )
    return _Stored(target, chosen, math.prod(target.shape) // block * block_bytes)


def _plan(source: Path, target: Path, type: GgufType, stored: Sequence[_Stored]) -> str:
    """What tells two conversions apart: the source as it is now, but for what is written into it, and every tensor.

    The version of the package, too, since it rounds the numbers.
    """
    files = {
        path.name: (path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(source.iterdir())
        if not path.name.startswith(".") and path.resolve() != target.resolve()
    }
    tensors = [(tensor.target.name, tensor.type.name, tensor.target.shape) for tensor in stored]
    return json.dumps(
        {
            "source": str(source.resolve()),
            "files": files,
            "type": type,
            "gguf": version("gguf"),
            "tensors": tensors,
        }
    )


def _padded(size: int) -> int:
    return size + -size % ALIGNMENT


def _encoded(gguf: Any, tensor: _Stored) -> Iterator[np.ndarray]:
    """The bytes of a tensor, piece by piece; together they must be as many as planned."""
    size = 0
    is_rounded = tensor.type in (gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_0)
    for weight in tensor.target.pieces():
        data = _same_integers(weight, tensor.type.name) if is_rounded else None
        if data is None:
            values = weight.float32()
            if is_rounded and not np.isfinite(values).all():
                raise CheckpointError(f"{tensor.target.name} holds NaN or infinity; it can't be quantised")
            data = gguf.quants.quantize(contiguous(values), tensor.type)
        data = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        size += data.nbytes
        yield data
    assert size == tensor.size_bytes, f"{tensor.target.name} has {size:,} bytes instead of {tensor.size_bytes:,}"


def _same_integers(weight: Weight, type: str) -> np.ndarray | None:
    """Our integers in llama.cpp's blocks, uint8 (rows, bytes); None where the blocks can't hold them exactly.

    A block is a float16 scale and 32 integers: int8, or for q4_0 two a byte, the first 16 in the lower halves.
    """
    if not isinstance(weight, Quantized) or weight.bits != {"Q8_0": 8, "Q4_0": 4}[type] or weight.group_size % BLOCK:
        return None
    with np.errstate(over="ignore"):
        scales = weight.scales.astype(np.float16)
    if not np.array_equal(scales.astype(np.float32), weight.scales):
        return None
    rows = len(weight.packed)
    blocks = weight.packed.reshape(rows, -1, BLOCK)
    if type == "Q4_0":
        stored = (blocks + 8).view(np.uint8)
        blocks = stored[..., : BLOCK // 2] | (stored[..., BLOCK // 2 :] << 4)
    scales = np.repeat(scales, weight.group_size // BLOCK, axis=1)[..., None]  # (rows, width / 32, 1)
    return np.concatenate([scales.view(np.uint8), blocks.view(np.uint8)], axis=-1).reshape(rows, -1)
