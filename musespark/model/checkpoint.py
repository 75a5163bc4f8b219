"""A checkpoint folder: opened with every tensor accounted for, and saved so that it is either whole or not there.

    config.json · model.safetensors, or shards with model.safetensors.index.json · generation_config.json
    tokenizer.json, chat_settings.json, preprocessor_config.json, model_card.md: read by other rooms, kept beside

Only safetensors are read. `tensor` gives a tensor as it is stored; `weight` gives the logical weight under the name
that transformers uses, whether it is stored plainly, packed in integers (pack_quantized.py) or as unfused experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from musespark.errors import CheckpointError
from musespark.model.checkpoint_folder import (
    WEIGHTS_FILE,
    open_weights,
    refuse_pickle,
    replacing_folder,
    write_file,
    write_json,
)
from musespark.model.config import ModelConfig
from musespark.model.generation import GenerationDefaults
from musespark.model.json_file import show
from musespark.model.pack_quantized import Bits, Quantization, dequantize, unpack
from musespark.model.tensor_file import FLOAT_DTYPES, RawTensor, TensorFile, write_tensors
from musespark.model.tensors import (
    AUDIO_PREFIX,
    Shape,
    expected_tensors,
    expert_parts,
    is_float32,
    is_fused_experts,
    is_quantizable,
    is_transposed,
)

BUNDLED = Path(__file__).parent / "checkpoints" / "muse-spark-nano"


@dataclass(frozen=True, slots=True, eq=False)
class Plain:
    """A weight stored in a float dtype."""

    raw: RawTensor

    def float32(self) -> np.ndarray:
        return self.raw.float32()


@dataclass(frozen=True, slots=True, eq=False)
class Quantized:
    """A weight stored in integers: weight[…, o, i] = packed[…, o, i] · scales[…, o, i // group_size].

    packed int8 (out, in), or (E, out, in) for experts, one value a byte whatever `bits` is, from -2^(bits-1);
    scales float32 (…, out, in / group_size).
    """

    bits: Bits
    group_size: int
    packed: np.ndarray
    scales: np.ndarray

    def float32(self) -> np.ndarray:
        return dequantize(self.packed, self.scales)


Weight = Plain | Quantized


class Checkpoint:
    """An open checkpoint. Nothing is read until a tensor is asked for; made by `open_checkpoint`."""

    def __init__(
        self,
        folder: Path,
        config: ModelConfig,
        generation: GenerationDefaults,
        quantization: Quantization | None,
        files: Mapping[str, TensorFile],
    ) -> None:
        """`files` maps each stored tensor to its file. Raises CheckpointError listing the tensors that don't fit."""
        self.folder = folder
        self.config = config
        self.generation = generation
        self.quantization = quantization
        self._files = files
        self._shapes = expected_tensors(config)
        self._account()

    def names(self) -> tuple[str, ...]:
        """The logical tensors, those that `weight` takes: transformers' names, without the audio tower."""
        return tuple(self._shapes)

    def shape(self, name: str) -> Shape:
        """The shape of a logical tensor."""
        return self._shapes[name]

    def stored_names(self) -> tuple[str, ...]:
        """The tensors as stored, those that `tensor` takes."""
        return tuple(self._files)

    def tensor(self, name: str) -> RawTensor:
        """A tensor as stored, a view into the mapped file."""
        return self._files[name].tensor(name)

    def weight(self, name: str) -> Weight:
        """The logical tensor `name`, whichever way it is stored. Packed integers and unfused experts are copied.

        Experts are (E, out, in), also Llama 4's, whose fused tensors are stored (and said by `shape` to be) transposed.
        """
        shape = self._shapes[name]
        if is_transposed(name):
            shape = (shape[0], shape[2], shape[1])
            if name in self._files:
                raw = self.tensor(name)
                return Plain(RawTensor(raw.dtype, shape, raw.data.swapaxes(1, 2)))
        if name in self._files or not is_fused_experts(name):
            return self._matrix(name, shape)
        parts = [self._matrix(*part) for part in expert_parts(name, self._shapes[name])]
        plain = [part.raw for part in parts if isinstance(part, Plain)]
        if plain:
            data = np.concatenate([raw.data for raw in plain]).reshape(shape)
            return Plain(RawTensor(plain[0].dtype, shape, data))
        packed = [part for part in parts if isinstance(part, Quantized)]
        values = np.concatenate([part.packed for part in packed]).reshape(shape)
        scales = np.concatenate([part.scales for part in packed]).reshape(*shape[:-1], -1)
        return Quantized(packed[0].bits, packed[0].group_size, values, scales)

    def _matrix(self, name: str, shape: Shape) -> Weight:
        """The tensor under its own name, or the packed tensors in its place."""
        if name in self._files:
            return Plain(self.tensor(name))
        assert self.quantization is not None, "opening accepts packed tensors only with a quantization_config"
        values = unpack(self.tensor(f"{name}_packed").data, self.quantization.bits, shape[1])
        scales = self.tensor(f"{name}_scale").float32()
        if not np.isfinite(scales).all():
            raise CheckpointError(f"{name}_scale in {self._files[f'{name}_scale'].path.name} holds NaN or infinity")
        return Quantized(self.quantization.bits, self.quantization.group_size, values, scales)

    def _account(self) -> None:
        """Check that the files hold every expected tensor, in a form that we know, and nothing else."""
        missing: list[str] = []
        wrong: list[str] = []
        used: set[str] = set()
        for name, shape in self._shapes.items():
            parts = self._parts(name, shape)
            for part, part_shape in parts:
                for stored, (stored_shape, dtypes) in self._stored_form(part, part_shape).items():
                    used.add(stored)
                    if stored not in self._files:
                        missing.append(stored)
                    elif problem := self._mismatch(stored, stored_shape, dtypes):
                        wrong.append(problem)
                    elif stored.endswith(".weight_shape") and self.tensor(stored).data.tolist() != list(part_shape):
                        wrong.append(f"{stored} says {self.tensor(stored).data.tolist()}, expected {list(part_shape)}")
            if len({self._kind(part) for part, _ in parts} - {None}) > 1:
                wrong.append(f"{name} has its experts in more than one type")
        skipped = AUDIO_PREFIX if self.config.model_type == "muse_spark" else ()  # no other family has audio
        unexpected = [show(name) for name in self._files if name not in used and not name.startswith(skipped)]
        if missing or unexpected or wrong:
            lists = _listing("Missing", missing), _listing("Unexpected", unexpected), _listing("Wrong", wrong)
            raise CheckpointError(
                f"the tensors in {self.folder} don't fit its config.json. {' '.join(filter(None, lists))}"
            )

    def _parts(self, name: str, shape: Shape) -> list[tuple[str, Shape]]:
        """The matrices that make up a logical tensor: itself, or one per expert if the first of those is stored."""
        if is_fused_experts(name) and name not in self._files:
            (first, _), *_ = expert_parts(name, (1, *shape[1:]))
            if self._kind(first) is not None:
                return expert_parts(name, shape)
        return [(name, shape)]

    def _kind(self, name: str) -> str | None:
        """How one matrix is stored: its dtype, "packed", or None if it is not there."""
        if name in self._files:
            return self._files[name].entries[name].dtype
        return "packed" if f"{name}_packed" in self._files else None

    def _stored_form(self, name: str, shape: Shape) -> dict[str, tuple[Shape, tuple[str, ...]]]:
        """Stored name -> (shape, allowed dtypes) of the tensors that together are the matrix `name`."""
        if self.quantization is None or not is_quantizable(name) or self._kind(name) != "packed":
            return {name: (shape, FLOAT_DTYPES)}
        out, width = shape
        if width % self.quantization.group_size:
            raise CheckpointError(
                f"{name} has {width:,} inputs, not a multiple of group_size {self.quantization.group_size:,}"
            )
        return {
            f"{name}_packed": ((out, self.quantization.packed_width(width)), ("I32",)),
            f"{name}_scale": ((out, width // self.quantization.group_size), FLOAT_DTYPES),
            f"{name}_shape": ((2,), ("I64", "I32")),
        }

    def _mismatch(self, name: str, shape: Shape, dtypes: tuple[str, ...]) -> str | None:
        entry = self._files[name].entries[name]
        if entry.shape == shape and entry.dtype in dtypes:
            return None
        found = f"{entry.dtype} {show(list(entry.shape))} in {self._files[name].path.name}"
        return f"{name} is {found}, expected {' or '.join(dtypes)} {list(shape)}"


def open_checkpoint(folder: Path | str) -> Checkpoint:
    """Open and check a checkpoint folder. Reads headers only, and allocates nothing of the size of the weights.

    Raises CheckpointError naming the file and the tensor, ConfigError for a `config.json` that we can't run.
    """
    folder = Path(folder)
    refuse_pickle(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; a checkpoint is a folder with config.json and {WEIGHTS_FILE}")
    data = ModelConfig.read(folder / "config.json")
    config = ModelConfig.from_dict(data)
    quantized = data.get("quantization_config")
    quantization = None if quantized is None else Quantization.from_dict(quantized)
    generation = GenerationDefaults.from_file(folder / "generation_config.json", config)
    return Checkpoint(folder, config, generation, quantization, open_weights(folder))


def save_checkpoint(
    folder: Path | str,
    config: ModelConfig,
    tensors: Mapping[str, Any],
    *,
    generation: GenerationDefaults | None = None,
    files: Mapping[str, bytes | str | Path] | None = None,
    dtype: Literal["F32", "BF16"] | None = None,
) -> None:
    """Write a checkpoint folder in one step (see `replacing_folder`): never half of one, whenever it is interrupted.

    tensors: transformers' names -> numpy array, RawTensor or torch tensor; CheckpointError unless they are exactly
    those of `config`. dtype: what all but the router are converted to, which keeps its type; None keeps every type.
    files: further files of the folder, name -> content, or the Path to copy from. An existing checkpoint is replaced;
    any other existing folder is refused.
    """
    expected = expected_tensors(config)
    raw = {
        name: tensor if isinstance(tensor, RawTensor) else RawTensor.from_array(tensor)
        for name, tensor in tensors.items()
    }
    different = [name for name in expected | raw if name not in raw or expected.get(name) != raw[name].shape]
    different += [name for name, tensor in raw.items() if tensor.dtype not in FLOAT_DTYPES]
    if different:
        raise CheckpointError(_listing("Not saved: these don't fit the configuration", different))

    def stored_dtype(name: str) -> Any:
        return raw[name].dtype if dtype is None or is_float32(name) else dtype

    with replacing_folder(Path(folder)) as new:
        write_json(new / "config.json", config.to_dict())
        write_json(
            new / "generation_config.json", (generation or GenerationDefaults(config.text.eos_token_ids)).to_dict()
        )
        for name, content in (files or {}).items():
            write_file(new / name, content)
        layout = {name: (stored_dtype(name), shape) for name, shape in expected.items()}
        write_tensors(new / WEIGHTS_FILE, layout, lambda name: raw[name].cast(stored_dtype(name)))


def _listing(what: str, names: list[str]) -> str:
    """`what: a, b, c and 5 more.`, or nothing."""
    if not names:
        return ""
    more = f" and {len(names) - 8:,} more" if len(names) > 8 else ""
    return f"{what}: {', '.join(names[:8])}{more}."
