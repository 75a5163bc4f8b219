"""Templates by strangers: what they may use, and that nothing they do takes more than its share."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import pytest

from musespark.chat.template_sandbox import (
    MAX_TEMPLATE_CHARACTERS,
    OUTPUT_BASE,
    OUTPUT_PER_INPUT,
    TIME_LIMIT_S,
    TemplateSandbox,
)
from musespark.errors import CheckpointError, InvalidRequest

NOW = datetime(2026, 10, 20, 12, 30)


@contextmanager
def sandbox(template: str, time_limit_s: float = TIME_LIMIT_S) -> Iterator[TemplateSandbox]:
    made = TemplateSandbox(template, "folder/chat_template.jinja", time_limit_s=time_limit_s)
    try:
        yield made
    finally:
        made.close()


def run(template: str, **variables: Any) -> str:
    with sandbox(template) as made:
        return made.render(variables, NOW)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        # What transformers gives to templates, and how it trims blocks.
        ("{{ strftime_now('%d %b %Y') }}", "20 Oct 2026"),
        ("{{ {'a': [1, 'é<'], 'b': none} | tojson }}", '{"a": [1, "é<"], "b": null}'),
        ("{{ {'b': 1, 'a': 2} | tojson(indent=4) }}", '{\n    "b": 1,\n    "a": 2\n}'),
        ("{{ [1, 2] | tojson(separators=(',', ':')) }}", "[1,2]"),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{% set ns = namespace(n=0) %}{% for i in range(3) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}", "3"),
        ("{% generation %}{{ x }}{% endgeneration %}.", "7."),
        ("  {% if true %}\na\n  {% endif %}\nb", "a\nb"),
        ("{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f('&') }}", "<&>"),
        ("{{ missing is defined }}{{ missing }}", "False"),
        ("{{ x.get('a') if x is mapping else x }}", "7"),
    ],
)
def test_what_templates_use(template: str, text: str) -> None:
    assert run(template, x=7) == text


def test_a_refusal_reaches_the_client_in_the_templates_words() -> None:
    with pytest.raises(InvalidRequest, match="refuses this: roles must alternate") as caught:
        run("{{ raise_exception('roles must alternate') }}")
    assert caught.value.param == "messages"


@pytest.mark.parametrize("template", ["{{ messages.0.x.y }}", "{{ 1 / 0 }}", "{{ 'a' | tojson(indent='x', b=1) }}"])
def test_a_template_that_fails_on_a_conversation_is_a_bad_request(template: str) -> None:
    with pytest.raises(InvalidRequest, match="can't write this conversation: "):
        run(template, messages=[{}])


@pytest.mark.parametrize("template", ["{% if %}", "{{ x", "{% endfor %}", "{% include 'x' %}{% unknown %}"])
def test_what_is_no_template_is_refused_by_file(template: str) -> None:
    with pytest.raises(
        CheckpointError, match=r"folder/chat_template\.jinja is not a chat template: TemplateSyntaxError"
    ):
        run(template)


HOSTILE_WALKS = [
    "{{ ''.__class__ }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__']['__mro__'] }}",
    "{{ ''|attr('__class__') }}",
    "{{ cycler.__init__.__globals__.os.system('touch /tmp/owned') }}",
    "{{ self.__init__.__globals__ }}",
    "{{ strftime_now.__self__.__class__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ '{0.__class__}'.format(1) }}",
    "{{ '{x.__class__}'.format_map({'x': 1}) }}",
    "{% set ns = namespace(__class__=1) %}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update(a=1) }}",
    "{% import 'os' as os %}{{ os }}",
    "{% include '/etc/passwd' %}",
]


@pytest.mark.parametrize("template", HOSTILE_WALKS)
def test_walks_into_python_and_changes_lead_nowhere(template: str) -> None:
    """They fail, or find nothing, as Jinja's sandbox has it."""
    try:
        text = run(template, messages=[{}])
    except InvalidRequest:
        return
    assert text in ("", "None"), text


HOSTILE_LOADS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}"
    "{% endfor %}",
    "a long sum": "{{ range(99999)|map('string')|join(',')|length }}{% for i in range(99999) %}"
    "{% set x = range(99999)|sum %}{% endfor %}",
    "a power": "{% set n = namespace(x=9) %}{{ (n.x ** (n.x ** n.x)) % 7 }}",
    "a huge text": "{{ 'x' * 10 ** 10 }}",
    "a doubling text": "{% set n = namespace(t='xx') %}{% for i in range(60) %}{% set n.t = n.t + n.t %}{% endfor %}",
    "an endless output": "{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
    "a wide format": "{{ '%1000000000d' % 1 }}",
    "a recursion": "{% macro f(x) %}{{ f(x) }}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "a regular centre": "{{ 'x'.center(10 ** 10) }}",
    "a big range": "{{ range(10 ** 9)|list }}",
}


@pytest.mark.parametrize("template", HOSTILE_LOADS.values(), ids=HOSTILE_LOADS)
def test_nothing_a_template_does_takes_long_or_much(template: str) -> None:
    start = time.monotonic()
    with pytest.raises((CheckpointError, InvalidRequest), match="template"), sandbox(template, 1) as made:
        made.render({}, NOW)
    assert time.monotonic() - start < 10


def test_a_template_that_loops_only_sometimes_serves_the_others() -> None:
    with sandbox(
        "{% if loop %}{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}{% endif %}ok", 2
    ) as made:
        assert made.render({"loop": False}, NOW) == "ok"
        with pytest.raises(CheckpointError, match=r"folder/chat_template\.jinja was stopped: it runs longer than 2 s"):
            made.render({"loop": True}, NOW)
        assert made.render({"loop": False}, NOW) == "ok"


def test_output_on_both_sides_of_the_limit() -> None:
    with sandbox("{% for i in range(1000) %}{{ 'x' * 1000 }}{% endfor %}{{ 'x' * rest }}") as made:
        room = OUTPUT_PER_INPUT * len('{"rest": 48}')
        assert (room, OUTPUT_BASE) == (48, 1_000_000)
        assert len(made.render({"rest": 48}, NOW)) == 1_000_048
        with pytest.raises(CheckpointError, match="it writes more than 1,000,048 characters"):
            made.render({"rest": 49}, NOW)


def test_a_long_conversation_is_no_attack() -> None:
    text = "word " * 1_000_000
    assert run("{{ a }}{{ a }}", a=text) == text * 2


def test_the_size_of_a_template_on_both_sides_of_the_limit() -> None:
    assert run("x" * MAX_TEMPLATE_CHARACTERS) == "x" * MAX_TEMPLATE_CHARACTERS
    with pytest.raises(CheckpointError, match="1,000,001 characters; the limit for a template is 1,000,000"):
        run("x" * (MAX_TEMPLATE_CHARACTERS + 1))


def test_the_process_sees_nothing_of_our_environment_and_ends_with_us() -> None:
    with sandbox("ok") as made:
        process = made._process
        assert process is not None
        with open(f"/proc/{process.pid}/environ", "rb") as file:
            assert b"HOME" not in file.read()
    assert process.returncode is not None


def test_a_process_that_was_killed_is_replaced() -> None:
    with sandbox("ok") as made:
        assert made._process is not None
        os.kill(made._process.pid, 9)
        with pytest.raises(CheckpointError, match="its process broke down"):
            made.render({}, NOW)
        assert made.render({}, NOW) == "ok"
