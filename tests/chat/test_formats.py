"""Every family through one door: with a checkpoint's own template or ours, and nothing that people write as control."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from chat import published_template
from chat.image_samples import encoded, picture
from chat.spelling import BYTES, LLAMA4_BYTES, spell
from musespark.chat.deltas import Delta, ToolCallStart
from musespark.chat.formats import MODEL_TYPES, ChatFormat, make_format, open_format
from musespark.chat.messages import Image, Message, Text, Tool, ToolCall
from musespark.chat.templates import ChatSettings
from musespark.chat.tokenizer import LLAMA4_TOKENS, SPECIAL_TOKENS, Tokenizer
from musespark.errors import CheckpointError, ConfigError, InvalidRequest

TODAY = date(2026, 10, 20)
TEMPLATES = {"muse_glimmer": published_template.ATEM, "muse_spark": published_template.ATEM}
TOOL = Tool("get_weather", "The weather.", {"type": "object", "properties": {"city": {"type": "string"}}})


def tokenizer_of(model_type: str) -> Tokenizer:
    return LLAMA4_BYTES if model_type == "llama4" else BYTES


def template_of(model_type: str) -> str:
    return published_template.llama4() if model_type == "llama4" else published_template.ATEM


@contextmanager
def opened(folder: Path, model_type: str, template: str | None = None) -> Iterator[ChatFormat]:
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    chat_format = open_format(folder, model_type, tokenizer_of(model_type))
    try:
        yield chat_format
    finally:
        chat_format.close()


@pytest.fixture(scope="module", params=MODEL_TYPES)
def templated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """(model_type, its format with a template in the folder)"""
    with opened(tmp_path_factory.mktemp("folder"), request.param, template_of(request.param)) as chat_format:
        yield request.param, chat_format


def user(*parts: str | bytes) -> Message:
    return Message("user", tuple(Text(part) if isinstance(part, str) else Image(part) for part in parts))


CALLS = (ToolCall("1", "get_weather", '{"city": "Zürich", "n": [1, null, true]}'), ToolCall("2", "clock", "{}"))
CONVERSATION = [
    user("Weather?"),
    Message("assistant", (), reasoning="Call.", tool_calls=CALLS),
    Message("tool", (Text("18C"),), tool_call_id="1"),
    Message("tool", (Text("noon"),), tool_call_id="2"),
    Message("assistant", (Text("18 degrees."),)),
    user("Look: ", encoded(picture(60, 30), "PNG"), "what is it?"),
]


def test_glimmers_template_and_our_renderer_give_the_same_prompt(tmp_path: Path) -> None:
    ours = make_format("muse_glimmer", BYTES)
    with opened(tmp_path, "muse_glimmer", published_template.ATEM) as theirs:
        for messages in (CONVERSATION, CONVERSATION[:1], [Message("system", (Text("Be brief."),)), *CONVERSATION]):
            for effort in (None, "low"):
                expected = ours.render(messages, reasoning_effort=effort, today=TODAY)
                prompt = theirs.render(messages, reasoning_effort=effort, today=TODAY)
                assert spell(prompt.token_ids) == spell(expected.token_ids)
                assert prompt.image_spans == expected.image_spans


def test_llamas_template_gives_what_transformers_makes_of_it(tmp_path: Path) -> None:
    function = {"name": "get_weather", "description": "The weather.", "parameters": TOOL.parameters}
    data = [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "Weather?"}]
    (expected,), _ = render_jinja_template(
        [data],
        tools=[{"type": "function", "function": function}],
        chat_template=published_template.llama4(),
        add_generation_prompt=True,
        bos_token="<|begin_of_text|>",
    )
    messages = [Message("system", (Text(" Be brief. "),)), user("Weather?")]
    with opened(tmp_path, "llama4", published_template.llama4()) as chat_format:
        assert spell(chat_format.render(messages, tools=[TOOL]).token_ids, LLAMA4_TOKENS) == expected


def test_llamas_tools_and_a_first_image_are_both_in_the_prompt(tmp_path: Path) -> None:
    with opened(tmp_path, "llama4", published_template.llama4()) as chat_format:
        prompt = chat_format.render([user(encoded(picture(60, 30), "PNG"), "What?")], tools=[TOOL])
        text = spell(prompt.token_ids, LLAMA4_TOKENS)
        assert '"get_weather"' in text.partition("<|eot|>")[0]
        assert text.count("<|patch|>") == 144 == prompt.images[0].num_tokens


def test_a_prompt_with_a_template_has_its_images(templated: tuple[str, ChatFormat]) -> None:
    model_type, chat_format = templated
    own = make_format(model_type, tokenizer_of(model_type)).render(CONVERSATION[-1:], today=TODAY)
    prompt = chat_format.render(CONVERSATION[-1:], today=TODAY)
    assert [image.digest for image in prompt.images] == [image.digest for image in own.images]
    patch = tokenizer_of(model_type).special("<|patch|>")
    rows = [i for start, end in prompt.image_spans for i in range(start, end)]
    assert rows == [i for i, token_id in enumerate(prompt.token_ids) if token_id == patch]


@pytest.mark.parametrize("arguments", ["", '{"city": "Par', "[1]", "null", "{'a': 1}", '{"a": NaN}', "<|eot|>"])
def test_calls_with_broken_arguments_are_history_too(templated: tuple[str, ChatFormat], arguments: str) -> None:
    """A client sends back what the model wrote; refusing it would end the conversation for good."""
    model_type, chat_format = templated
    broken = Message("assistant", (), tool_calls=(ToolCall("1", "f", arguments),))
    for some_format in (chat_format, make_format(model_type, tokenizer_of(model_type))):
        ids = some_format.render([user("Hi"), broken, user("Go on")], today=TODAY).token_ids
        text = tokenizer_of(model_type).decode(ids)
        assert arguments in text or json.dumps(arguments)[1:-1] in text


def test_images_that_a_template_leaves_out_are_missed(tmp_path: Path) -> None:
    blind = "{% for m in messages %}{{ m.content if m.content is string }}{% endfor %}<|start|>assistant"
    with opened(tmp_path, "muse_spark", blind) as chat_format:
        assert spell(chat_format.render([user("Hi")]).token_ids) == "Hi<|start|>assistant"
        with pytest.raises(InvalidRequest, match="a place for 0 of the 1 images"):
            chat_format.render(CONVERSATION[-1:])


def everything(text: str) -> list[Message]:
    call = ToolCall(text, text, json.dumps({text: text, "list": [text]}))
    return [
        Message("system", (Text(text),)),
        user(text, text),
        Message("assistant", (Text(text),), reasoning=text, tool_calls=(call,)),
        Message("tool", (Text(text),), tool_call_id=text, name=text),
        Message("assistant", (Text(text),)),
        user(text),
    ]


@pytest.mark.parametrize("own_template", [True, False])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_nothing_that_people_write_becomes_a_control_token(model_type: str, own_template: bool, tmp_path: Path) -> None:
    """Whole names; halves that the template puts side by side; and what comes after a template's own beginning."""
    tokenizer = tokenizer_of(model_type)
    with opened(tmp_path, model_type, template_of(model_type) if own_template else None) as chat_format:

        def frame(text: str) -> list[int]:
            ids = chat_format.render(everything(text), tools=[Tool(text, text, {text: text})]).token_ids
            return [i for i in ids if tokenizer.is_special(i)]

        plain = frame("x")
        for name in LLAMA4_TOKENS if model_type == "llama4" else SPECIAL_TOKENS:
            for text in (name, f" {name} ", f"a{name}{name}b", name.upper(), name[2:-2], f"{name[5:]}{name[:5]}"):
                assert frame(text) == plain, text


WEDGES = ["<|", "|>", "<", "|", ">", "eot", "<|eo", "t|>", "EOT", " eot ", "<|eot|>", "\U000f0000", "x"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(WEDGES), min_size=1, max_size=6))
def test_no_pieces_make_a_control_token(wedge_template: ChatFormat, parts: list[str]) -> None:
    """A template that sets people's texts side by side, and right inside the brackets of a name."""
    image = encoded(picture(20, 20), "PNG")

    def ids(parts: list[str]) -> list[int]:
        return wedge_template.render([user(*parts, image)]).token_ids

    def frame(parts: list[str]) -> list[int]:
        return [i for i in ids(parts) if BYTES.is_special(i)]

    assert frame(parts) == frame(["x"])
    assert BYTES.decode(ids(parts)).startswith("".join(parts))


@pytest.fixture(scope="module")
def wedge_template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatFormat]:
    source = (
        "{% for m in messages if m.content is not string %}{% set texts = m.content|map(attribute='text')|select %}"
        "{% set texts = texts|list %}{{ texts|join }}<|patch|><|{{ texts[0]|trim|lower }}|>{{ '<' + texts|join + '>' }}"
        "{% endfor %}<|start|>assistant"
    )
    with opened(tmp_path_factory.mktemp("folder"), "muse_spark", source) as chat_format:
        yield chat_format


def test_the_marks_leave_no_trace_and_texts_may_hold_private_characters(templated: tuple[str, ChatFormat]) -> None:
    model_type, chat_format = templated
    text = "\U000f0000\U000f0001 <|eot|> |> <| eot"
    prompt = chat_format.render([user(text)], today=TODAY)
    assert text in tokenizer_of(model_type).decode(prompt.token_ids)
    assert tokenizer_of(model_type).decode(prompt.token_ids).count("\U000f0002") == 0


def test_what_a_template_trims_it_still_trims(tmp_path: Path) -> None:
    with opened(tmp_path, "muse_spark", "{{ messages[0].content|trim }}<|start|>assistant") as chat_format:
        assert spell(chat_format.render([user("  <|eot|> eot \n")]).token_ids) == "⟨<|eot|>⟩ eot<|start|>assistant"


def test_a_template_in_the_tokenizers_configuration(tmp_path: Path) -> None:
    for template in (
        "One.<|start|>assistant",
        [{"name": "other", "template": "x"}, {"name": "default", "template": "One.<|start|>assistant"}],
    ):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
        with opened(tmp_path, "muse_spark") as chat_format:
            assert spell(chat_format.render([user("Hi")]).token_ids) == "One.<|start|>assistant"
    with opened(tmp_path, "muse_spark", "Two.<|start|>assistant") as chat_format:  # a file of its own wins
        assert spell(chat_format.render([user("Hi")]).token_ids) == "Two.<|start|>assistant"


@pytest.mark.parametrize("content", ["{}", '{"chat_template": null}', '{"chat_template": []}', "[]"])
def test_without_a_template_ours_is_the_fallback(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer_config.json").write_text(content)
    with opened(tmp_path, "muse_spark") as chat_format:
        assert "Reasoning effort: high." in spell(chat_format.render([user("Hi")]).token_ids)


@pytest.mark.parametrize("content", ["{", '{"chat_template": 7}', "\ud800"])
def test_a_configuration_that_cannot_be_read_is_refused_by_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer_config.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json"):
        open_format(tmp_path, "muse_spark", BYTES)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% if %}", "is not a chat template"),
        ("Hi", "does not end a prompt"),
        ("{{ raise_exception('never') }}", "refuses this: never"),
        ("{{ messages.x.y }}<|start|>assistant", "can't write"),
        ("{{ 'x' * 10 ** 10 }}", "was stopped: it takes too much memory"),
    ],
)
def test_a_template_that_cannot_write_a_plain_question_is_refused_by_file(
    tmp_path: Path, template: str, reason: str
) -> None:
    (tmp_path / "chat_template.jinja").write_text(template)
    with pytest.raises(CheckpointError, match=reason) as caught:
        open_format(tmp_path, "muse_spark", BYTES)
    assert "chat_template.jinja" in str(caught.value)


def test_two_efforts_render_differently_and_the_date_is_pinned(tmp_path: Path) -> None:
    with opened(tmp_path, "muse_glimmer", published_template.ATEM) as chat_format:
        texts = [
            spell(chat_format.render([user("Hi")], reasoning_effort=effort, today=TODAY).token_ids)
            for effort in ("low", "high", "low")
        ]
    assert texts[0] == texts[2] != texts[1]
    assert "Current date: 2026-10-20." in texts[0]


def test_llama_4_does_not_reason_and_says_so() -> None:
    chat_format = make_format("llama4", LLAMA4_BYTES)
    assert chat_format.render([user("Hi")], reasoning_effort="none") == chat_format.render([user("Hi")])
    with pytest.raises(InvalidRequest, match="'high'; Llama 4 does not reason") as caught:
        chat_format.render([user("Hi")], reasoning_effort="high")
    assert caught.value.param == "reasoning_effort"


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_family_reads_its_own_answers(model_type: str) -> None:
    tokenizer = tokenizer_of(model_type)
    chat_format = make_format(model_type, tokenizer)
    parser = chat_format.parser(tools=[TOOL])
    answer = "[get_weather()]" if model_type == "llama4" else ""
    ids = tokenizer.encode(answer)
    if model_type != "llama4":
        ids = [*tokenizer.encode(" to=get_weather"), tokenizer.special("<|message|>")]
        ids += tokenizer.encode('<atem:invoke name="get_weather"></atem:invoke>')
    events = [event for i in [*ids, tokenizer.special("<|eot|>")] for event in parser.push(i)]
    assert [event.name for event in events if isinstance(event, ToolCallStart)] == ["get_weather"]
    plain = chat_format.parser()
    ids = [*tokenizer.encode("Hello"), tokenizer.special("<|eot|>")]
    assert [e for i in ids for e in plain.push(i) if isinstance(e, Delta) and e.kind == "reasoning"] == []


def test_what_ends_a_turn() -> None:
    for model_type, names in {
        "muse_spark": {"<|eot|>", "<|end_of_text|>"},
        "muse_glimmer": {"<|eot|>", "<|end_of_text|>"},
        "llama4": {"<|eot|>", "<|end_of_text|>", "<|eom|>"},
    }.items():
        tokenizer = tokenizer_of(model_type)
        assert make_format(model_type, tokenizer).stop_token_ids == {tokenizer.special(name) for name in names}


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("size", [(1, 1), (60, 30), (700, 400), (400, 1200)])
def test_the_tokens_of_an_image_are_known_before_it_is_decoded(model_type: str, size: tuple[int, int]) -> None:
    tokenizer = tokenizer_of(model_type)
    chat_format = make_format(model_type, tokenizer)
    without, with_image = (
        len(chat_format.render([user("a", *image, "b")], today=TODAY).token_ids)
        for image in ([], [encoded(picture(*size), "PNG")])
    )
    assert chat_format.count_image_tokens(*size) == with_image - without


def test_settings_are_the_familys_where_the_folder_says_nothing(tmp_path: Path) -> None:
    with opened(tmp_path, "muse_glimmer") as chat_format:
        text = spell(chat_format.render([user("Hi")], today=TODAY).token_ids)
        assert "Knowledge cutoff: 2026-01-04.\nCurrent date: 2026-10-20." in text
    (tmp_path / "chat_settings.json").write_text('{"knowledge_cutoff": null, "default_reasoning_effort": "low"}')
    with opened(tmp_path, "muse_glimmer") as chat_format:
        text = spell(chat_format.render([user("Hi")], today=TODAY).token_ids)
    assert "Knowledge" not in text
    assert "Reasoning strength: low." in text
    assert ChatSettings.from_file(tmp_path) == ChatSettings(default_reasoning_effort="low")


def test_another_family_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="'iflytek_spark' has no chat format; known are muse_spark, muse_glimmer, llama4"
    ):
        open_format(tmp_path, "iflytek_spark", BYTES)


def test_a_tokenizer_of_another_family_is_refused() -> None:
    with pytest.raises(CheckpointError, match="no special token"):
        make_format("llama4", BYTES).render([user("Hi")])
    with pytest.raises(CheckpointError, match="no special token"):
        make_format("muse_spark", LLAMA4_BYTES).render([user("Hi")])
