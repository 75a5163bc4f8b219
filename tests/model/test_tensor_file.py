"""The safetensors reader and writer, against the published library, hand-made files and hostile headers."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from musespark.errors import CheckpointError
from musespark.model import tensor_file
from musespark.model.tensor_file import RawTensor, TensorFile, float32_to_bfloat16, write_tensors
from tests.model.files import entry, safetensors_bytes

ANY_TIME = settings(deadline=None)  # on a busy machine a file may take its time


def open_bytes(folder: Path, content: bytes) -> TensorFile:
    path = folder / "model.safetensors"
    path.write_bytes(content)
    return TensorFile(path)


def write(path: Path, tensors: dict[str, RawTensor]) -> None:
    write_tensors(path, {name: (raw.dtype, raw.shape) for name, raw in tensors.items()}, tensors.__getitem__)


ARRAYS = {
    "f32": np.arange(6, dtype=np.float32).reshape(2, 3),
    "f16": np.array([0.5, -2], np.float16),
    "i8": np.array([[-128, 127, 0]], np.int8),
    "i32": np.array([-(2**31), 2**31 - 1], np.int32),
    "i64": np.array([2**62], np.int64),
    "u8": np.array([0, 255, 3], np.uint8),
    "scalar": np.array(7, np.float32),
    "empty": np.zeros((0, 4), np.float32),
}


def test_the_published_library_reads_what_we_write(tmp_path: Path) -> None:
    write(tmp_path / "x.safetensors", {name: RawTensor.from_array(array) for name, array in ARRAYS.items()})
    read = safetensors.numpy.load_file(tmp_path / "x.safetensors")
    assert read.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)


def test_we_read_what_the_published_library_writes(tmp_path: Path) -> None:
    safetensors.numpy.save_file(ARRAYS, tmp_path / "x.safetensors", metadata={"format": "np"})
    file = TensorFile(tmp_path / "x.safetensors")
    assert file.entries.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        tensor = file.tensor(name)
        assert tensor.shape == array.shape == tensor.data.shape
        assert not tensor.data.flags.writeable
        np.testing.assert_array_equal(tensor.data, array)


def test_bfloat16_goes_through_unchanged_to_and_from_torch(tmp_path: Path) -> None:
    values = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    safetensors.torch.save_file({"theirs": values}, tmp_path / "theirs.safetensors")
    theirs = TensorFile(tmp_path / "theirs.safetensors").tensor("theirs")
    assert theirs.dtype == "BF16"
    np.testing.assert_array_equal(theirs.float32(), values.float().numpy())
    write(tmp_path / "ours.safetensors", {"ours": RawTensor.from_array(values)})
    assert torch.equal(safetensors.torch.load_file(tmp_path / "ours.safetensors")["ours"], values)


@ANY_TIME
@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50))
def test_rounding_to_bfloat16_is_that_of_torch_for_every_bit_pattern(bits: list[int]) -> None:
    values = np.array(bits, np.uint32).view(np.float32)
    expected = torch.from_numpy(values).bfloat16().float().numpy()
    ours = (float32_to_bfloat16(values).astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(ours, expected)  # counts any two NaNs as equal


def test_a_type_that_the_format_lacks_is_refused() -> None:
    with pytest.raises(CheckpointError, match="float64"):
        RawTensor.from_array(np.zeros(3))


def test_every_tensor_lies_on_a_multiple_of_its_element(tmp_path: Path) -> None:
    write(tmp_path / "x.safetensors", {name: RawTensor.from_array(array) for name, array in ARRAYS.items()})
    file = TensorFile(tmp_path / "x.safetensors")
    for name, array in ARRAYS.items():
        assert file.entries[name].start % array.itemsize == 0


def test_a_tensor_at_an_odd_place_is_read_into_an_aligned_array(tmp_path: Path) -> None:
    header = json.dumps({"a": entry("F32", [2], 0, 8)}).encode()
    header += b" " * (1 - len(header) % 4 + 4)
    data = np.array([1.5, -2.5], "<f4")
    tensor = open_bytes(tmp_path, safetensors_bytes(header, data.tobytes())).tensor("a")
    assert tensor.data.flags.aligned
    assert not tensor.data.flags.writeable
    np.testing.assert_array_equal(tensor.data, data)


def test_offsets_beyond_32_bits_are_read(tmp_path: Path) -> None:
    """One expert tensor of Muse Spark Open has 8.6e9 elements; the file here is sparse and takes no space."""
    big = 5 * 2**30 + 3
    header = safetensors_bytes({"a": entry("U8", [big], 0, big), "z": entry("I8", [3], big, big + 3)})
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(header)
        file.seek(len(header) + big)
        file.write(bytes([1, 2, 3]))
    opened = TensorFile(path)
    assert opened.tensor("z").data.tolist() == [1, 2, 3]
    assert opened.tensor("a").data[-1] == 0


GOOD = {"a": entry("F32", [2], 0, 8), "b": entry("U8", [3], 8, 11)}
BAD_FILES: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "0 bytes"),
    "seven bytes": (b"1234567", "7 bytes"),
    "header longer than the file": ((1000).to_bytes(8, "little") + b"{}", "claims a header of 1,000"),
    "header of 2^63 bytes": ((1 << 63).to_bytes(8, "little") + b"{}", "claims a header"),
    "header of 2^64 - 1 bytes": (b"\xff" * 8 + b"{}", "claims a header"),
    "no JSON": (safetensors_bytes(b"{a}"), "not valid JSON"),
    "no UTF-8": (safetensors_bytes(b'{"\xff": 1}'), "not valid JSON"),
    "UTF-16": (safetensors_bytes(json.dumps(GOOD).encode("utf-16"), bytes(11)), "not valid JSON"),
    "a list": (safetensors_bytes([]), "must be a JSON object"),
    "a depth bomb": (safetensors_bytes(b"[" * 100_000), "nested too deeply"),
    "a number of 5,000 digits": (safetensors_bytes(b'{"a":' + b"9" * 5000 + b"}"), "not valid JSON"),
    "a repeated name": (safetensors_bytes(b'{"a":1,"a":1}'), "'a' appears twice"),
    "a repeated field": (safetensors_bytes(b'{"a":{"dtype":"F32","dtype":"U8"}}'), "'dtype' appears twice"),
    "metadata of numbers": (safetensors_bytes({"__metadata__": {"a": 1}}), "__metadata__"),
    "metadata as a list": (safetensors_bytes({"__metadata__": []}), "__metadata__"),
    "no name": (safetensors_bytes({"": entry("U8", [0], 0, 0)}), "1 to 512 characters"),
    "a name of 513 characters": (safetensors_bytes({"n" * 513: entry("U8", [0], 0, 0)}), "1 to 512 characters"),
    "a tensor that is a number": (safetensors_bytes({"a": 1}), "exactly dtype, shape and data_offsets"),
    "a missing field": (safetensors_bytes({"a": {"dtype": "U8", "shape": []}}), "exactly dtype"),
    "a further field": (safetensors_bytes({"a": {**entry("U8", [0], 0, 0), "x": 1}}), "exactly dtype"),
    "an unknown dtype": (safetensors_bytes({"a": entry("F64", [1], 0, 8)}, bytes(8)), "dtype 'F64'; known are F32"),
    "a dtype that is a list": (safetensors_bytes({"a": entry(["F32"], [1], 0, 4)}, bytes(4)), "known are"),  # type: ignore[arg-type]
    "a negative size": (safetensors_bytes({"a": entry("U8", [-1], 0, 1)}, bytes(1)), "none negative"),
    "a fraction as a size": (safetensors_bytes({"a": entry("U8", [1.0], 0, 1)}, bytes(1)), "none negative"),
    "a truth value as a size": (safetensors_bytes({"a": entry("U8", [True], 0, 1)}, bytes(1)), "none negative"),
    "a size of 2^63": (safetensors_bytes({"a": entry("U8", [1 << 63], 0, 1)}, bytes(1)), "none negative"),
    "nine dimensions": (safetensors_bytes({"a": entry("U8", [1] * 9, 0, 1)}, bytes(1)), "at most 8 sizes"),
    "sizes that wrap to 0 in 64 bits": (safetensors_bytes({"a": entry("U8", [1 << 32, 1 << 32], 0, 0)}), "2\\^60"),
    "bytes that wrap to 0 in 64 bits": (safetensors_bytes({"a": entry("F32", [1 << 59, 8], 0, 0)}), "2\\^60"),
    "an empty tensor of absurd sizes": (safetensors_bytes({"a": entry("U8", [0, 1 << 62, 4], 0, 0)}), "2\\^60"),
    "one element too many": (safetensors_bytes({"a": entry("F32", [3], 0, 8)}, bytes(8)), "= 12 bytes"),
    "one element too few": (safetensors_bytes({"a": entry("F32", [1], 0, 8)}, bytes(8)), "= 4 bytes"),
    "offsets backwards": (safetensors_bytes({"a": entry("U8", [1], 1, 0)}, bytes(1)), "data_offsets"),
    "negative offsets": (safetensors_bytes({"a": entry("U8", [1], -1, 0)}, bytes(1)), "data_offsets"),
    "three offsets": (safetensors_bytes({"a": {**GOOD["a"], "data_offsets": [0, 8, 8]}}, bytes(8)), "data_offsets"),
    "a hole": (safetensors_bytes({"a": entry("U8", [1], 1, 2)}, bytes(2)), "leaves a hole"),
    "an overlap": (
        safetensors_bytes({"a": entry("U8", [2], 0, 2), "b": entry("U8", [2], 1, 3)}, bytes(3)),
        "'b' in model.safetensors overlaps",
    ),
    "the same bytes twice": (
        safetensors_bytes({"a": entry("U8", [2], 0, 2), "b": entry("U8", [2], 0, 2)}, bytes(2)),
        "overlaps",
    ),
    "one byte missing": (safetensors_bytes(GOOD, bytes(10)), "'b' in model.safetensors ends at byte .* truncated"),
    "one byte left over": (safetensors_bytes(GOOD, bytes(12)), "1 bytes after its last tensor"),
    "a name that would colour the terminal": (safetensors_bytes({"\x1b[31m\ud800": 1}), r"'\\x1b\[31m\\ud800'"),
}


def test_the_file_that_the_bad_ones_are_made_from_opens(tmp_path: Path) -> None:
    assert open_bytes(tmp_path, safetensors_bytes(GOOD, bytes(11))).tensor("b").shape == (3,)


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_malformed_file_is_refused_by_name_before_anything_is_allocated(tmp_path: Path, case: str) -> None:
    content, message = BAD_FILES[case]
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=message) as caught:
            open_bytes(tmp_path, content)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    assert "model.safetensors" in str(caught.value)
    assert str(caught.value).isprintable()


def test_limits_are_inclusive(tmp_path: Path) -> None:
    tensors = {"n" * 512: entry("U8", [1] * 8, 0, 1)}
    assert list(open_bytes(tmp_path, safetensors_bytes(tensors, bytes(1))).entries) == ["n" * 512]


def test_a_header_over_the_limit_is_refused_and_one_at_the_limit_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = safetensors_bytes(GOOD, bytes(11))
    monkeypatch.setattr(tensor_file, "MAX_HEADER_BYTES", len(content) - 8 - 11)
    open_bytes(tmp_path, content)
    monkeypatch.setattr(tensor_file, "MAX_HEADER_BYTES", len(content) - 8 - 12)
    with pytest.raises(CheckpointError, match="are read"):
        open_bytes(tmp_path, content)


def test_a_missing_file_a_folder_and_a_pipe_are_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name, message in (("missing", "No such file"), ("folder", "regular file"), ("pipe", "regular file")):
        with pytest.raises(CheckpointError, match=message):
            TensorFile(tmp_path / name)


def test_opening_bad_files_leaks_no_descriptors(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for content, _ in BAD_FILES.values():
        with pytest.raises(CheckpointError):
            open_bytes(tmp_path, content)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture(scope="module")
def fuzz_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    tracemalloc.start()
    yield tmp_path_factory.mktemp("fuzz") / "model.safetensors"
    tracemalloc.stop()


def opens_or_is_refused(path: Path, content: bytes) -> None:
    """The property of every file there can be: CheckpointError, or tensors that cover exactly its bytes."""
    path.write_bytes(content)
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    try:
        file = TensorFile(path)
    except CheckpointError:
        pass
    else:
        header = 8 + int.from_bytes(content[:8], "little")
        assert sum(file.tensor(name).data.nbytes for name in file.entries) == len(content) - header
    assert tracemalloc.get_traced_memory()[1] - before < 4 << 20


SOUND = safetensors_bytes({"__metadata__": {"format": "pt"}, **GOOD, "c": entry("BF16", [2, 2], 11, 19)}, bytes(19))


@ANY_TIME
@given(st.binary(max_size=200))
def test_any_bytes_at_all(fuzz_path: Path, content: bytes) -> None:
    opens_or_is_refused(fuzz_path, content)


@ANY_TIME
@given(st.binary(max_size=200), st.integers(0, 40))
def test_any_bytes_as_a_header_of_the_right_length(fuzz_path: Path, header: bytes, extra: int) -> None:
    opens_or_is_refused(fuzz_path, safetensors_bytes(header, bytes(extra)))


@ANY_TIME
@given(st.lists(st.tuples(st.integers(0, len(SOUND) - 1), st.integers(0, 255)), max_size=4), st.integers(0, len(SOUND)))
def test_a_sound_file_with_a_few_bytes_changed_and_its_end_cut_off(
    fuzz_path: Path, changes: list[tuple[int, int]], length: int
) -> None:
    content = bytearray(SOUND)
    for position, value in changes:
        content[position] = value
    opens_or_is_refused(fuzz_path, bytes(content))
    opens_or_is_refused(fuzz_path, bytes(content[:length]))


SIZES = st.one_of(
    st.integers(-1, 9), st.integers(), st.sampled_from([2**31, 2**32, 2**63 - 1, 2**63, 2**64, 1e400, None])
)
JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "U8", "BF16", "I64", "F8_E4M3", "f32"]) | JSON,
        "shape": st.lists(SIZES, max_size=4) | JSON,
        "data_offsets": st.lists(SIZES, min_size=2, max_size=2) | JSON,
    }
)


@ANY_TIME
@given(st.dictionaries(st.text(max_size=8), ENTRIES | JSON, max_size=4), st.integers(0, 64))
def test_headers_of_the_right_form_with_any_values(fuzz_path: Path, header: dict[str, Any], extra: int) -> None:
    opens_or_is_refused(fuzz_path, safetensors_bytes(header, bytes(extra)))
