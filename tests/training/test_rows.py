from pathlib import Path

import numpy as np
import pytest

from musespark.chat.messages import Image, Message, Text
from musespark.chat.tokenizer import Tokenizer
from musespark.training.batch import make_batch
from musespark.training.conversations import Conversation, write_conversations
from musespark.training.rows import PAD_SEGMENT, SampleSource, TextSource
from tests.training.pack import COLOURS, png

TOKENIZER = Tokenizer.bytes_only()
IDS = {
    "pad_token_id": TOKENIZER.special("<|finetune_right_pad|>"),
    "patch_token_id": TOKENIZER.special("<|patch|>"),
    "message_token_id": TOKENIZER.special("<|message|>"),
}
PAD, PATCH = IDS["pad_token_id"], IDS["patch_token_id"]


@pytest.fixture
def text_source(tmp_path: Path) -> TextSource:
    """Two documents, 0 5 6 7 1 and 0 8 9 1, and the begin of a third; rows of four tokens."""
    np.save(tmp_path / "text.npy", np.array([0, 5, 6, 7, 1, 0, 8, 9, 1, 0], np.uint16))
    return TextSource(tmp_path / "text.npy", sequence_length=4, begin_token_id=0)


def test_text_rows_overlap_by_the_one_token_that_is_only_a_target(text_source: TextSource) -> None:
    assert len(text_source) == 2
    assert text_source.row(0).tokens.tolist() == [0, 5, 6, 7, 1]
    assert text_source.row(1).tokens.tolist() == [1, 0, 8, 9, 1]


def test_a_new_document_is_a_new_segment_and_its_first_token_is_not_learned(text_source: TextSource) -> None:
    batch = make_batch([text_source.row(1)])
    assert batch.segments.tolist() == [[0, 1, 1, 1]]
    assert batch.targets.tolist() == [8, 9, 1]
    assert batch.target_rows.tolist() == [1, 2, 3]


def turn(question: str, answer: str, image: bytes | None = None) -> tuple[Message, Message]:
    parts = (Text(question),) if image is None else (Image(image), Text(question))
    return Message("user", parts), Message("assistant", (Text(answer),))


def chat_source(path: Path, *conversations: Conversation, length: int = 400) -> SampleSource:
    write_conversations(path, conversations, TOKENIZER)
    return SampleSource(path, sequence_length=length, **IDS)


def test_short_conversations_share_a_row_and_the_rest_is_padding(tmp_path: Path) -> None:
    conversations = [Conversation(turn(f"question {i}?", f"answer {i}")) for i in range(4)]
    source = chat_source(tmp_path / "chat.npz", *conversations)
    rows = [source.row(i) for i in range(len(source))]
    assert len(rows) == 2
    for row in rows:
        assert set(row.segments.tolist()) == {0, 1, PAD_SEGMENT}
        padding = row.segments == PAD_SEGMENT
        assert (row.tokens[padding] == PAD).all()
        assert not row.loss[padding].any()
    batch = make_batch(rows)
    assert batch.num_tokens == sum(int((row.segments[:-1] != PAD_SEGMENT).sum()) for row in rows)
    assert TOKENIZER.decode(batch.targets.tolist()).count("answer") == 4


def test_a_conversation_of_just_a_row_is_kept_and_a_longer_one_left_out(tmp_path: Path) -> None:
    conversation = Conversation(turn("why?", "because"))
    write_conversations(tmp_path / "chat.npz", [conversation], TOKENIZER)
    with np.load(tmp_path / "chat.npz") as file:
        size = len(file["tokens"])
    fits, too_short = (SampleSource(tmp_path / "chat.npz", sequence_length=n, **IDS) for n in (size - 1, size - 2))
    assert len(fits) == 1
    assert len(too_short) == 0


def test_each_picture_comes_with_its_own_sample_in_order_of_its_cells(tmp_path: Path) -> None:
    pictures = {name: png(colour) for name, colour in COLOURS.items()}
    source = chat_source(
        tmp_path / "pictures.npz",
        Conversation((*turn("1?", "red", pictures["red"]), *turn("2?", "blue", pictures["blue"]))),
        Conversation(turn("3?", "green", pictures["green"])),
        Conversation(turn("4?", "red", pictures["red"])),
    )
    seen = []
    for row in (source.row(i) for i in range(len(source))):
        assert len(row.image_rows) == sum(image.num_tokens for image in row.images)
        assert (row.tokens[row.image_rows] == PATCH).all()
        text = TOKENIZER.decode([int(t) for t, learned in zip(row.tokens, row.loss, strict=True) if learned])
        names = text.replace(" to=user", " ").split()
        for image, name in zip(row.images, names, strict=True):
            channels = image.patches[0].reshape(3, -1).mean(axis=1)
            assert list(COLOURS)[int(channels.argmax())] == name
            seen.append(name)
    assert sorted(seen) == ["blue", "green", "red", "red"]


def test_cells_of_the_second_row_of_a_batch_are_counted_from_its_start(tmp_path: Path) -> None:
    source = chat_source(tmp_path / "p.npz", Conversation(turn("?", "red", png(COLOURS["red"]))))
    row = source.row(0)
    batch = make_batch([row, row])
    flat = batch.token_ids.flatten()
    assert (flat[batch.image_rows] == PATCH).all()
    assert len(batch.images) == 2
    assert len(batch.image_rows) == int((flat == PATCH).sum()) == 2 * row.images[0].num_tokens


def test_each_picture_knows_the_tokens_of_its_answer(tmp_path: Path) -> None:
    turns = (*turn("1?", "red", png(COLOURS["red"])), *turn("2?", "navy blue", png(COLOURS["blue"])))
    row = chat_source(tmp_path / "p.npz", Conversation(turns)).row(0)
    answers = [TOKENIZER.decode([int(t) for t in answer]) for answer in row.image_answers]
    assert answers == ["red", "navy blue"]
