"""A checkpoint folder: opened with every tensor accounted for, and saved so that it is either whole or not there.

    config.json · model.safetensors, or shards with model.safetensors.index.json · generation_config.json
    tokenizer.json, chat_settings.json, preprocessor_config.json, model_card.md: read by other rooms, kept beside

Only safetensors are read. `tensor` gives a tensor as it is stored; `weight` gives the logical weight under the name
that transformers uses, whether it is stored plainly, quantised (weight_formats.py) or as unfused experts. Both look
into mapped files, which suits readers of a part; who needs all of it takes `WeightReader` (weight_reader.py).
"""

from __future__ import annotations

from collections.abc import Mapping
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
from musespark.model.pack_quantized import Quantization, unpack
from musespark.model.tensor_file import FLOAT_DTYPES, RawTensor, TensorFile, write_tensors
from musespark.model.tensors import (
    AUDIO_PREFIX,
    Shape,
    expected_tensors,
    expert_parts,
    is_float32,
    is_fused_experts,
    is_transposed,
)
from musespark.model.weight_formats import Form, WeightFormat, read_weight_format, stored_form, unused_form
from musespark.model.weights import Fp8, Nvfp4, Plain, Quantized, Weight, join_experts

__all__ = ["BUNDLED", "Checkpoint", "Plain", "Quantized", "Weight", "open_checkpoint", "save_checkpoint"]

BUNDLED = Path(__file__).parent / "checkpoints" / "muse-spark-nano"


class Checkpoint:
    """An open checkpoint. Nothing is read until a tensor is asked for; made by `open_checkpoint`."""

    def __init__(
        self,
        folder: Path,
        config: ModelConfig,
        generation: GenerationDefaults,
        weight_format: WeightFormat | None,
        files: Mapping[str, TensorFile],
    ) -> None:
        """`files` maps each stored tensor to its file. Raises CheckpointError listing the tensors that don't fit."""
        self.folder = folder
        self.config = config
        self.generation = generation
        self.weight_format = weight_format
        self._files = files
        self._shapes = expected_tensors(config)
        self._account()

    @property
    def quantization(self) -> Quantization | None:
        """How its integers are to be read; None if it has none, because it holds floats of any width."""
        return self.weight_format.integers if self.weight_format else None

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

    def file(self, name: str) -> TensorFile:
        """The file that holds a tensor as stored."""
        return self._files[name]

    def check_files(self) -> None:
        """Raises CheckpointError if a file is not what the folder's checksums say: what opening has left to be done."""
        for file in {file.path: file for file in self._files.values()}.values():
            file.reader.check()

    def parts(self, name: str) -> list[tuple[str, Shape]]:
        """The matrices that make up a logical tensor, in stacking order: itself, or one or two per expert."""
        return self._parts(name, self._shapes[name])

    def kind(self, part: str) -> str:
        """How a stored matrix is stored: its dtype, or "packed" for integers in words."""
        kind = self._kind(part)
        assert kind is not None, "opening has found a form for every part"
        return kind

    def weight(self, name: str) -> Weight:
        """The logical tensor `name`, whichever way it is stored. Packed integers and unfused experts are copied.

        Experts are (E, out, in), also Llama 4's, whose fused tensors are stored (and said by `shape` to be) transposed.
        Raises CheckpointError if its scales are not finite.
        """
        parts = self.parts(name)
        if parts[0][0] == name:
            return self.stored_weight(name)
        return join_experts((self.stored_weight(part) for part, _ in parts), len(parts), self._shapes[name][0])

    def stored_parts(self, name: str) -> list[tuple[str, Shape]]:
        """The weights that make up the logical tensor `name`: itself, or (name, (out, in)) of each unfused expert."""
        return self._parts(name, self._shapes[name])

    def stored_weight(self, name: str) -> Weight:
        """One of `stored_parts`, from the tensors that opening has found to be of a form that we know."""
        if name not in self._files:
            assert self.quantization is not None, "opening accepts packed tensors only with a quantization_config"
            bits, width = self.quantization.bits, int(self.tensor(f"{name}_shape").data[-1])
            scales = self._scales(f"{name}_scale")
            packed = unpack(self.tensor(f"{name}_packed").data, bits, width)
            return Quantized(bits, self.quantization.inputs_per_scale(width), packed, scales)
        raw = self.tensor(name)
        if is_transposed(name):
            *stack, width, out = raw.shape
            raw = RawTensor(raw.dtype, (*stack, out, width), raw.data.swapaxes(-1, -2))
        if raw.dtype == "I8":
            assert self.quantization is not None, "opening accepts integers only with a quantization_config"
            group_size = self.quantization.inputs_per_scale(raw.shape[-1])
            return Quantized(8, group_size, raw.data, self._scales(f"{name}_scale"))
        if raw.dtype == "F8_E4M3":
            return Fp8(raw.data, self._scales(f"{name}_scale").reshape(*raw.shape[:-1], 1))
        if raw.dtype == "U8":
            return self._nvfp4(name, raw.data)
        return Plain(raw)

    def _nvfp4(self, name: str, codes: np.ndarray) -> Nvfp4:
        scales = self.tensor(f"{name}_weight_scale").data
        if any(((expert & 0x7F) == 0x7F).any() for expert in scales):
            raise self._not_finite(f"{name}_weight_scale")
        tops = self._scales(f"{name}_weight_scale_2").reshape(len(codes), -1, 1)  # (E, 1 or 2, 1)
        return Nvfp4(codes, scales, tops.repeat(codes.shape[1] // tops.shape[1], axis=1))

    def _scales(self, name: str) -> np.ndarray:
        """float32, all finite."""
        scales = self.tensor(name).float32()
        if not np.isfinite(scales).all():
            raise self._not_finite(name)
        return scales

    def _not_finite(self, name: str) -> CheckpointError:
        return CheckpointError(f"{name} in {self._files[name].path.name} holds NaN or infinity")

    def _account(self) -> None:
        """Check that the files hold every expected tensor, in a form that we know, and nothing else."""
        missing: list[str] = []
        wrong: list[str] = []
        used: set[str] = set()
        for name, shape in self._shapes.items():
            parts = self._parts(name, shape)
            for part, part_shape in parts:
                form = self._stored_form(part, part_shape)
                if form.keys() != {part} and self.weight_format and self.weight_format.kept.holds(part):
                    wrong.append(f"{part} is stored quantised, but {self.weight_format.kept.where} keeps it as it was")
                for stored, (stored_shape, dtypes) in form.items():
                    used.add(stored)
                    if stored not in self._files:
                        missing.append(stored)
                    elif problem := self._mismatch(stored, stored_shape, dtypes):
                        wrong.append(problem)
                    elif stored == f"{part}_shape" and self.tensor(stored).data.tolist() != list(part_shape):
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
        if is_fused_experts(name) and self._kind(name) is None:
            (first, _), *_ = expert_parts(name, (1, *shape[1:]))
            if self._kind(first) is not None:
                return expert_parts(name, shape)
        return [(name, shape)]

    def _kind(self, name: str) -> str | None:
        """How one matrix is stored: its dtype, "packed", or None if it is not there."""
        if name in self._files:
            return self._files[name].entries[name].dtype
        return "packed" if f"{name}_packed" in self._files else None

    def _stored_form(self, name: str, shape: Shape) -> Form:
        form = stored_form(name, shape, self._kind(name), self.weight_format)
        if f"{name}_weight_scale_2" in form:
            file = self._files.get(f"{name}_input_scale")
            form |= unused_form(name, shape, file.entries[f"{name}_input_scale"].shape if file else None)
        return form

    def _mismatch(self, name: str, shape: Shape, dtypes: tuple[str, ...]) -> str | None:
        entry = self._files[name].entries[name]
        if entry.shape == shape and entry.dtype in dtypes:
            return None
        found = f"{entry.dtype} {show(list(entry.shape))} in {self._files[name].path.name}"
        return f"{name} is {found}, expected {' or '.join(dtypes)} {list(shape)}"


def open_checkpoint(folder: Path | str, *, check_while_reading: bool = False) -> Checkpoint:
    """Open and check a checkpoint folder. Allocates nothing of the size of the weights, and reads headers only, but all
    of the files where the folder has checksums.

    check_while_reading: not even then; the files are checked while they are read, and who asks for this must call
    `check_files` when it has read them, as NativeRunner does. Raises CheckpointError naming the file and the tensor,
    ConfigError for a `config.json` that we can't run.
    """
    folder = Path(folder)
    refuse_pickle(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; a checkpoint is a folder with config.json and {WEIGHTS_FILE}")
    data = ModelConfig.read(folder / "config.json")
    config = ModelConfig.from_dict(data)
    weight_format = read_weight_format(folder, data)
    generation = GenerationDefaults.from_file(folder / "generation_config.json", config)
    files = open_weights(folder, check_while_reading=check_while_reading)
    return Checkpoint(folder, config, generation, weight_format, files)


def as_checkpoint(source: Checkpoint | Path | str) -> Checkpoint:
    """An open checkpoint as it is, a folder opened: so that who has opened one need not have it checked again.

    What was opened with `check_while_reading` and has not been checked is checked now. Raises CheckpointError.
    """
    if not isinstance(source, Checkpoint):
        return open_checkpoint(source)
    source.check_files()
    return source


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
