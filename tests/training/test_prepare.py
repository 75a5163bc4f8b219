from pathlib import Path

import numpy as np
import pytest

from musespark.chat.tokenizer import Tokenizer
from musespark.errors import DataError
from musespark.training import prepare
from musespark.training.prepare import prepare_text
from musespark.training.sources import open_source
from tests.training.pack import toy_recipe, write_rows

TOKENIZER = Tokenizer.bytes_only()


@pytest.fixture
def tokenizer_path(tmp_path: Path) -> Path:
    TOKENIZER.save(tmp_path / "tokenizer.json")
    return tmp_path / "tokenizer.json"


def test_documents_stand_between_begin_and_end_of_text(tmp_path: Path, tokenizer_path: Path) -> None:
    shard = write_rows(tmp_path / "a.jsonl.zst", [{"text": "ab"}, {"text": "<|eot|>"}])
    tokens = np.load(prepare_text("a", [shard], tokenizer_path, tmp_path / "out"))
    expected = [0, *TOKENIZER.encode("ab"), 1, 0, *TOKENIZER.encode("<|eot|>"), 1]
    assert tokens.dtype == np.uint16
    assert tokens.tolist() == expected


def test_a_long_document_is_cut_for_the_threads_and_joined_again(
    tmp_path: Path, tokenizer_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "LARGEST_PIECE", 10)
    text = "one\ntwo three four five six\n\nseven eight nine"
    shard = write_rows(tmp_path / "a.jsonl.zst", [{"text": text}])
    tokens = np.load(prepare_text("a", [shard], tokenizer_path, tmp_path / "out"))
    assert tokens.tolist() == [0, *TOKENIZER.encode(text), 1]


def test_the_stream_stops_at_the_limit(tmp_path: Path, tokenizer_path: Path) -> None:
    shard = write_rows(tmp_path / "a.jsonl.zst", [{"text": "abcdef"}] * 9)
    assert len(np.load(prepare_text("a", [shard], tokenizer_path, tmp_path / "out", max_tokens=20))) == 20


def test_what_is_tokenised_is_kept_until_its_source_changes(tmp_path: Path, tokenizer_path: Path) -> None:
    shard = write_rows(tmp_path / "a.jsonl.zst", [{"text": "abc"}])
    first = prepare_text("a", [shard], tokenizer_path, tmp_path / "out")
    stamp = first.stat().st_mtime_ns
    assert prepare_text("a", [shard], tokenizer_path, tmp_path / "out").stat().st_mtime_ns == stamp
    write_rows(shard, [{"text": "another text that is longer"}])
    assert prepare_text("a", [shard], tokenizer_path, tmp_path / "out") != first


def test_a_source_with_less_than_a_row_is_refused_by_name(tmp_path: Path) -> None:
    write_rows(tmp_path / "text" / "stories-00.jsonl.zst", [{"text": "short"}])
    with pytest.raises(DataError, match="'stories' gives no row of 256 tokens"):
        open_source("stories", toy_recipe(tmp_path), tmp_path, tmp_path / "run")


def test_empty_shards_are_refused_by_the_source_s_name(tmp_path: Path, tokenizer_path: Path) -> None:
    shard = write_rows(tmp_path / "a.jsonl.zst", [])
    with pytest.raises(DataError, match="'a' has no text"):
        prepare_text("a", [shard], tokenizer_path, tmp_path / "out")
