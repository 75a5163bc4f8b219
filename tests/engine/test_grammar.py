"""Answers held to a grammar: nothing else comes out, neighbours notice nothing, what goes wrong ends one request."""

from __future__ import annotations

import re
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from musespark.chat.constraint import json_grammar
from musespark.chat.schemas import check_schema
from musespark.chat.tokenizer import Tokenizer
from musespark.engine.engine import Engine
from musespark.engine.grammar import Grammar, ReasoningLimit, Vocabulary
from musespark.engine.runner import Batch, Float32
from musespark.errors import EngineFailed, InvalidSchema
from tests.engine.driver import Driver, Seen, no_pages_in_use, prompt_of, request, run_alone
from tests.fakes import HashRunner, ScriptedRunner, hash_continuation, toy_config

TOKENIZER = Tokenizer.bytes_only()
EOM, EOT = TOKENIZER.special("<|eom|>"), TOKENIZER.special("<|eot|>")
VOCABULARY = Vocabulary(TOKENIZER, {EOT})
A, B = TOKENIZER.encode("ab")
LETTERS = Grammar(VOCABULARY, "start: /[ab]{40}/")
OTHERS = [token for token in range(toy_config().text.vocab_size) if token not in (A, B)]


def held(prompt: list[int], max_tokens: int = 60, grammar: Grammar = LETTERS, **fields: Any) -> Any:
    return request(prompt, max_tokens, grammar=grammar, stop_token_ids=frozenset({EOT}), **fields)


def text(seen: Seen, index: int = 0) -> str:
    return TOKENIZER.decode(seen.ids(index))


def test_greedy_output_is_the_best_of_what_is_allowed() -> None:
    seen = run_alone(Engine(HashRunner()), held(prompt_of(100)))
    assert seen.ids() == hash_continuation(prompt_of(100), 40, suppressed=OTHERS)
    assert seen.reasons == {0: "stop"}
    assert seen.usage is not None
    assert seen.usage.completion_tokens == 41


def test_neighbours_in_the_batch_get_what_they_get_alone() -> None:
    driver = Driver(Engine(HashRunner(num_full_pages=128, num_sliding_pages=128)))
    free = [driver.submit(request(prompt_of(50 + i, i), 45)) for i in range(4)]
    bound = [driver.submit(held(prompt_of(70 + i, i))) for i in range(4)]
    driver.run()
    for i in range(4):
        assert free[i].ids() == hash_continuation(prompt_of(50 + i, i), 45)
        assert bound[i].ids() == hash_continuation(prompt_of(70 + i, i), 40, suppressed=OTHERS)


def test_preemption_does_not_lose_the_place() -> None:
    driver = Driver(Engine(HashRunner(num_full_pages=6, num_sliding_pages=12)))
    long = Grammar(VOCABULARY, "start: /[ab]{150}/")
    seen = [driver.submit(held(prompt_of(60, i), 200, long)) for i in range(3)]
    driver.run()
    assert driver.engine.stats().num_preemptions_total > 0
    for i in range(3):
        assert seen[i].ids() == hash_continuation(prompt_of(60, i), 150, suppressed=OTHERS)


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 2.0},
        {"temperature": 1.0, "top_k": 1},
        {"temperature": 1.0, "top_p": 0.1, "min_p": 0.5},
        {"repetition_penalty": 10.0, "frequency_penalty": 2.0, "presence_penalty": 2.0},
        {"logit_bias": {200: 100.0, A: -100.0, EOT: 100.0}},
        {"temperature": 1.0, "repetition_penalty": 0.1, "logit_bias": {B: -1.0}, "top_k": 500, "seed": 3},
    ],
)
def test_no_option_of_sampling_gets_around_it(fields: dict[str, Any]) -> None:
    seen = run_alone(Engine(HashRunner()), held(prompt_of(30), n=2, **fields))
    for index in (0, 1):
        assert re.fullmatch("[ab]{40}", text(seen, index))
    if "top_k" in fields and "seed" in fields:
        again = run_alone(Engine(HashRunner()), held(prompt_of(30), n=2, **fields))
        assert [text(again, i) for i in (0, 1)] == [text(seen, i) for i in (0, 1)]
        assert text(seen, 0) != text(seen, 1)


def test_logprobs_are_those_of_the_model_without_the_grammar() -> None:
    engine = Engine(ScriptedRunner(lambda position: 200))
    [first, *_] = run_alone(engine, held(prompt_of(10), 3, logprobs=2)).tokens[0]
    assert first.id in (A, B)
    assert first.logprob is not None
    assert first.logprob < -90  # the scripted token has the logit 100, all others less than 4
    assert first.top[0][0] == 200
    assert first.top[0][1] == pytest.approx(0.0, abs=1e-6)


def test_length_leaves_what_was_written() -> None:
    seen = run_alone(Engine(HashRunner()), held(prompt_of(10), 7))
    assert (len(text(seen)), seen.reasons) == (7, {0: "length"})


def test_a_cancelled_request_frees_its_pages() -> None:
    driver = Driver(Engine(HashRunner()))
    new = held(prompt_of(100))
    driver.submit(new)
    for _ in range(5):
        driver.step()
    driver.cancel(new.id)
    assert no_pages_in_use(driver.engine)


def test_a_grammar_whose_tokens_the_model_can_not_say_ends_its_own_request_only() -> None:
    driver = Driver(Engine(HashRunner(), suppressed_token_ids={A, B}))
    bound, free = driver.submit(held(prompt_of(10))), driver.submit(request(prompt_of(20), 9))
    driver.run()
    assert isinstance(bound.error, EngineFailed)
    assert free.ids() == hash_continuation(prompt_of(20), 9, suppressed=[A, B])


def test_a_grammar_that_becomes_too_complex_ends_its_own_request_only() -> None:
    small = Vocabulary(TOKENIZER, {EOT}, max_lexer_states=100)
    grammar = Grammar(
        small, "start: /[ab]*a[ab]{12}/", field="tools"
    )  # each beginning of 13 letters is a state of its own
    driver = Driver(Engine(HashRunner()))
    bound = driver.submit(held(prompt_of(10), 500, grammar, logit_bias={EOT: -100.0}))
    free = driver.submit(request(prompt_of(20), 400))
    driver.run()
    assert isinstance(bound.error, InvalidSchema)
    assert "too complex" in bound.error.message
    assert bound.error.param == "tools"
    assert free.ids() == hash_continuation(prompt_of(20), 400)


def test_control_tokens_come_where_the_grammar_has_them_and_text_never_passes_for_one() -> None:
    grammar = Grammar(VOCABULARY, f'start: "<|eom|>" <[{EOM}]> "x"')
    seen = run_alone(Engine(HashRunner()), held(prompt_of(10), grammar=grammar))
    assert seen.ids() == [*TOKENIZER.encode("<|eom|>"), EOM, *TOKENIZER.encode("x")]


def test_reasoning_is_ended_to_leave_room() -> None:
    text_of = f"start: thought{{0,8}} answer\nthought: /[a-z]+/ <[{EOM}]>\nanswer: /[A-Z]/ (<[{EOM}]> /[A-Z]/)?"
    grammar = Grammar(VOCABULARY, text_of, limit=ReasoningLimit(EOM, 10))
    wants_to_think = ScriptedRunner(lambda position: A)  # and in the answer, where it can't, whatever comes
    seen = run_alone(Engine(wants_to_think), held(prompt_of(5), 100, grammar))
    thought, *rest = "".join("." if token == EOM else TOKENIZER.decode([token]) for token in seen.ids()).split(".")
    assert thought == "a" * 10
    assert all(len(piece) == 1 for piece in rest)
    assert rest[-1].isupper()
    assert seen.reasons == {0: "stop"}


def test_matchers_do_not_share_their_place() -> None:
    first, second = LETTERS.matcher(), LETTERS.matcher()
    for _ in range(40):
        assert first.allowed().nonzero()[0].tolist() == [A, B]
        first.consume(A)
    assert first.allowed().nonzero()[0].tolist() == [EOT]
    assert second.allowed().nonzero()[0].tolist() == [A, B]


def test_a_mask_that_was_begun_is_the_mask() -> None:
    begun, plain = LETTERS.matcher(), LETTERS.matcher()
    begun.begin()
    begun.begin()
    np.testing.assert_array_equal(begun.allowed(), plain.allowed())


def test_masks_are_begun_before_the_network_runs() -> None:
    class Counting(ThreadPoolExecutor):
        num_begun = 0

        def submit(self, *arguments: Any, **named: Any) -> Future[Any]:
            self.num_begun += 1
            return super().submit(*arguments, **named)

    class Watching(HashRunner):
        def forward(self, batch: Batch) -> Float32:
            seen_by_forward.append((masks.num_begun, len(batch.logit_rows)))
            return super().forward(batch)

    vocabulary = Vocabulary(TOKENIZER, {EOT})
    vocabulary.thread = masks = Counting(1)
    seen_by_forward: list[tuple[int, int]] = []
    grammar = Grammar(vocabulary, "start: /[ab]{5}/")
    run_alone(Engine(Watching(), max_batch_tokens=16), held(prompt_of(40), grammar=grammar))
    # Two steps of prompt without a token, then one mask more in each step.
    assert seen_by_forward == [(0, 0), (0, 0), (1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (6, 1)]


WRONG: list[tuple[str, Any]] = [
    ("a pattern that is no regular expression", {"type": "string", "pattern": "[a"}),
    ("look-around", {"type": "string", "pattern": "(?=a)b"}),
    ("an unknown format", {"type": "string", "format": "json-pointer"}),
    ("an unknown type", {"type": "thing"}),
    ("an empty range", {"type": "integer", "minimum": 5, "maximum": 3}),
    ("a reference to itself", {"$ref": "#"}),
    (
        "references in a circle",
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    ),
    ("options that do not exclude each other", {"oneOf": [{"type": "integer"}, {"type": "number"}]}),
    ("no value", {"enum": []}),
    ("a keyword of a wrong type", {"type": "object", "properties": []}),
]


@pytest.mark.parametrize("schema", [schema for _, schema in WRONG], ids=[name for name, _ in WRONG])
def test_a_wrong_schema_is_refused_in_one_line(schema: Any) -> None:
    with pytest.raises(InvalidSchema) as caught:
        Grammar(VOCABULARY, json_grammar(schema))
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 400
    assert "start:" not in caught.value.message


def objects(count: int) -> list[dict[str, Any]]:
    return [{"type": "object", "properties": {f"p{i}": {"type": "integer"}}} for i in range(count)]


BOMBS: dict[str, Any] = {
    "nested counts": {"type": "string", "pattern": "((((a{1,100}){1,100}){1,100}){1,100})"},
    "a backtracking pattern": {"type": "string", "pattern": "(a+)+$"},
    "a pattern of many states": {"type": "string", "pattern": ".*a.{30}b"},
    "a large class": {"type": "string", "pattern": "\\w{2000}"},
    "many items": {"type": "array", "items": {"type": "integer"}, "minItems": 10**9},
    "a large multiple": {"type": "integer", "multipleOf": 982_451_653},
    "the largest range": {"type": "number", "minimum": -1e20, "maximum": 1e20},
    "many values": {"enum": [f"value {i}" for i in range(4000)]},
    "many properties": {"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(400)}},
    "all ways through": {"allOf": [{"anyOf": objects(4)}] * 4},
    "ways inside of ways": {
        "allOf": [{"type": "object", "properties": {"a": {"anyOf": objects(5)}}}] * 6,
    },
    "doubled eight times": {
        "$defs": {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(7)} | {"d7": objects(1)[0]},
        "$ref": "#/$defs/d0",
    },
}


@pytest.mark.parametrize("schema", BOMBS.values(), ids=BOMBS.keys())
def test_a_bomb_is_refused_or_compiled_in_good_time(schema: Any) -> None:
    check_schema(schema, "s")
    began_s = time.perf_counter()
    try:
        matcher = Grammar(VOCABULARY, json_grammar(schema)).matcher()
        for token in TOKENIZER.encode('{"p0": 1'):
            if not matcher.allowed()[token]:
                break
            matcher.consume(token)
    except InvalidSchema:
        pass
    assert time.perf_counter() - began_s < 3
