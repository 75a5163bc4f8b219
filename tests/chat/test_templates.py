"""Conversations as the model reads them, against the worked examples of the published format."""

from __future__ import annotations

import json
import time
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat.image_samples import encoded, picture
from chat.spelling import BYTES, read, spell
from musespark.chat.images import MAX_IMAGES
from musespark.chat.messages import Image, Message, Text, ToolCall
from musespark.chat.parser import ChatParser
from musespark.chat.templates import ChatSettings, Prompt, render, render_reply
from musespark.chat.tokenizer import SPECIAL_TOKENS
from musespark.errors import CheckpointError, InvalidImage, InvalidRequest

SETTINGS = ChatSettings()
SYSTEM = (
    "<|begin_of_text|><|start|>system<|message|>You are a helpful AI assistant.\n\nReasoning effort: high.\n\n"
    '# Valid recipients: "self", "user".<|eot|>'
)
ASK = "<|start|>assistant"


def user(text: str) -> Message:
    return Message("user", (Text(text),))


def assistant(text: str, **more: object) -> Message:
    return Message("assistant", (Text(text),) if text else (), **more)  # type: ignore[arg-type]


def rendered(*messages: Message, settings: ChatSettings = SETTINGS, **options: object) -> str:
    return spell(render(messages, BYTES, settings, **options).token_ids)  # type: ignore[arg-type]


def history(*messages: Message) -> str:
    """The rendering between the system message and the question to the assistant."""
    text = rendered(*messages)
    assert text.startswith(SYSTEM)
    assert text.endswith(ASK)
    return text[len(SYSTEM) : -len(ASK)]


def test_a_plain_question() -> None:
    settings = ChatSettings(knowledge_cutoff="2026-01-04", include_date=True)
    assert rendered(user("Hi"), settings=settings, today=date(2026, 10, 20)) == (
        "<|begin_of_text|><|start|>system<|message|>You are a helpful AI assistant.\nKnowledge cutoff: 2026-01-04.\n"
        'Current date: 2026-10-20.\n\nReasoning effort: high.\n\n# Valid recipients: "self", "user".<|eot|>'
        "<|start|>user<|message|>Hi<|eot|><|start|>assistant"
    )


def test_reasoning_and_answer_in_history() -> None:
    assert history(user("2+2?"), assistant("4", reasoning="Easy."), user("3+3?")) == (
        "<|start|>user<|message|>2+2?<|eot|><|start|>assistant to=self<|message|>Easy.<|eom|>"
        "<|start|>assistant to=user<|message|>4<|eot|><|start|>user<|message|>3+3?<|eot|>"
    )


def test_parallel_calls_and_their_results() -> None:
    calls = (
        ToolCall("c1", "get_weather", json.dumps({"city": "Paris", "n": 2, "x": [1, "a"], "b": True})),
        ToolCall("c2", "get_weather", '{"city":"Rome"}'),
    )
    results = (
        Message("tool", (Text("18C"),), tool_call_id="c1"),
        Message("tool", (Text("21C"),), tool_call_id="c2"),
    )
    assert history(user("Weather?"), assistant("", reasoning="Call.", tool_calls=calls), *results) == (
        "<|start|>user<|message|>Weather?<|eot|>"
        "<|start|>assistant to=self<|message|>Call.<|eom|><|start|>assistant to=get_weather<|message|>"
        '<atem:function_calls>\n<atem:invoke name="get_weather">\n<atem:parameter name="city">Paris</atem:parameter>\n'
        '<atem:parameter name="n">2</atem:parameter>\n<atem:parameter name="x">[1, "a"]</atem:parameter>\n'
        '<atem:parameter name="b">true</atem:parameter>\n</atem:invoke>\n</atem:function_calls><|eom|>'
        '<|start|>assistant to=get_weather<|message|><atem:function_calls>\n<atem:invoke name="get_weather">\n'
        '<atem:parameter name="city">Rome</atem:parameter>\n</atem:invoke>\n</atem:function_calls><|eot|>'
        '<|start|>tool get_weather<|message|><tool_output name="get_weather">\n18C\n</tool_output><|eot|>'
        '<|start|>tool get_weather<|message|><tool_output name="get_weather">\n21C\n</tool_output><|eot|>'
    )


def test_an_image_takes_its_place_in_the_message() -> None:
    file = encoded(picture(224, 224), "PNG")
    prompt = render([Message("user", (Image(file), Text("What is it?")))], BYTES, SETTINGS)
    opening = SYSTEM + "<|start|>user<|message|><|image_start|>"
    assert spell(prompt.token_ids) == (opening + "<|patch|>" * 64 + "<|image_end|>What is it?<|eot|><|start|>assistant")
    start = len(read(opening))
    assert prompt.image_spans == ((start, start + 64),)
    assert prompt.images[0].num_tokens == 64


def test_several_images_among_texts_keep_their_order() -> None:
    wide, tall = encoded(picture(84, 28), "PNG"), encoded(picture(28, 56), "PNG")
    content = (Text("one "), Image(wide), Text("two "), Text("three "), Image(tall), Image(wide))
    prompt = render([Message("user", content), assistant("Nice."), user("And <|patch|>?")], BYTES, SETTINGS)
    patch = BYTES.special("<|patch|>")
    assert [image.grid for image in prompt.images] == [(2, 6), (4, 2), (2, 6)]
    assert [end - start for start, end in prompt.image_spans] == [3, 2, 3]
    rows = [i for start, end in prompt.image_spans for i in range(start, end)]
    assert rows == [i for i, token_id in enumerate(prompt.token_ids) if token_id == patch]
    assert "one <|image_start|><|patch|><|patch|><|patch|><|image_end|>two three <|image_start|>" in spell(
        prompt.token_ids
    )


def test_an_image_alone_and_an_image_in_a_tool_result() -> None:
    file = encoded(picture(20, 20), "PNG")
    one = "<|image_start|><|patch|><|image_end|>"
    assert history(Message("user", (Image(file),))) == f"<|start|>user<|message|>{one}<|eot|>"
    assert history(Message("tool", (Image(file),), name="camera")) == (
        f'<|start|>tool camera<|message|><tool_output name="camera">\n{one}\n</tool_output><|eot|>'
    )


def test_bad_images_and_too_many_are_refused() -> None:
    with pytest.raises(InvalidImage, match="not an image"):
        rendered(Message("user", (Image(b"hello"),)))
    file = encoded(picture(20, 20), "PNG")
    messages = [Message("user", (Image(file),))] * MAX_IMAGES
    assert len(render(messages, BYTES, SETTINGS).images) == MAX_IMAGES
    with pytest.raises(InvalidImage, match="17 images"):
        render([*messages, messages[0]], BYTES, SETTINGS)


def test_a_system_message_of_ones_own_replaces_the_default_and_carries_no_date() -> None:
    settings = ChatSettings(knowledge_cutoff="2026-01-04", include_date=True)
    assert rendered(Message("system", (Text("Be brief."),)), user("Hi"), settings=settings) == (
        "<|begin_of_text|><|start|>system<|message|>Be brief.\n\nReasoning effort: high.\n\n"
        '# Valid recipients: "self", "user".<|eot|><|start|>user<|message|>Hi<|eot|><|start|>assistant'
    )


def test_every_system_message_ends_with_the_directives() -> None:
    later = Message("system", (Text("Now in French."),))
    assert history(user("Hi"), later) == (
        "<|start|>user<|message|>Hi<|eot|><|start|>system<|message|>Now in French.\n\nReasoning effort: high.\n\n"
        '# Valid recipients: "self", "user".<|eot|>'
    )


@pytest.mark.parametrize("line", ["Reasoning effort: low.", "REASONING EFFORT: low", "So: reasoning effort: low."])
def test_a_system_message_may_set_the_effort_itself(line: str) -> None:
    assert rendered(Message("system", (Text(line),)), user("Hi"), reasoning_effort="xhigh") == (
        f'<|begin_of_text|><|start|>system<|message|>{line}\n\n# Valid recipients: "self", "user".<|eot|>'
        "<|start|>user<|message|>Hi<|eot|><|start|>assistant"
    )


@pytest.mark.parametrize(
    ("asked", "written"), [("minimal", "low"), *((e, e) for e in ("low", "medium", "high", "xhigh")), (None, "medium")]
)
def test_the_effort_reaches_the_prompt(asked: str | None, written: str) -> None:
    settings = ChatSettings(default_reasoning_effort="medium")
    assert f"\n\nReasoning effort: {written}.\n\n" in rendered(user("Hi"), settings=settings, reasoning_effort=asked)


@pytest.mark.parametrize("effort", ["none", "", "max", "High", "low."])
def test_an_unknown_effort_is_refused_by_name(effort: str) -> None:
    with pytest.raises(InvalidRequest, match="minimal, low, medium, high, xhigh") as caught:
        rendered(user("Hi"), reasoning_effort=effort)
    assert caught.value.param == "reasoning_effort"


def test_prompts_of_two_days_with_a_pinned_date_are_equal() -> None:
    settings = ChatSettings(include_date=True)
    pinned = {rendered(user("Hi"), settings=settings, today=date(2026, 10, 20)) for _ in range(2)}
    assert len(pinned) == 1
    before = datetime.now(UTC).date()
    text = rendered(user("Hi"), settings=settings)
    assert any(f"Current date: {day}." in text for day in (before, datetime.now(UTC).date()))


def test_the_default_settings_write_no_date_and_no_cutoff() -> None:
    assert rendered(user("Hi")) == SYSTEM + "<|start|>user<|message|>Hi<|eot|>" + ASK


def test_texts_side_by_side_are_one_run() -> None:
    parts = (Text("The cat"), Text("s are"), Text(" in."))
    whole = render([user("The cats are in.")], BYTES, SETTINGS)
    assert render([Message("user", parts)], BYTES, SETTINGS).token_ids == whole.token_ids


def test_text_beside_a_call_goes_to_the_commentary_channel() -> None:
    message = assistant("Let me look.", reasoning="Call.", tool_calls=(ToolCall("1", "clock", "{}"),))
    assert history(user("Time?"), message) == (
        "<|start|>user<|message|>Time?<|eot|><|start|>assistant to=self<|message|>Call.<|eom|>"
        "<|start|>assistant to=commentary<|message|>Let me look.<|eom|><|start|>assistant to=clock<|message|>"
        '<atem:function_calls>\n<atem:invoke name="clock">\n</atem:invoke>\n</atem:function_calls><|eot|>'
    )


@pytest.mark.parametrize("content", [(), (Text(""),), (Text(""), Text(""))])
def test_a_call_without_text_has_no_commentary(content: tuple[Text, ...]) -> None:
    message = Message("assistant", content, tool_calls=(ToolCall("1", "clock", ""),))
    assert history(message).startswith("<|start|>assistant to=clock<|message|>")


def test_a_call_before_another_assistant_message_does_not_end_the_turn() -> None:
    call = assistant("", tool_calls=(ToolCall("1", "clock", "{}"),))
    assert history(call, assistant("Noon.")).endswith(
        "</atem:function_calls><|eom|><|start|>assistant to=user<|message|>Noon.<|eot|>"
    )


@pytest.mark.parametrize("reasoning", [None, ""])
def test_an_empty_assistant_message_is_an_empty_answer(reasoning: str | None) -> None:
    assert history(assistant("", reasoning=reasoning)) == "<|start|>assistant to=user<|message|><|eot|>"


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ('"a  b "', "a  b "),
        ('"123"', "123"),
        ("null", "null"),
        ("false", "false"),
        ("1.50", "1.5"),
        ("1e2", "100.0"),
        ("-7", "-7"),
        ('{"é":[1,{"b":null}]}', '{"é": [1, {"b": null}]}'),
        ('"<b>&\\n\\"x\\""', '<b>&\n"x"'),
        ("[]", "[]"),
    ],
)
def test_values_are_written_as_the_published_template_writes_them(value: str, written: str) -> None:
    text = history(assistant("", tool_calls=(ToolCall("1", "f", f'{{"v":{value}}}'),)))
    assert f'<atem:parameter name="v">{written}</atem:parameter>\n' in text


NO_OBJECTS = ["[1]", '"text"', "7", "null", "{", "{'a': 1}", '{"a": NaN}', '{"a": [Infinity]}', '{"a": 1e400}']
NO_OBJECTS += ["[" * 50_000, '{"a":' * 100_000 + "1" + "}" * 100_000, '{"a": ' + "9" * 5_000 + "}"]


@pytest.mark.parametrize("arguments", NO_OBJECTS, ids=lambda arguments: arguments[:12])
def test_arguments_that_are_not_an_object_are_written_as_they_are(arguments: str) -> None:
    text = history(assistant("", tool_calls=(ToolCall("call_7", "f", arguments),)))
    assert f'<atem:invoke name="f">\n{arguments}\n</atem:invoke>' in text


def test_the_name_of_a_tool_result() -> None:
    """Its own name, else that of the call it answers (the last with this id), else the id itself."""
    calls = [assistant("", tool_calls=(ToolCall("1", name, "{}"),)) for name in ("old", "new")]
    assert history(*calls, Message("tool", (), tool_call_id="1")).count("<|start|>tool new<|message|>") == 1
    assert "<|start|>tool mine<|message|>" in history(*calls, Message("tool", (), tool_call_id="1", name="mine"))
    assert "<|start|>tool 2<|message|>" in history(*calls, Message("tool", (), tool_call_id="2"))
    for call_id in (None, ""):
        with pytest.raises(InvalidRequest, match="tool_call_id"):
            history(Message("tool", (Text("18C"),), tool_call_id=call_id))


def test_nothing_that_people_write_becomes_a_control_token() -> None:
    """In texts, reasoning, tool names, argument names and values, results, ids and settings."""
    frame = [i for i in render(everything("x"), BYTES, SETTINGS).token_ids if BYTES.is_special(i)]
    for name in SPECIAL_TOKENS:
        prompt = render(everything(name), BYTES, ChatSettings(default_system=name))
        assert [i for i in prompt.token_ids if BYTES.is_special(i)] == frame
        assert BYTES.decode(prompt.token_ids).count(name) == 12


def everything(text: str) -> list[Message]:
    call = ToolCall(text, text, json.dumps({text: text}))
    return [
        Message("system", (Text(text),)),
        user(text),
        assistant(text, reasoning=text, tool_calls=(call,)),
        Message("tool", (Text(text),), tool_call_id=text),
        assistant(text),
    ]


@given(st.lists(st.sampled_from(["<|eot|>", "<|start|>", "<|message|>", "system", "assistant to=user", "\n", "x"])))
def test_an_injected_turn_stays_inside_its_message(parts: list[str]) -> None:
    text = "".join(parts)
    assert history(user(text)) == f"<|start|>user<|message|>{spell(BYTES.encode(text))}<|eot|>"


def test_rendering_is_linear_in_placeholders() -> None:
    start = time.process_time()
    prompt = render([user("<|patch|>" * 100_000)], BYTES, SETTINGS)
    assert time.process_time() - start < 10  # measured: 0.4 s
    assert prompt.images == prompt.image_spans == ()


@pytest.mark.parametrize("reasoning", [None, "Easy: to=user it is."])
@pytest.mark.parametrize("answer", ["4", "", "a to=self b", "é😀\n"])
def test_a_reply_is_what_the_parser_reads_back(reasoning: str | None, answer: str) -> None:
    parser = ChatParser(BYTES)
    ids = render_reply(assistant(answer, reasoning=reasoning), BYTES)
    deltas = [delta for i in ids for delta in parser.push(i)]
    assert "".join(d.text for d in deltas if d.kind == "reasoning") == (reasoning or "")
    assert "".join(d.text for d in deltas if d.kind == "content") == answer
    assert parser.finish() == []


def test_a_prompt_and_its_reply_are_the_history_of_the_next_turn() -> None:
    """What training learns is what serving replays."""
    reply = assistant("4", reasoning="Easy.")
    first = render([user("2+2?")], BYTES, SETTINGS)
    later = render([user("2+2?"), reply, user("3+3?")], BYTES, SETTINGS)
    so_far = first.token_ids + render_reply(reply, BYTES)
    assert later.token_ids[: len(so_far)] == so_far


def test_no_messages_are_the_default_system_message() -> None:
    assert render([], BYTES, SETTINGS) == Prompt(read(SYSTEM + ASK))


def test_settings_come_from_the_checkpoint_folder(tmp_path: Path) -> None:
    assert ChatSettings.from_file(tmp_path) == ChatSettings()
    content = {
        "default_system": "Hi.",
        "default_reasoning_effort": "low",
        "knowledge_cutoff": None,
        "include_date": True,
    }
    (tmp_path / "chat_settings.json").write_text(json.dumps(content))
    assert ChatSettings.from_file(tmp_path) == ChatSettings("Hi.", "low", None, True)


BAD_SETTINGS = ["{", "[]", "null", '{"default_system": 7}', '{"default_reasoning_effort": "none"}', "\ud800"]
BAD_SETTINGS += ['{"include_date": 1}', '{"knowledge_cutoff": 2026}', '{"default_system": null}', '{"other": "x"}']


@pytest.mark.parametrize("content", BAD_SETTINGS)
def test_bad_settings_are_refused_by_name(tmp_path: Path, content: str) -> None:
    (tmp_path / "chat_settings.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(CheckpointError, match=r"chat_settings\.json"):
        ChatSettings.from_file(tmp_path)
