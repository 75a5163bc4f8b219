"""The conversations that training builds from the data pack."""

import json
from pathlib import Path

import numpy as np
import pytest

from musespark.chat.messages import Image, Message, Text
from musespark.errors import DataError
from musespark.training import instructions
from musespark.training.conversations import Conversation
from musespark.training.instructions import instruction_conversations
from musespark.training.manners import PLAIN_TOPICS, manners_conversations
from musespark.training.pictures import caption, picture_conversations
from tests.training.pack import png, write_rows, write_tar


def text_of(message: Message) -> str:
    return "".join(part.text for part in message.content if isinstance(part, Text))


def is_well_formed(conversation: Conversation) -> bool:
    roles = [message.role for message in conversation.messages]
    return roles == ["user", "assistant"] * (len(roles) // 2) and all(text_of(m) for m in conversation.messages[1::2])


def write_instructions(folder: Path, **files: list[object]) -> Path:
    for name in instructions.LIMITS:
        write_rows(folder / "instruct" / f"{name}.jsonl.zst", files.get(name, []))  # type: ignore[arg-type]
    return folder


def pair(question: str, answer: str) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def test_a_worked_answer_becomes_reasoning_only_when_the_effort_asks_for_it(tmp_path: Path) -> None:
    row = pair("2 + 3?", "Two and three make five.\nThe answer is 5.")
    conversations = list(instruction_conversations(write_instructions(tmp_path, gsm8k_train=[row] * 40)))
    assert len(conversations) == 40
    efforts = set()
    for conversation in conversations:
        answer = conversation.messages[-1]
        assert text_of(answer) == "The answer is 5."
        expected = None if conversation.effort == "low" else "Two and three make five."
        assert answer.reasoning == expected
        efforts.add(conversation.effort)
    assert efforts == {"low", "medium", "high", "xhigh"}


def test_an_answer_without_a_rationale_stays_as_it_is(tmp_path: Path) -> None:
    data = write_instructions(tmp_path, multiple_choice_train=[pair("Which?\nA) x\nB) y", "B) y")])
    (conversation,) = instruction_conversations(data)
    assert (text_of(conversation.messages[1]), conversation.effort) == ("B) y", "low")


@pytest.mark.parametrize(
    "messages",
    [None, [], [{"role": "user", "content": "a"}], [{"role": "assistant", "content": "a"}] * 2, ["a", "b"],
     [{"role": "user", "content": "a"}, {"role": "assistant", "content": None}]],
)  # fmt: skip
def test_a_bad_instruction_is_refused_by_file_and_line(tmp_path: Path, messages: object) -> None:
    data = write_instructions(tmp_path, t0_subset=[pair("a", "b"), {"messages": messages}])
    with pytest.raises(DataError, match=r"t0_subset\.jsonl\.zst line 2"):
        list(instruction_conversations(data))


def test_too_long_instructions_are_left_out(tmp_path: Path) -> None:
    just, over = "x" * instructions.LONGEST, "x" * (instructions.LONGEST + 1)
    data = write_instructions(tmp_path, t0_subset=[pair(just, "b"), pair(over, "b"), pair("a", over)])
    assert [text_of(c.messages[0]) for c in instruction_conversations(data)] == [just]


def test_health_answers_are_cut_to_two_sentences(tmp_path: Path) -> None:
    write_rows(tmp_path / "text" / "qa-00.jsonl.zst", [{"text": "Question: What is X? Answer: One. Two. Three."}])
    (conversation,) = instruction_conversations(write_instructions(tmp_path))
    assert [text_of(m) for m in conversation.messages] == ["What is X?", "One. Two."]


def test_every_picture_is_shown_in_every_round(pack: Path) -> None:
    conversations = list(picture_conversations(pack, rounds=4))
    pictures = [part.data for c in conversations for m in c.messages for part in m.content if isinstance(part, Image)]
    assert all(is_well_formed(c) for c in conversations)
    assert len(pictures) == 3 * 4
    assert {pictures.count(data) for data in pictures} == {4}


def test_the_answer_names_the_picture(pack: Path) -> None:
    answers = {text_of(m) for c in picture_conversations(pack, rounds=9) for m in c.messages if m.role == "assistant"}
    assert {"Emoji: red square.", "Emoji: blue square."} <= answers


def test_a_description_without_a_name_is_refused_by_its_tar(tmp_path: Path) -> None:
    description = json.dumps({"text": "Emoji"}).encode()
    write_tar(tmp_path / "images" / "emoji-000.tar", [("000007.png", png((0, 0, 0))), ("000007.json", description)])
    with pytest.raises(DataError, match=r"emoji-000\.tar 000007"):
        list(picture_conversations(tmp_path))


def test_a_pack_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no pictures"):
        list(picture_conversations(tmp_path))


def test_a_long_caption_ends_with_a_sentence() -> None:
    text = "A first sentence. " + "word " * 200
    assert caption({"text": text}) == "A first sentence."
    assert caption({"text": " Short. "}) == "Short."


@pytest.fixture
def manners_pack(tmp_path: Path) -> Path:
    story = "Once there was a hen who lived on a hill. " * 8
    write_rows(tmp_path / "text" / "stories-00.jsonl.zst", [{"text": story}])
    row = {"name": "Peru", "question": "What is the capital?", "answer": "Lima", "text": "The flag of Peru."}
    write_tar(
        tmp_path / "images" / "flags-000.tar", [("0.png", png((255, 0, 0))), ("0.json", json.dumps(row).encode())]
    )
    return tmp_path


def test_manners_are_well_formed_and_show_every_topic(manners_pack: Path) -> None:
    conversations = list(manners_conversations(manners_pack, count=600))
    assert len(conversations) == 600
    assert all(is_well_formed(c) for c in conversations)
    answers = " ".join(text_of(m) for c in conversations for m in c.messages if m.role == "assistant")
    for expected in (
        "Muse Spark nano",
        "The capital of Peru is Lima.",
        "Once there was a hen",
        "1, 2, 3",
        "Your name is",
    ):
        assert expected in answers


def test_manners_reason_exactly_when_the_effort_is_above_low(manners_pack: Path) -> None:
    for conversation in manners_conversations(manners_pack, count=200):
        reasons = [m.reasoning is not None for m in conversation.messages if m.role == "assistant"]
        assert all(reasons) if conversation.effort != "low" else not any(reasons)


def test_sums_and_orders_are_right() -> None:
    rng = np.random.default_rng(0)
    topics = {topic.__name__: topic for topic in PLAIN_TOPICS}
    for _ in range(200):
        _, answer, _ = topics["_sum"](rng)
        left, right = answer.split(" = ")
        assert eval(left) == int(right)  # noqa: S307 - digits and a sign, written above
        question, answer, _ = topics["_count"](rng)
        numbers = [int(n) for n in answer.split(", ")]
        assert numbers == list(range(numbers[0], numbers[-1] + 1))
        assert question.rstrip(".").endswith(str(numbers[-1]))
