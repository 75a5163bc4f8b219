"""Texts that calibrate and measure: windows of the checkpoint's own tokens, and the files that can't be used."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from musespark.chat.tokenizer import Tokenizer
from musespark.errors import CheckpointError, DataError
from musespark.model.calibration_text import FEWEST_TOKENS, MAX_TEXT_BYTES, WINDOW, read_windows
from tests.model.files import TOY, saved_toy, toy_config

BYTES = Tokenizer.bytes_only()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    saved_toy(tmp_path / "toy")
    BYTES.save(tmp_path / "toy" / "tokenizer.json")
    return tmp_path / "toy"


def text_file(folder: Path, content: str | bytes) -> Path:
    path = folder.parent / "text.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_windows_begin_with_begin_of_text_and_follow_the_text(folder: Path) -> None:
    text = "".join(chr(ord("a") + i % 26) for i in range(2 * (WINDOW - 1) + 7))
    windows = read_windows(folder, text_file(folder, text))
    assert windows.shape == (2, WINDOW)
    assert windows.dtype == np.int64
    assert set(windows[:, 0]) == {TOY.text.bos_token_id}
    assert "".join(BYTES.decode(row[1:].tolist()) for row in windows) == text[:-7]


def test_a_long_text_is_sampled_evenly_from_its_beginning_to_its_end(folder: Path) -> None:
    text = "".join(chr(ord("a") + i) * (WINDOW - 1) for i in range(13))
    windows = read_windows(folder, text_file(folder, text), most=5)
    assert [BYTES.decode([row[1]]) for row in windows.tolist()] == ["a", "d", "g", "j", "m"]


def test_a_short_text_is_one_short_window(folder: Path) -> None:
    windows = read_windows(folder, text_file(folder, "x" * FEWEST_TOKENS))
    assert windows.shape == (1, FEWEST_TOKENS + 1)
    with pytest.raises(DataError, match=f"has {FEWEST_TOKENS - 1} tokens; at least {FEWEST_TOKENS} are needed"):
        read_windows(folder, text_file(folder, "x" * (FEWEST_TOKENS - 1)))


def test_a_text_that_spells_a_control_token_stays_text(folder: Path) -> None:
    windows = read_windows(folder, text_file(folder, "<|end_of_text|>" * 20))
    assert not any(map(BYTES.is_special, windows[:, 1:].flatten().tolist()))


def test_files_that_are_no_text_are_refused_by_name(folder: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.txt can't be read: No such file"):
        read_windows(folder, folder / "nowhere.txt")
    with pytest.raises(DataError, match=r"toy can't be read: Is a directory"):
        read_windows(folder, folder)
    with pytest.raises(DataError, match=r"text\.txt is not UTF-8 text: byte 3 is 0xff"):
        read_windows(folder, text_file(folder, b"abc\xff" * 100))
    with pytest.raises(DataError, match=r"text\.txt is larger than 16 MiB"):
        read_windows(folder, text_file(folder, b"x" * (MAX_TEXT_BYTES + 1)))


def test_a_tokenizer_of_another_vocabulary_is_refused(folder: Path) -> None:
    largest = max(BYTES.encode("the last of the bytes is z: " + "~" * 99))
    small = toy_config(vocab_size=largest, eos_token_id=1, pad_token_id=2)
    (folder / "config.json").write_text(json.dumps(small.to_dict()))
    with pytest.raises(CheckpointError, match=f"gives the token {largest}, but vocab_size is {largest}"):
        read_windows(folder, text_file(folder, "~" * 99))


def test_a_folder_without_a_tokenizer_says_so(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        read_windows(folder, text_file(folder, "x" * 99))
