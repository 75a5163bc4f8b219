"""Tasks over scripted models: what is asked, what counts as right, what the baselines are."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from musespark.chat.formats import make_format
from musespark.chat.messages import Message, Text, ToolCall
from musespark.chat.prompt import Prompt
from musespark.chat.tokenizer import Tokenizer
from musespark.errors import DataError
from musespark.evals.answer_tasks import ExactAnswers, FunctionCalls, fits
from musespark.evals.choice_tasks import Choices, SentencePairs, text_log_probs
from musespark.evals.generated.catalogue import samples
from musespark.evals.generated.sample import scoring_rng
from musespark.evals.model_under_test import Question
from musespark.evals.suite import GROUPS, TASKS, task_names
from musespark.evals.task import Source
from musespark.evals.text_tasks import STRIDE, WINDOW, HeldOutText, document_nats
from tests.training.pack import write_rows

TOKENIZER = Tokenizer.bytes_only()


class ScriptedScorer:
    """The score of a text is `score(prompt, continuation)`, both decoded."""

    tokenizer = TOKENIZER

    def __init__(self, score: Callable[[str, str], float]) -> None:
        self._score = score
        self.asked: list[tuple[int, int]] = []  # tokens of prompt and continuation

    def render(self, messages: Sequence[Message]) -> Prompt:
        return make_format("muse_spark", TOKENIZER).render(messages)

    def reply(self, text: str) -> list[int]:
        return TOKENIZER.encode(text)

    def log_probs(self, prompt: Prompt, continuations: Sequence[Sequence[int]]) -> list[float]:
        self.asked += [(len(prompt.token_ids), len(c)) for c in continuations]
        before = TOKENIZER.decode(prompt.token_ids[1:])
        return [self._score(before, TOKENIZER.decode(list(c))) for c in continuations]


class ScriptedSampler:
    def __init__(self, answer: Callable[[Question], Message]) -> None:
        self._answer = answer

    def answers(self, questions: Sequence[Question], *, max_tokens: int) -> list[Message]:
        return [self._answer(question) for question in questions]


def said(text: str = "", *calls: tuple[str, str]) -> Message:
    return Message("assistant", (Text(text),), tool_calls=tuple(ToolCall("1", *call) for call in calls))


def bench(folder: Path, name: str, rows: list[dict[str, object] | str]) -> Source:
    write_rows(folder / "bench" / f"{name}.jsonl.zst", rows)
    return Source(folder)


def blimp_row(i: int, uid: str) -> dict[str, object]:
    return {"id": f"{uid}-{i}", "good": "Cats sleep.", "bad": "Cats sleeps.", "uid": uid, "field": "syntax"}


def question_row(answer: int, *choices: str) -> dict[str, object]:
    return {"id": f"q{answer}", "question": "Why?", "choices": list(choices), "answer": answer}


def test_the_likelier_sentence_is_chosen_and_pairs_of_a_paradigm_are_one_cluster(tmp_path: Path) -> None:
    source = bench(tmp_path, "blimp", [blimp_row(0, "a"), blimp_row(1, "a"), blimp_row(0, "b")])
    found = list(SentencePairs("blimp", source).run(ScriptedScorer(lambda _, text: -len(text))))
    assert [(o.value, o.cluster) for o in found] == [(1.0, "a"), (1.0, "a"), (1.0, "b")]
    assert [o.value for o in SentencePairs("blimp", source).run(ScriptedScorer(lambda _, text: len(text)))] == [0.0] * 3


def test_a_limit_takes_pairs_of_every_paradigm(tmp_path: Path) -> None:
    rows: list[dict[str, object] | str] = [blimp_row(i, uid) for uid in "abcd" for i in range(10)]
    source = Source(bench(tmp_path, "blimp", rows).data, limit=8)
    found = list(SentencePairs("blimp", source).run(ScriptedScorer(lambda *_: 0.0)))
    assert len(found) == 8
    assert {o.cluster for o in found} == set("abcd")


def test_choices_are_compared_by_log_probability_per_byte(tmp_path: Path) -> None:
    """-4 on 2 bytes against -6 on 6 bytes: the longer one is likelier by the byte."""
    scores = {" no": -4.0, " longer": -6.0}
    source = bench(tmp_path, "piqa", [question_row(1, "no", "longer")])
    (found,) = Choices("piqa", source).run(ScriptedScorer(lambda _, text: scores[text]))
    assert found.value == 1.0
    assert found.details["question"] == "Question: Why?\nAnswer:"


def test_baselines_are_guessing_and_the_commonest_answer(tmp_path: Path) -> None:
    rows: list[dict[str, object] | str] = [question_row(0, "a", "b"), question_row(1, "a", "b", "c", "d")]
    rows += [question_row(1, "a", "b"), question_row(1, "a", "b")]
    baselines = Choices("arc_easy", bench(tmp_path, "arc_easy", rows)).baselines()
    assert baselines.chance == pytest.approx((3 * 0.5 + 0.25) / 4)
    assert baselines.majority == 0.75


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"id": "a", "question": "?", "choices": ["x"], "answer": 1}, "line 1: answer must be an index into the 1"),
        ({"id": "a", "question": "?", "choices": ["x"], "answer": True}, "answer must be an index"),
        ({"id": "a", "question": "?", "choices": "xy", "answer": 0}, "id, question and every one of choices"),
        ("[1]", "line 1 must be a JSON object"),
        ("{", "line 1 is not JSON"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: dict[str, object] | str, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        Choices("piqa", bench(tmp_path, "piqa", [row]))


def test_a_missing_set_says_how_to_give_the_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="give the data pack with --data"):
        SentencePairs("blimp", Source(tmp_path))


def test_an_ending_that_shares_a_token_with_its_context_is_scored_as_one_text(tmp_path: Path) -> None:
    """A tokenizer that joins "ab": the context "a" then ends in another token than the whole text has."""

    class Joining:
        def encode(self, text: str) -> list[int]:
            return [300 if part == "ab" else ord(part) for part in _split(text)]

        def special(self, _: str) -> int:
            return 0

    def _split(text: str) -> list[str]:
        parts: list[str] = []
        while text:
            size = 2 if text.startswith("ab") else 1
            parts.append(text[:size])
            text = text[size:]
        return parts

    class Scorer(ScriptedScorer):
        tokenizer = Joining()  # type: ignore[assignment]

        def log_probs(self, prompt: Prompt, continuations: Sequence[Sequence[int]]) -> list[float]:
            assert prompt.token_ids == [0, ord("x")]
            return [{(97,): -1.0, (300,): -5.0, (97, 99): -4.0}[tuple(c)] for c in continuations]

    assert text_log_probs(Scorer(lambda *_: 0.0), "xa", ["b", "c"]) == [-4.0, -3.0]


def test_windows_score_every_token_once_with_enough_before_it() -> None:
    scorer = ScriptedScorer(lambda _, text: 0.0)
    for length in (1, 510, 511, 512, 513, 900, 3000):
        scorer.asked.clear()
        document_nats(scorer, "x" * length)
        assert sum(scored for _, scored in scorer.asked) == length + 1  # and the end, but not the beginning
        assert all(before + scored <= WINDOW + 1 for before, scored in scorer.asked)
        assert all(before > WINDOW - STRIDE for before, _ in scorer.asked[1:])


def test_bits_are_per_byte_of_utf8_and_documents_weigh_their_length(tmp_path: Path) -> None:
    write_rows(tmp_path / "text" / "valid" / "qa.jsonl.zst", [{"text": "äö"}, {"text": "a"}])
    task = HeldOutText("qa", Source(tmp_path))
    first, second = task.run(ScriptedScorer(lambda *_: -4 * math.log(2)))
    assert (first.value, first.weight) == (pytest.approx(-1.0), 4)
    assert (second.value, second.weight) == (pytest.approx(-4.0), 1)
    packed = sum(len(gzip.compress(text.encode(), 9)) for text in ("äö", "a"))
    assert task.baselines().chance == pytest.approx(-8 * packed / 5)


def test_an_answer_is_right_whatever_its_case_spaces_and_full_stop() -> None:
    expected = {sample.messages: sample for sample in samples("logic", scoring_rng(0), 20)}
    right = ScriptedSampler(lambda q: said(f" {expected[q.messages].text.upper().removesuffix('.')} "))
    wrong = ScriptedSampler(lambda q: said(expected[q.messages].text + " I think"))
    task = ExactAnswers("logic", "logic", 20)
    assert [outcome.value for outcome in task.run(right)] == [1.0] * 20
    assert [outcome.value for outcome in task.run(wrong)] == [0.0] * 20


def test_a_call_may_be_valid_without_being_the_right_one() -> None:
    expected = {sample.messages: sample.answer for sample in samples("one_call", scoring_rng(0), 20)}

    def other_numbers(question: Question) -> Message:
        (call,) = expected[question.messages].tool_calls
        arguments = {k: v + 1 if type(v) is int else v for k, v in json.loads(call.arguments).items()}
        return said("", (call.name, json.dumps(arguments)))

    for measure, model, values in (
        ("validity", ScriptedSampler(lambda q: expected[q.messages]), {1.0}),
        ("match", ScriptedSampler(lambda q: expected[q.messages]), {1.0}),
        ("validity", ScriptedSampler(other_numbers), {1.0}),
        ("match", ScriptedSampler(other_numbers), {0.0, 1.0}),
        ("validity", ScriptedSampler(lambda _: said("I can't.")), {0.0}),
        ("validity", ScriptedSampler(lambda _: said("", ("unknown", "{}"))), {0.0}),
        ("validity", ScriptedSampler(lambda _: said("", ("get_weather", "{not json"))), {0.0}),
    ):
        assert measure in ("validity", "match")
        task = FunctionCalls("calls", "validity" if measure == "validity" else "match", 20)
        assert {outcome.value for outcome in task.run(model)} == values


@pytest.mark.parametrize(
    ("arguments", "fit"),
    [
        ({"city": "Rome"}, True),
        ({"city": "Rome", "unit": "celsius"}, True),
        ({"city": "Rome", "unit": "kelvin"}, False),
        ({"city": 3}, False),
        ({}, False),
        ({"city": "Rome", "more": 1}, False),
        ("Rome", False),
    ],
)
def test_arguments_fit_their_schema_or_not(arguments: object, fit: bool) -> None:
    schema = {
        "properties": {"city": {"type": "string"}, "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}},
        "required": ["city"],
    }
    assert fits(arguments, schema) == fit


def test_a_truth_value_is_no_number() -> None:
    schema = {"properties": {"n": {"type": "integer"}}, "required": ["n"]}
    assert not fits({"n": True}, schema)
    assert fits({"n": 1}, schema)


def test_groups_name_tasks_that_there_are_and_every_task_has_a_group() -> None:
    assert {name for group in GROUPS.values() for name in group} == set(TASKS)
    assert task_names("blimp, language") == ["blimp", "arc_easy", "piqa", "openbookqa", "social_iqa"]
    assert task_names("all") == list(TASKS)


@pytest.mark.parametrize("words", ["", " , "])
def test_no_task_is_told(words: str) -> None:
    with pytest.raises(DataError, match="no task is named"):
        task_names(words)


def test_an_unknown_task_is_told_with_those_there_are() -> None:
    with pytest.raises(DataError, match="there is no task 'poetry'; there are all, text, language"):
        task_names("poetry")
