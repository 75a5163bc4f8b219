"""Llama 4's template as transformers publishes it, and one in the manner of the Muse families', written for tests."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

# The rules of the published Glimmer template as far as a conversation without tools in the system message shows them.
ATEM = """\
{%- macro body(content) -%}
    {%- if content is string -%}{{ content }}
    {%- else -%}
        {%- for part in content -%}
            {%- if part.type == 'image' -%}{{ '<|patch|>' }}{%- elif part.type == 'text' -%}{{ part.text }}{%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- set recipients = '# Valid recipients: "self", "user".' -%}
{%- set strength = 'Reasoning strength: ' + reasoning_strength|default('high') + '.' -%}
{{- bos_token -}}
{%- if not messages or messages[0].role != 'system' -%}
    {{- '<|start|>system<|message|>You are a helpful AI assistant.' -}}
    {{- '\\nKnowledge cutoff: ' + knowledge_cutoff|default('2026-01-04') + '.' -}}
    {{- '\\nCurrent date: ' + current_date|default(strftime_now('%Y-%m-%d')) + '.' -}}
    {{- '\\n\\n' + strength + '\\n\\n' + recipients + '<|eot|>' -}}
{%- endif -%}
{%- set names = namespace(found={}) -%}
{%- for message in messages -%}
    {%- if message.role == 'system' -%}
        {{- '<|start|>system<|message|>' + body(message.content) -}}
        {%- if 'reasoning strength' not in body(message.content)|lower -%}{{ '\\n\\n' + strength }}{%- endif -%}
        {{- '\\n\\n' + recipients + '<|eot|>' -}}
    {%- elif message.role == 'user' -%}
        {{- '<|start|>user<|message|>' + body(message.content) + '<|eot|>' -}}
    {%- elif message.role == 'tool' -%}
        {%- set name = namespace(value=message.name or message.tool_call_id) -%}
        {%- for earlier in messages if earlier.tool_calls is defined -%}
            {%- for call in earlier.tool_calls if call.id == message.tool_call_id -%}
                {%- set name.value = call.function.name -%}
            {%- endfor -%}
        {%- endfor -%}
        {{- '<|start|>tool ' + name.value + '<|message|><tool_output name="' + name.value + '">\\n' -}}
        {{- body(message.content) + '\\n</tool_output><|eot|>' -}}
    {%- elif message.role == 'assistant' -%}
        {%- if message.reasoning_content -%}
            {{- '<|start|>assistant to=self<|message|>' + message.reasoning_content + '<|eom|>' -}}
        {%- endif -%}
        {%- if message.tool_calls -%}
            {%- set goes_on = not loop.last and loop.nextitem.role == 'assistant' -%}
            {%- for call in message.tool_calls -%}
                {{- '<|start|>assistant to=' + call.function.name + '<|message|><atem:function_calls>\\n' -}}
                {{- '<atem:invoke name="' + call.function.name + '">\\n' -}}
                {%- for key, value in call.function.arguments.items() -%}
                    {{- '<atem:parameter name="' + key + '">' -}}
                    {{- value if value is string else value|tojson -}}
                    {{- '</atem:parameter>\\n' -}}
                {%- endfor -%}
                {{- '</atem:invoke>\\n</atem:function_calls>' -}}
                {{- '<|eom|>' if not loop.last or goes_on else '<|eot|>' -}}
            {%- endfor -%}
        {%- else -%}
            {{- '<|start|>assistant to=user<|message|>' + body(message.content) + '<|eot|>' -}}
        {%- endif -%}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|start|>assistant' }}{%- endif -%}
"""


def llama4() -> str:
    package = importlib.util.find_spec("transformers")
    assert package is not None
    assert package.origin is not None
    path = Path(package.origin).parent / "models/llama4/processing_llama4.py"
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if (
            isinstance(node, ast.Assign)
            and isinstance(name := node.targets[0], ast.Name)
            and name.id == "chat_template"
        ):
            return str(ast.literal_eval(node.value))
    raise AssertionError("transformers has moved its template")
