from pathlib import Path

import numpy as np
import pytest

from musespark.chat.messages import Message, Text
from musespark.chat.tokenizer import Tokenizer
from musespark.errors import DataError
from musespark.training.conversations import Conversation
from musespark.training.decontamination import NGRAM, Decontaminator
from musespark.training.prepare import prepare_text
from musespark.training.recipe import ChatData
from musespark.training.sources import BUILDERS, prepare_chat
from tests.training.pack import write_rows

WORDS = [f"word{i}" for i in range(40)]
QUESTION = " ".join(WORDS[:20])


def test_thirteen_words_in_a_row_are_an_overlap_and_twelve_are_none() -> None:
    known = Decontaminator([QUESTION])
    around = ["before"] * 30, ["after"] * 30
    assert known.overlaps(" ".join([*around[0], *WORDS[3 : 3 + NGRAM], *around[1]]))
    assert not known.overlaps(" ".join([*around[0], *WORDS[3 : 2 + NGRAM], *around[1]]))


def test_case_punctuation_and_line_breaks_hide_nothing() -> None:
    hidden = ",\n".join(word.upper() for word in WORDS[:NGRAM])
    assert Decontaminator([QUESTION]).overlaps(f'"{hidden}!"')


def test_the_order_of_the_words_counts() -> None:
    assert not Decontaminator([QUESTION]).overlaps(" ".join(reversed(WORDS[:20])))


def test_texts_are_found_wherever_they_are_in_a_row_and_the_dropped_are_counted(tmp_path: Path) -> None:
    rows = [{"id": "1", "choices": ["no", {"deep": QUESTION}], "answer": 3}]
    write_rows(tmp_path / "bench.jsonl.zst", rows)
    known = Decontaminator.from_folder(tmp_path)
    assert len(known) == 20 - NGRAM + 1
    assert list(known.clean(["fine", QUESTION, "also fine"])) == ["fine", "also fine"]
    assert known.dropped == 1


def test_questions_too_short_to_recognise_are_no_reason_to_drop_anything() -> None:
    known = Decontaminator(["What is this?"])
    assert len(known) == 0
    assert not known.overlaps("What is this? " * 30)


def test_a_source_leaves_out_documents_and_conversations_with_an_evaluation_question(tmp_path: Path) -> None:
    write_rows(tmp_path / "bench" / "set.jsonl.zst", [{"question": QUESTION}])
    stories = [{"text": f"Before it. {QUESTION} After it."}, {"text": "A story of its own. " * 40}]
    write_rows(tmp_path / "text" / "stories-00.jsonl.zst", stories)
    tokenizer = Tokenizer.bytes_only()
    tokenizer.save(tmp_path / "tokenizer.json")
    sets = tmp_path / "bench"
    kept, checked = (
        np.load(
            prepare_text("s", [tmp_path / "text" / "stories-00.jsonl.zst"], tmp_path / "tokenizer.json", tmp_path, **o)
        )
        for o in ({}, {"evaluation_sets": sets})
    )
    assert "word3" in tokenizer.decode(kept.tolist())
    assert tokenizer.decode(checked.tolist()).startswith("A story of its own.")
    said = Conversation((Message("user", (Text(QUESTION),)), Message("assistant", (Text("42"),))))
    BUILDERS["asked"] = lambda _: iter([said, Conversation((Message("user", (Text("Hi"),)), said.messages[1]))])
    try:
        path = prepare_chat("c", ChatData("asked"), tmp_path / "tokenizer.json", tokenizer, tmp_path, tmp_path, sets)
    finally:
        del BUILDERS["asked"]
    assert len(np.load(path)["offsets"]) == 2  # one conversation


def test_a_folder_without_sets_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no evaluation sets"):
        Decontaminator.from_folder(tmp_path)
