"""One safetensors file: a strict reader of its header, and a writer that streams.

The layout is eight bytes of header length (little-endian), a JSON object name -> {dtype, shape, data_offsets}, then the
bytes of all tensors without holes. A file comes from strangers, so every number in it is checked against the size of
the file before anything is allocated or mapped; what does not fit exactly is refused with a CheckpointError that names
the file and the tensor. Source: the format description of github.com/huggingface/safetensors.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import stat
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from musespark.errors import CheckpointError
from musespark.model.file_reader import FileReader
from musespark.model.json_file import parse_json_object, show
from musespark.model.squares import contiguous

Dtype = Literal["F32", "F16", "BF16", "F8_E4M3", "I8", "I32", "I64", "U8"]
DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),  # numpy has no bfloat16: its bits, as the upper half of a float32
    "F8_E4M3": np.dtype("u1"),  # nor this: its codes, see weights.py
    "I8": np.dtype("i1"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
    "U8": np.dtype("u1"),
}
FLOAT_DTYPES = ("F32", "F16", "BF16")

# Muse Spark Open quantised, experts unfused, in one file: 143,000 tensors, about 24 MB of header.
MAX_HEADER_BYTES = 64 << 20
MAX_DIMENSIONS = 8
MAX_NAME_CHARACTERS = 512


@dataclass(frozen=True, slots=True, eq=False)
class RawTensor:
    """One tensor as stored. `data` is read-only when it comes from a file; BF16 is held in uint16, FP8 in uint8."""

    dtype: Dtype
    shape: tuple[int, ...]
    data: np.ndarray

    def float32(self) -> np.ndarray:
        """The values in float32: the array itself if it is F32, else a new one. Only for the float dtypes."""
        if self.dtype == "BF16":
            return (self.data.astype(np.uint32) << 16).view(np.float32)
        assert self.dtype in FLOAT_DTYPES, f"{self.dtype} holds no floats"
        return self.data.astype(np.float32, copy=False)

    @classmethod
    def from_array(cls, array: Any) -> RawTensor:
        """Wrap a numpy array, or a torch tensor on any device (which is how BF16 arrives)."""
        if hasattr(array, "detach"):
            return _from_torch(array)
        for dtype in ("F32", "F16", "I8", "I32", "I64", "U8"):
            if array.dtype == DTYPES[dtype]:
                return cls(dtype, array.shape, array)
        raise CheckpointError(f"a tensor of type {array.dtype} can't be stored; there are {', '.join(DTYPES)}")

    def cast(self, dtype: Literal["F32", "BF16"]) -> RawTensor:
        """The same values in another float dtype, rounded to nearest even."""
        if dtype == self.dtype:
            return self
        values = self.float32()
        return RawTensor(dtype, self.shape, values if dtype == "F32" else float32_to_bfloat16(values))


def float32_to_bfloat16(values: np.ndarray) -> np.ndarray:
    """The bits (uint16) of the nearest bfloat16, ties to even; a NaN stays a NaN. `values` is float32."""
    values = contiguous(np.asarray(values, np.float32))
    bits = values.view(np.uint32)
    rounded = ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    # Rounding would carry a NaN whose payload is all ones into a number.
    return np.where(np.isnan(values), ((bits >> 16) | 0x40).astype(np.uint16), rounded)


@dataclass(frozen=True, slots=True)
class Entry:
    """Where one tensor lies: bytes [start, end) of the file."""

    dtype: Dtype
    shape: tuple[int, ...]
    start: int
    end: int


class TensorFile:
    """A safetensors file, checked, and mapped for those who look at parts of it; `read_into` is for reading all of it.

    The mapping lives as long as any array of it.
    """

    def __init__(self, path: Path) -> None:
        """Raises CheckpointError if the file is not exactly a safetensors file of dtypes that we know."""
        self.path = path
        try:
            # Non-blocking, so that a pipe under this name is refused below instead of waited for.
            descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
            try:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode):
                    raise CheckpointError(f"{path} is not a regular file")
                with open(descriptor, "rb", closefd=False) as file:
                    header, data_start = _read_header(file.read, status.st_size, path.name)
                self.entries = _check_entries(header, data_start, status.st_size, path.name)
                self._map = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
                self.reader = FileReader(path, descriptor, status.st_size)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise CheckpointError(f"{path} can't be read: {error.strerror or error}") from None

    def tensor(self, name: str) -> RawTensor:
        """A read-only view into the mapped file; only an unaligned tensor is copied, because vector code needs it."""
        entry = self.entries[name]
        dtype = DTYPES[entry.dtype]
        count = math.prod(entry.shape)
        data = np.frombuffer(self._map, dtype, count, entry.start) if count else np.empty(0, dtype)
        if not data.flags.aligned:
            data = data.copy()
        data.flags.writeable = False
        return RawTensor(entry.dtype, entry.shape, data.reshape(entry.shape))

    def read_into(self, name: str, out: np.ndarray, start: int = 0) -> None:
        """Fill `out`, a contiguous array, with the tensor's bytes from byte `start` on, without the mapping.

        Page by page, a disk may give a thirtieth of what it gives in large pieces. Raises CheckpointError if the file
        has shrunk or can't be read.
        """
        entry = self.entries[name]
        assert 0 <= start <= start + out.nbytes <= entry.end - entry.start, f"{name} has no such bytes"
        self.reader.read_into(entry.start + start, out.reshape(-1).view(np.uint8).data)


class TensorWriter:
    """A safetensors file being written: its header at once, then rows of its tensors in any order.

    Used as a context; at its end every tensor must have been written, and the file is on the disk.
    """

    def __init__(self, path: Path, layout: Mapping[str, tuple[Dtype, tuple[int, ...]]]) -> None:
        """Tensors lie in the order of `layout`, see `_aligned_order`."""
        self.order = _aligned_order(layout)
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers refuses a file that doesn't say it
        offset = 0
        for name in self.order:
            dtype, shape = layout[name]
            size = math.prod(shape) * DTYPES[dtype].itemsize
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
            offset += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 64)  # together with the mapping, every offset is a multiple of the element size
        self._layout, self._num_missing = layout, offset
        self._starts = {name: 8 + len(text) + header[name]["data_offsets"][0] for name in self.order}
        self._file = path.open("wb")
        self._file.write(len(text).to_bytes(8, "little") + text)

    def write(self, name: str, rows: np.ndarray, first_row: int = 0) -> None:
        """Write `rows` of the tensor `name`, (n, ...) in its dtype, as its rows [first_row, first_row + n)."""
        dtype, shape = self._layout[name]
        data = contiguous(rows.astype(DTYPES[dtype], copy=False)).reshape(-1).view(np.uint8)
        self._file.seek(self._starts[name] + first_row * math.prod(shape[1:]) * DTYPES[dtype].itemsize)
        self._file.write(data.data)
        self._num_missing -= data.size

    def __enter__(self) -> TensorWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._file as file:
            if kind is None:
                assert self._num_missing == 0, f"{self._num_missing:,} bytes of tensors were not written"
                file.flush()
                os.fsync(file.fileno())


def write_tensors(
    path: Path, layout: Mapping[str, tuple[Dtype, tuple[int, ...]]], load: Callable[[str], RawTensor]
) -> None:
    """Write a safetensors file whose tensors are asked for one at a time, and wait until it is on the disk."""
    with TensorWriter(path, layout) as writer:
        for name in writer.order:
            tensor = load(name)
            assert (tensor.dtype, tensor.shape) == layout[name], f"{name} changed between layout and writing"
            writer.write(name, tensor.data)


def _aligned_order(layout: Mapping[str, tuple[Dtype, tuple[int, ...]]]) -> list[str]:
    """The order of `layout`, so that who reads it in that order reads the file from front to back; integers of eight
    bytes, which are few and short, before all others. Where a tensor would not be aligned to its own element then, the
    order of the format's own writer: by width and by name."""
    order = sorted(layout, key=lambda name: DTYPES[layout[name][0]].itemsize < 8)
    offset = 0
    for name in order:
        dtype, shape = layout[name]
        if offset % DTYPES[dtype].itemsize:
            return sorted(layout, key=lambda name: (-DTYPES[layout[name][0]].itemsize, name))
        offset += math.prod(shape) * DTYPES[dtype].itemsize
    return order


def _from_torch(tensor: Any) -> RawTensor:
    torch = sys.modules["torch"]  # whoever hands over a torch tensor has loaded torch; we never do
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return RawTensor("BF16", tuple(tensor.shape), tensor.view(torch.int16).numpy().view(np.uint16))
    return RawTensor.from_array(tensor.numpy())


def _read_header(read: Callable[[int], bytes], file_size: int, file: str) -> tuple[dict[str, Any], int]:
    """The parsed header and the offset at which tensor data begins."""
    if file_size < 8:
        raise CheckpointError(f"{file} has {file_size} bytes; a safetensors file starts with 8 bytes of header length")
    length = int.from_bytes(read(8), "little")
    if length > file_size - 8:
        raise CheckpointError(
            f"{file} claims a header of {length:,} bytes, but only {file_size - 8:,} follow; "
            "it is truncated or not safetensors"
        )
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(f"{file} has a header of {length:,} bytes; at most {MAX_HEADER_BYTES:,} are read")
    try:
        header = parse_json_object(read(length))
    except ValueError as error:
        raise CheckpointError(f"the header of {file} is not valid JSON: {error}") from None
    return header, 8 + length


def _check_entries(header: dict[str, Any], data_start: int, file_size: int, file: str) -> dict[str, Entry]:
    """Every tensor's place, checked: known dtype, shape and bytes agree, no hole, no overlap, nothing left over."""
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"__metadata__ in {file} must be an object of strings")
    entries = {name: _check_entry(name, value, data_start, file) for name, value in header.items()}
    position = data_start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != position:
            problem = "overlaps the tensor before it" if entry.start < position else "leaves a hole before it"
            raise CheckpointError(
                f"tensor {show(name)} in {file} {problem}: it starts at {entry.start - data_start:,}, "
                f"expected {position - data_start:,}"
            )
        position = entry.end
        if position > file_size:
            raise CheckpointError(
                f"tensor {show(name)} in {file} ends at byte {position:,} of a file of {file_size:,}; it is truncated"
            )
    if position != file_size:
        raise CheckpointError(f"{file} has {file_size - position:,} bytes after its last tensor")
    return entries


def _check_entry(name: str, value: Any, data_start: int, file: str) -> Entry:
    where = f"tensor {show(name)} in {file}"
    if not name or len(name) > MAX_NAME_CHARACTERS:
        raise CheckpointError(f"{where} must have a name of 1 to {MAX_NAME_CHARACTERS} characters")
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where} must have exactly dtype, shape and data_offsets")
    shape, offsets = value["shape"], value["data_offsets"]
    dtype: Dtype | None = next((known for known in get_args(Dtype) if known == value["dtype"]), None)
    if dtype is None:
        raise CheckpointError(f"{where} has dtype {show(value['dtype'])}; known are {', '.join(DTYPES)}")
    if not _sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise CheckpointError(
            f"{where} has shape {show(shape)}; expected at most {MAX_DIMENSIONS} sizes, none negative"
        )
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"{where} has data_offsets {show(offsets)}; expected [begin, end]")
    size = math.prod(shape) * DTYPES[dtype].itemsize  # Python's integers: no product can wrap around
    if math.prod(max(n, 1) for n in shape) >= 1 << 60:  # an empty tensor with sizes that numpy can't multiply
        raise CheckpointError(f"{where} has shape {show(shape)}; no tensor may have more than 2^60 elements")
    if offsets[1] - offsets[0] != size:
        raise CheckpointError(
            f"{where} is {dtype} {show(shape)} = {size:,} bytes, but its offsets hold {offsets[1] - offsets[0]:,}"
        )
    return Entry(dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])


def _sizes(values: Any) -> bool:
    """Whether `values` is a list of integers from 0 to 2^63 - 1."""
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 63 for value in values)
